"""How names of a checkpoint become names of parameters: rules as values, and what they do.

Source: transformers 5.23, core_model_loading.py, WeightTransform: a rule is searched for in a
name, its longest pattern first, and what is found is replaced where it comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

Operation = Literal["rename", "experts", "concatenate", "chunk", "transpose", "unknown"]
"""What becomes of the values:

- `rename`: nothing.
- `experts`: numbered matrices are stacked along a new first axis, then those of several patterns
  put below each other.
- `concatenate`: the tensors of several patterns are put below each other: rows of a matrix, or of
  each matrix of a stack.
- `chunk`: the rows are shared equally among several parameters.
- `transpose`: the last two axes of a stack are swapped, unless they already fit.
- `unknown`: something that cannot be undone here.
"""


_MAX_NAME = 256
"""Characters; no library makes longer names, and searching a stranger's could take for ever."""


@dataclass(frozen=True)
class NameRule:
    """One rule.

    Attributes:
        sources: Patterns that are searched for in a name; `*.` stands for anything up to a dot.
        targets: What takes the place of what was found; only a `chunk` has more than one.
        operation: What becomes of the values.
        scope: Submodule whose names it is for, relative to the base model; None for all names.
        prefix: Of the base model within the whole one, for rules with a scope.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operation: Operation = "rename"
    scope: str | None = None
    prefix: str = ""

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        order = sorted(range(len(self.sources)), key=lambda number: -len(self.sources[number]))
        return re.compile("|".join(f"(?P<g{number}>{self._regex(number)})" for number in order))

    def _regex(self, number: int) -> str:
        pattern = self.sources[number].replace("*.", r".*\.")
        ends_in_a_word = re.search(r"[a-zA-Z0-9]$", pattern) is not None
        return pattern + r"(?!\w)" if ends_in_a_word else pattern

    def find(self, name: str) -> Found | None:
        """Returns what the rule makes of a name, or None where it does not apply."""
        start = self._start(name)
        if start is None:
            return None
        rest = name.removeprefix(start)
        match = self._pattern.search(rest)
        if match is None:
            return None
        group = next(key for key, text in match.groupdict().items() if text is not None)
        inner = self._pattern.groupindex[group] + 1
        names = []
        for target in self.targets:
            text = target.replace(r"\1", match[inner] or "") if r"\1" in target else target
            names.append(start + rest.replace(match[0], text, 1))
        number = re.search(r"\.(\d{1,9})\.", match[0])
        return Found(
            names=tuple(names),
            part=int(group[1:]),
            number=int(number[1]) if number and "*." in self.sources[int(group[1:])] else None,
        )

    def _start(self, name: str) -> str | None:
        """Returns what stands before the names of the scope, or None outside of it."""
        if self.scope is None:
            return ""
        scope = f"{self.scope}." if self.scope else ""
        prefix = f"{self.prefix}." if self.prefix else ""
        return next((start for start in (prefix + scope, scope) if name.startswith(start)), None)


@dataclass(frozen=True)
class Found:
    """What a rule makes of one name.

    Attributes:
        names: Of parameters; several for a `chunk`, in the order of their rows.
        part: Number of the pattern that was found.
        number: That stood for the first `*.` of the pattern, or None.
    """

    names: tuple[str, ...]
    part: int
    number: int | None


def rename(source: str, target: str) -> NameRule:
    """Returns a rule that renames only."""
    return NameRule((source,), (target,))


def add_prefix(added: str, below: str) -> NameRule:
    """Returns a rule that puts a name behind `below`, unless it is there already."""
    return NameRule((rf"^{below}\.(?:(?!{added}\.))(.+)",), (rf"{below}.{added}.\1",))


def remove_prefix(removed: str, below: str = "") -> NameRule:
    """Returns a rule that takes a name away behind `below`, or at the start."""
    start, kept = (rf"{below}\.", f"{below}.") if below else ("", "")
    return NameRule((rf"^{start}{removed}\.(.+)",), (rf"{kept}\1",))


def scoped(rules: Iterable[NameRule], scope: str, prefix: str) -> tuple[NameRule, ...]:
    """Returns rules as they are for a submodule; see `NameRule`."""
    return tuple(replace(rule, scope=scope, prefix=prefix) for rule in rules)


def apply_rules(name: str, rules: Iterable[NameRule]) -> tuple[Found, NameRule | None]:
    """Applies every rule that renames, in order, and then the first other one that fits.

    Source: transformers 5.23, core_model_loading.py, rename_source_key.

    Returns:
        What becomes of a name, and the rule that changes its values, if any.
    """
    rules = tuple(rules) if len(name) <= _MAX_NAME else ()
    for rule in rules:
        if rule.operation == "rename" and (found := rule.find(name)) is not None:
            name = found.names[0]
    for rule in rules:
        if rule.operation != "rename" and (found := rule.find(name)) is not None:
            return found, rule
    return Found((name,), 0, None), None
