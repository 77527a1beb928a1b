"""Matching module names with the patterns of an adapter, which a stranger wrote."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from functools import lru_cache
from time import monotonic

import regex

from packager.errors import UnsafeInputError

_PATTERN_SECONDS = 1.0
_ALL_PATTERNS_SECONDS = 5.0
_MAX_PATTERN = 16_384
# The engine with a time limit reads braces that hold no count as fuzzy matching.
_NO_COUNT = re.compile(r"\{(?!\d*,?\d*\})")


class Matcher:
    """Matches an adapter's patterns, which a stranger wrote, within a total of time."""

    def __init__(self) -> None:
        self._seconds_left = _ALL_PATTERNS_SECONDS

    def names(self, names: tuple[str, ...] | str, module: str) -> bool:
        """Tells whether a module is named by suffixes, or by one pattern."""
        if isinstance(names, str):
            return self.match(names, module, whole=True) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    def first(self, patterns: Mapping[str, float], module: str, default: float) -> float:
        """Returns the value of the first pattern that a module's name ends with."""
        for pattern, value in patterns.items():
            if self.match(rf"(.*\.)?({pattern})$", module) is not None:
                return value
        return default

    def match(self, pattern: str, text: str, *, whole: bool = False) -> regex.Match[str] | None:
        """Matches from the start, or as a whole.

        Raises:
            UnsafeInputError: Not a pattern, or it or all together take too long.
        """
        if len(pattern) > _MAX_PATTERN:
            raise _bad_pattern(pattern, f"{len(pattern)} characters")
        seconds = min(_PATTERN_SECONDS, self._seconds_left)
        if seconds <= 0:
            raise _bad_pattern(pattern, f"no answer within {_ALL_PATTERNS_SECONDS:g} s")
        began = monotonic()
        try:
            _check_syntax(pattern)
            function = regex.fullmatch if whole else regex.match
            return function(pattern, text, timeout=seconds)
        except TimeoutError as problem:
            raise _bad_pattern(pattern, f"no answer within {seconds:.1g} s") from problem
        except (
            re.error, regex.error, RecursionError, ValueError, OverflowError, Warning,
        ) as problem:  # fmt: skip
            raise _bad_pattern(pattern, str(problem)[:120]) from problem
        finally:
            self._seconds_left -= monotonic() - began


@lru_cache(maxsize=1024)
def _check_syntax(pattern: str) -> None:
    """Takes only what means the same to `re`, which PEFT matches with, now and later."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        re.compile(pattern)
    if _NO_COUNT.search(pattern):
        raise ValueError("braces that hold no count")


def _bad_pattern(pattern: str, found: str) -> UnsafeInputError:
    return UnsafeInputError(
        "a module pattern of the adapter cannot be used",
        where=f"adapter_config.json, {pattern[:80]!r}",
        expected="a regular expression that ends quickly",
        found=found,
        hint="list the module names instead of a pattern",
    )
