"""Checking that a value read from a stranger's document holds what its type declares."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_fields(record: object) -> None:
    """Refuses a dataclass value with a field of another type than declared.

    Text, whole numbers, booleans, `None`, literals, unions, tuples of one type, mappings and
    further dataclasses are told apart; a boolean is no number.

    Raises:
        TypeError: With the field and what it holds.
    """
    for name, hint in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not _fits(value, hint):
            raise TypeError(f"{name} is {value!r:.80}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        fits = isinstance(value, str) and value in args
    elif origin in (Union, UnionType):
        fits = any(_fits(value, arg) for arg in args)
    elif origin is tuple:
        fits = isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    elif origin in (dict, Mapping):
        fits = isinstance(value, dict) and all(
            _fits(key, args[0]) and _fits(item, args[1]) for key, item in value.items()
        )
    elif hint in (int, NoneType):
        fits = type(value) is hint
    else:
        fits = hint is Any or isinstance(value, hint)
    return fits
