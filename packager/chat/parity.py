"""Which Go template says what a chat template says, by the token ids of the fixed conversations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from packager.chat.capability import find_capabilities
from packager.chat.family import FAMILIES, Variant, fill_text, read_variants
from packager.chat.rendering import Rendering, token_ids

_DEFAULT = "DEFAULT_SYSTEM"


@dataclass(frozen=True)
class Match:
    """A Go template that gives the same token ids.

    Attributes:
        variant: Which.
        constants: All of its constants, by name.
        lead: What has to stand in front of it, as the prompt or as a token: the text of the token
            that begins a sequence, or nothing.
    """

    variant: Variant
    constants: Mapping[str, str]
    lead: str


def find_match(
    tokenizer: Any, jinja: str, renderings: tuple[Rendering, ...], leads: Iterable[str]
) -> Match | None:
    """Returns the first variant of a family that gives the same token ids on every conversation.

    Args:
        tokenizer: Of transformers.
        jinja: The chat template.
        renderings: What it makes of the conversations.
        leads: What may stand in front, best first.
    """
    capabilities = set(find_capabilities(jinja))
    for lead in leads:
        for family in FAMILIES:
            if set(family.capabilities) != capabilities:
                # Ollama reads off the template what a model may be asked for.
                continue
            for variant in read_variants(family):
                match = _match(tokenizer, variant, renderings, lead)
                if match is not None:
                    return match
    return None


def _match(
    tokenizer: Any, variant: Variant, renderings: tuple[Rendering, ...], lead: str
) -> Match | None:
    constants = {
        **variant.constants,
        "EOS": getattr(tokenizer, "eos_token", None) or "",
        "BOS": getattr(tokenizer, "bos_token", None) or "",
    }
    if _DEFAULT not in constants:
        default = _read_default(variant, constants, renderings, lead)
        if default is not None:
            constants[_DEFAULT] = default
    for rendering in renderings:
        golden = variant.renderings.get(rendering.conversation)
        if golden is None:
            return None
        text = lead + fill_text(golden, constants)
        if text != rendering.text and token_ids(tokenizer, text) != rendering.ids:
            return None
    return Match(variant, constants, lead)


def _read_default(
    variant: Variant, constants: Mapping[str, str], renderings: tuple[Rendering, ...], lead: str
) -> str | None:
    """Returns the system message that a chat template brings itself, read off a rendering."""
    for rendering in renderings:
        golden = lead + fill_text(variant.renderings.get(rendering.conversation, ""), constants)
        before, mark, after = golden.partition(f"%{_DEFAULT}%")
        text = rendering.text
        if mark and text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
    return None
