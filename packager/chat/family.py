"""Families of chat formats as Go templates for Ollama, with what Go's text/template makes of them.

A template holds constants, as Go strings `"%NAME%"`, which differ between models of one family.
Beside it stand golden renderings of the fixed conversations, made by Go itself, so that a release
can tell without Go whether a template says what the model's own chat template says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from packager.chat.conversation import Capability
from packager.resource import read_resource

_CONSTANT = re.compile('"%([A-Z_]+)%"')
_MARK = re.compile("%([A-Z_]+)%")


@dataclass(frozen=True)
class Family:
    """One format.

    Attributes:
        name: Of the files in `templates/ollama/`.
        parts: Files of shared definitions that come first.
        stops: Texts that end a turn; constants may stand in them.
        capabilities: What the template renders beside plain turns.
        variants: Values of the constants of each known way to write the format. A golden
            rendering holds those that are left out by name, `%EOS%`: any text may stand there.
    """

    name: str
    stops: tuple[str, ...]
    parts: tuple[str, ...] = ()
    capabilities: tuple[Capability, ...] = ()
    variants: tuple[Mapping[str, str], ...] = ({},)


@dataclass(frozen=True)
class Variant:
    """A family with its constants chosen, but for those that any text may stand for.

    Attributes:
        family: Which.
        constants: By name.
        renderings: Conversation → what Go made of it, marks in place.
    """

    family: Family
    constants: Mapping[str, str]
    renderings: Mapping[str, str]


def _defaults(*variants: Mapping[str, str]) -> tuple[Mapping[str, str], ...]:
    """Returns each variant without a default system message, and with one."""
    return tuple(
        {**variant, **empty} for variant in variants for empty in ({"DEFAULT_SYSTEM": ""}, {})
    )


def _mistral(
    opening: str, closing: str, answer: str, *, strip: str = "", system_in: str = "first"
) -> Mapping[str, str]:
    return {
        "OPEN": opening,
        "CLOSE": closing,
        "ANSWER": answer,
        "STRIP": strip,
        "SYSTEM_IN": system_in,
    }


FAMILIES: tuple[Family, ...] = (
    Family("chatml", ("<|im_end|>",), variants=_defaults({})),
    Family(
        "qwen2.5",
        ("<|im_end|>", "<|endoftext|>"),
        parts=("part_json",),
        capabilities=("tools",),
        variants=_defaults({}),
    ),
    Family(
        "qwen3",
        ("<|im_end|>", "<|endoftext|>"),
        parts=("part_json",),
        capabilities=("tools", "thinking"),
    ),
    Family("llama3", ("<|eot_id|>",), parts=("part_trim",)),
    Family("llama2", ("%EOS%",), parts=("part_trim",)),
    Family(
        "mistral",
        ("%EOS%",),
        parts=("part_trim",),
        variants=(
            _mistral("[INST] ", " [/INST]", ""),
            _mistral("[INST] ", " [/INST]", " "),
            _mistral(" [INST] ", " [/INST]", " "),
            _mistral("[INST] ", "[/INST]", " ", strip="y", system_in="last"),
            _mistral("[INST] ", "[/INST]", " ", system_in="last"),
            _mistral("[INST]", "[/INST]", "", system_in="last"),
        ),
    ),
    Family(
        "mistral-tools",
        ("%EOS%",),
        parts=("part_trim", "part_json"),
        capabilities=("tools",),
        variants=(
            {"GAP": " ", "ANSWER": " ", "STRIP": "y"},
            {"GAP": " ", "ANSWER": " ", "STRIP": ""},
            {"GAP": "", "ANSWER": "", "STRIP": ""},
        ),
    ),
    Family("gemma", ("<end_of_turn>",), parts=("part_trim",)),
    Family("phi3", ("<|end|>",)),
    Family("phi4", ("<|im_end|>",)),
    Family("zephyr", ("%EOS%",)),
    Family("command-r", ("<|END_OF_TURN_TOKEN|>",), parts=("part_trim",)),
    Family(
        "alpaca",
        ("### Instruction:",),
        variants=_defaults({"END": "%EOS%\n\n"}, {"END": "\n\n"}, {"END": "%EOS%"}),
    ),
    Family(
        "vicuna",
        ("USER:", "%EOS%"),
        variants=_defaults(
            {"BEFORE": "", "AFTER": " ", "GAP": " ", "END": "%EOS%"},
            {"BEFORE": "", "AFTER": "\n\n", "GAP": "\n", "END": "%EOS%\n"},
            {"BEFORE": "", "AFTER": "\n\n", "GAP": "\n", "END": "%EOS%"},
            {"BEFORE": "SYSTEM: ", "AFTER": "\n", "GAP": "\n", "END": "%EOS%\n"},
        ),
    ),
)  # fmt: skip


def read_template(family: Family) -> str:
    """Returns a family's template, its parts in front, constants by name."""
    # Parts end with a line end of their own, which says nothing.
    parts = (read_resource(f"templates/ollama/{name}.gotmpl").rstrip() for name in family.parts)
    return "".join((*parts, read_resource(f"templates/ollama/{family.name}.gotmpl")))


def read_variants(family: Family) -> tuple[Variant, ...]:
    """Returns the variants of a family with their golden renderings."""
    goldens = _read_goldens(family.name)
    return tuple(Variant(family, golden["constants"], golden["renderings"]) for golden in goldens)


def fill_template(template: str, constants: Mapping[str, str]) -> str:
    """Puts Go strings in the place of constants; a constant that is not given stays."""
    return _CONSTANT.sub(
        lambda match: (
            quote_go(fill_text(constants[match[1]], constants))
            if match[1] in constants
            else match[0]
        ),
        template,
    )


def fill_text(text: str, constants: Mapping[str, str]) -> str:
    """Puts texts in the place of marks; a mark that is not given stays."""
    return _MARK.sub(lambda match: constants.get(match[1], match[0]), text)


def quote_go(text: str) -> str:
    """Returns a text as an interpreted string of Go, in ASCII, which a Modelfile can carry."""
    return f'"{"".join(map(_escape, text))}"'


def _escape(letter: str) -> str:
    code = ord(letter)
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isascii() and letter.isprintable():
        return letter
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@cache
def _read_goldens(name: str) -> list[Mapping[str, Mapping[str, str]]]:
    goldens: list[Mapping[str, Mapping[str, str]]] = json.loads(
        read_resource(f"templates/ollama/{name}.json")
    )
    return goldens
