"""The YAML block at the top of a card: writer and parser side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from packager.errors import InputError

MAX_FRONT_MATTER_CHARS = 256 << 10
"""The largest YAML block that is parsed, in characters."""

_MAX_DEPTH = 32

# Source: huggingface_hub 2.4, src/huggingface_hub/repocard.py, REGEX_YAML_BLOCK, which the Hub's
# server uses too. The parser below finds the same block by lines, in linear time.
_OPENING = re.compile(r"\s*---(?:\r\n|\r|\n)")
_CLOSING = re.compile(r"(?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|$)")
_NULLS = {"", "~", "null", "Null", "NULL"}


class _StringLoader(yaml.BaseLoader):
    """Builds strings, lists and mappings only, and refuses what can grow or recur.

    Every scalar stays the text that stands in the file: `no` is a language, not False, and `3.10`
    keeps its zero. Aliases are refused, since a few lines of them unfold to gigabytes.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        if self.depth >= _MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {_MAX_DEPTH}")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.YAMLError("a key stands twice")
        return mapping


class _Dumper(yaml.SafeDumper):
    """Writes a text with line breaks on one line, escaped: PyYAML 6.0 folds U+0085 to a space."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if text.splitlines() not in ([], [text]) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def render_front_matter(metadata: Mapping[str, str | list[str]]) -> str:
    """Returns the block with its `---` lines; keys in the given order.

    Args:
        metadata: Strings and lists of strings.
    """
    text = yaml.dump(
        dict(metadata),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=2**31,
    )
    return f"---\n{text}---\n"


def split_front_matter(text: str) -> tuple[str, str]:
    """Splits a card into its YAML block, without the `---` lines, and its body.

    Both are as in the file; the block is empty where the card has none.
    """
    # A byte order mark counts as white space for the Hub's server, but not for Python.
    text = text.removeprefix("\ufeff")
    opening = _OPENING.match(text)
    closing = _CLOSING.search(text, opening.end()) if opening else None
    if opening is None or closing is None:
        return "", text
    return text[opening.end() : closing.start()], text[closing.end() :]


def parse_front_matter(text: str, *, where: str) -> dict[str, Any]:
    """Parses the YAML block of a card; every scalar is a string.

    Args:
        text: The whole card.
        where: Its name, for the error.

    Returns:
        The mapping, empty where the card has no block.

    Raises:
        InputError: Not YAML, no mapping, too large, nested too deeply, a key twice, or aliases.
    """
    block, _ = split_front_matter(text)
    if len(block) > MAX_FRONT_MATTER_CHARS:
        raise InputError(
            "the YAML block is too large",
            where=where,
            expected=f"at most {MAX_FRONT_MATTER_CHARS} characters",
            found=f"{len(block)} characters",
            hint="shorten the block between the two `---`",
        )
    try:
        value = yaml.load(block, Loader=_StringLoader)  # noqa: S506 - it builds strings only
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise InputError(
            "the YAML block cannot be read",
            where=where,
            found=" ".join(str(problem).split())[:200],
            hint="correct the lines between the two `---`",
        ) from problem
    if value is None or value == "":
        return {}
    if not isinstance(value, dict):
        raise InputError(
            "the YAML block is not a mapping",
            where=where,
            expected="lines of `key: value`",
            found=type(value).__name__,
            hint="correct the lines between the two `---`",
        )
    return value


def text_value(metadata: Mapping[str, Any], key: str) -> str | None:
    """Returns the text under `key`; None where it is missing, empty, null, or something else."""
    value = metadata.get(key)
    return value.strip() if isinstance(value, str) and value.strip() not in _NULLS else None


def text_values(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Returns the texts under `key`, which may be one text or a list; other values are left out."""
    value = metadata.get(key)
    values = value if isinstance(value, list) else [value]
    texts = (item.strip() for item in values if isinstance(item, str))
    return tuple(dict.fromkeys(text for text in texts if text))
