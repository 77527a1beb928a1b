"""Values from a stranger's JSON document: built, and checked against what their type declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def build_record(kind: type[Record], raw: Any) -> Record:
    """Returns a dataclass value from what `dataclasses.asdict` and JSON made of one.

    Lists become tuples and mappings become dataclasses, as the fields declare; of a union of
    dataclasses, the one whose `kind` it is.

    Raises:
        TypeError: A field is missing, unknown, or holds another type.
        AttributeError: Something else than a mapping stands where a dataclass should.
    """
    hints = get_type_hints(kind)
    record = kind(**{name: _build(hints.get(name, Any), item) for name, item in raw.items()})
    check_fields(record)
    return record


def _build(hint: Any, raw: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if isinstance(raw, dict) and "kind" in raw:
            args = tuple(arg for arg in args if raw["kind"] in _kinds(arg))
        fitting = [arg for arg in args if (get_origin(arg) is tuple) == isinstance(raw, list)]
        return raw if raw is None or not fitting else _build(fitting[0], raw)
    if origin is tuple and isinstance(raw, list):
        return tuple(_build(args[0], item) for item in raw)
    if is_dataclass(hint) and isinstance(hint, type):
        return build_record(hint, raw)
    return raw


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Returns the kinds of a dataclass that is told from its neighbours in a union by one."""
    return get_args(get_type_hints(hint).get("kind")) if is_dataclass(hint) else ()


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
