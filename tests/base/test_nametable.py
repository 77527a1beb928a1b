"""The transcribed names of checkpoints against the transformers that is installed.

A test that fails here after an update of transformers says which family has changed or is new:
transcribe it in `packager/base/nametable.py`, or name it in `UNMAPPED`.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightTransform,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import model_type_to_module_name

from packager.base.nametable import (
    FLAT_CLASSES,
    FLAT_TYPES,
    LEGACY,
    PREFIXES,
    RULES,
    UNMAPPED,
    VISION_CLASSES,
)
from packager.base.naming import base_prefix
from packager.base.renaming import NameRule, Operation

TASKS = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM", "SEQUENCE_CLASSIFICATION",
         "TOKEN_CLASSIFICATION", "MASKED_LM")  # fmt: skip
PICTURES_ONLY = {"esm"}
"""Model types of these tasks whose only rules are for what is no weight, or those for all."""


def operation_of(converter: WeightConverter) -> Operation:
    """Names what a converter does to the values."""
    steps = [(type(step), step.__dict__) for step in converter.operations]
    if steps == [(MergeModulelist, {"dim": 0})]:
        return "experts"
    lay_below = {"dim": 1, "num_shards_attribute": None}
    if steps == [(MergeModulelist, {"dim": 0}), (Concatenate, lay_below)]:
        return "experts"
    if steps in ([(Concatenate, lay_below)], [(Concatenate, lay_below | {"dim": 0})]):
        return "concatenate"
    if steps == [(Chunk, {"dim": 0, "num_shards_attribute": None})]:
        return "chunk"
    if steps == [(Transpose, {"dim0": 1, "dim1": 2, "check_dims": True})]:
        return "transpose"
    return "unknown"


def as_rule(transform: WeightTransform) -> NameRule:
    is_converter = isinstance(transform, WeightConverter)
    return NameRule(
        tuple(transform.source_patterns),
        tuple(transform.target_patterns),
        operation_of(transform) if is_converter else "rename",
    )


def transcribe(name: str) -> tuple[NameRule, ...]:
    mapping = get_checkpoint_conversion_mapping(name)
    assert mapping is not None, f"transformers has no rules of {name}"
    return tuple(map(as_rule, mapping))


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_are_those_of_transformers(name: str) -> None:
    assert RULES[name] == transcribe(name)


def test_rules_for_every_model_are_those_of_transformers() -> None:
    assert transcribe("legacy") == LEGACY


def classes_of(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry)


def test_every_language_model_with_rules_is_known() -> None:
    kinds: dict[str, set[str]] = {}
    for task in TASKS:
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
        for kind, entry in names.items():
            kinds.setdefault(kind, set()).update(classes_of(entry))
    known = set(RULES) | UNMAPPED | PICTURES_ONLY
    unknown = {
        kind
        for kind, classes in kinds.items()
        for name in (kind, *classes)
        if get_checkpoint_conversion_mapping(name) is not None and not known & {kind, name}
    }
    assert unknown == set(), "transcribe these, or name them in UNMAPPED"
    assert not UNMAPPED & set(RULES)


def test_vision_towers_with_rules_are_known() -> None:
    names = modeling_auto.MODEL_MAPPING_NAMES
    for kind, entry in VISION_CLASSES.items():
        assert names[kind] == entry


def bodies(module: str) -> dict[str, ast.ClassDef]:
    """Returns the classes of a module of transformers, unread by Python."""
    spec = importlib.util.find_spec(f"transformers.models.{module}")
    assert spec is not None, module
    assert spec.origin is not None, module
    found: dict[str, ast.ClassDef] = {}
    for path in Path(spec.origin).parent.glob("modeling_*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        found |= {item.name: item for item in body if isinstance(item, ast.ClassDef)}
    return found


def is_flat(name: str, prefix: str, classes: dict[str, ast.ClassDef]) -> bool:
    """Tells whether a class sets no attribute of the prefix's name."""
    text = ast.unparse(classes[name])
    if f"self.{prefix} =" in text or f"self.{prefix}:" in text:
        return False
    above = [base.id for base in classes[name].bases if isinstance(base, ast.Name)]
    if any(base.startswith("GenericFor") for base in above):
        return False
    known = [base for base in above if base in classes]
    return "def __init__" in text or all(is_flat(base, prefix, classes) for base in known)


def test_classes_without_the_prefix_are_known() -> None:
    """Of the types whose prefix is known, so that a checkpoint without it tells something."""
    found: set[str] = set()
    for task in (*TASKS, "QUESTION_ANSWERING"):
        names = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
        for kind in (names.keys() & PREFIXES.keys()) - FLAT_TYPES:
            classes = bodies(model_type_to_module_name(kind))
            prefix = base_prefix({"model_type": kind})
            for name in classes_of(names[kind]):
                if name in classes and is_flat(name, prefix, classes):
                    found.add(name)
    assert found == FLAT_CLASSES
