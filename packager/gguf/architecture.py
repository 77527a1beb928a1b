"""Which family a model is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packager.errors import UnsupportedFeatureError
from packager.gguf.family import Family
from packager.gguf.familylist import FAMILIES

WAYS_OUT = (
    "keep the adapter separate (--target adapter), or merge (--target merged) and give "
    "--llama-cpp DIR, a llama.cpp checkout whose converter is run on the result"
)
"""The hint of every error about what cannot be written as GGUF here."""

_BY_CLASS = {name: family for family in FAMILIES for name in family.classes}


def supported_architectures() -> tuple[str, ...]:
    """Returns the model classes that can be written as GGUF, sorted."""
    return tuple(sorted(_BY_CLASS))


def find_family(config: Mapping[str, Any]) -> Family:
    """Returns the family that a configuration names.

    Source: llama.cpp 0c1e57098, conversion/base.py, `get_model_architecture`: a composite model
    is of the class that its language model names, if it names one.

    Args:
        config: `config.json` of the merged model.

    Raises:
        UnsupportedFeatureError: No family has this class.
    """
    nested = config.get("text_config")
    inner = nested.get("architectures") if isinstance(nested, Mapping) else None
    classes = inner or config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    family = _BY_CLASS.get(name) if isinstance(name, str) else None
    if family is not None:
        return family
    raise UnsupportedFeatureError(
        "this architecture cannot be written as GGUF",
        where="config.json: architectures",
        expected=f"one of {', '.join(supported_architectures())}",
        found="nothing" if name is None else repr(name)[:80],
        hint=WAYS_OUT,
    )
