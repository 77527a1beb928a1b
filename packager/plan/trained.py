"""The model that an adapter was trained with, as names: its class, and the modules it has.

A base is loaded into the class of a task, which holds the base model below a prefix; checkpoints
hold more than any one class, and some leave the prefix out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packager.base import BaseIndex
from packager.base.nametable import FLAT_CLASSES, FLAT_TYPES, PREFIXES
from packager.plan.change import HEAD_NAME
from packager.plan.source import AdapterSource
from packager.task import find_task, is_backbone, task_architecture

# Source: transformers 5.23, models/*/modeling_*.py, `_keys_to_ignore_on_load_unexpected`: what
# predicts several tokens at once is stored, and is no part of the model; of what pools a text, and
# of BERT's heads of pretraining, only some classes make use.
_UNLOADED = re.compile(r"(?:^|\.)(?:mtp|pooler\.|seq_relationship\.)")
_STACK = re.compile(r"(?P<stack>.*?)\.(?P<number>\d+)\.")
# Source: transformers 5.23, models/*/configuration_*.py.
_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers",
    "encoder_layers", "decoder_layers", "depth",
)  # fmt: skip
_TOWERS = {
    "vision_config": re.compile(r"vision|visual|image|video"),
    "audio_config": re.compile(r"audio"),
}


@dataclass(frozen=True)
class TrainedModel:
    """Which modules the model of a training has, as far as the base tells.

    Attributes:
        modules: By their names in it → the parameters that each holds itself.
        present: Those that it has for certain.
    """

    modules: Mapping[str, frozenset[str]]
    present: frozenset[str]

    def has(self, module: str) -> bool:
        """Tells whether it has a module for certain; one that it does not name it has."""
        return module in self.present or module not in self.modules


def trains_alone(source: AdapterSource, base: BaseIndex) -> bool:
    """Tells whether an adapter was trained on the base model by itself, which has no prefix.

    Source: PEFT 0.21, peft_model.py, save_pretrained: without a task type, the class of the
    training is in `auto_mapping`.
    """
    config = source.spec.config
    if config.task_type is not None:
        return config.task_type == "FEATURE_EXTRACTION"
    mapping = config.raw.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return is_backbone(trained if isinstance(trained, str) else base.architecture)


def has_prefix(source: AdapterSource, base: BaseIndex) -> bool:
    """Tells whether the class of the training is known to hold the base model below its prefix."""
    kind = base.config.get("model_type")
    flat = kind in FLAT_TYPES or _trained_class(source, base) in FLAT_CLASSES
    known = kind in PREFIXES or is_backbone(base.architecture)
    return known and not flat and not trains_alone(source, base)


def read_model(source: AdapterSource, base: BaseIndex) -> TrainedModel:
    """Returns the modules of the model that an adapter was trained with."""
    modules = dict(_class_modules(source, base))
    adapted = (*source.spec.modules, *(pair.module for pair in source.spec.parameters))
    literal = all(name in modules or f"{name}.weight" in base.tensors for name in adapted)
    task = find_task(source.spec.config.task_type, base.architecture, base.config)
    writes = task.generates and not trains_alone(source, base)
    unchanged = _trained_class(source, base) == base.architecture
    whole = literal and unchanged
    stacks = _adapted_stacks(source, base)
    present = frozenset(
        name
        for name in modules
        if _is_loaded(name, base.config)
        and (
            whole
            or _is_vocabulary(name, base, writes=writes)
            or not stacks.isdisjoint(_stacks(name, base))
        )
    )
    return TrainedModel(modules, present)


def _trained_class(source: AdapterSource, base: BaseIndex) -> str:
    task = find_task(source.spec.config.task_type, base.architecture, base.config)
    return task_architecture(task, base.architecture, base.config)


def _class_modules(source: AdapterSource, base: BaseIndex) -> Iterator[tuple[str, frozenset[str]]]:
    """Yields the modules of the base by their names in the class of the training."""
    naming = base.naming
    start = f"{naming.prefix}."
    alone, adds = trains_alone(source, base), naming.omits_prefix and has_prefix(source, base)
    for name, leaves in naming.modules.items():
        if alone and (naming.omits_prefix or name.startswith(start)):
            yield name.removeprefix(start), leaves
        elif not alone:
            yield (start + name if adds and not naming.is_head(name) else name), leaves
    task = find_task(source.spec.config.task_type, base.architecture, base.config)
    if task.generates and not alone and base.head is None and base.ties_embeddings:
        yield HEAD_NAME.removesuffix(".weight"), frozenset({"weight"})


def _adapted_stacks(source: AdapterSource, base: BaseIndex) -> frozenset[str]:
    """Returns where layers stand of which the adapter has tensors, by every name of the place."""
    found: set[str] = set()
    for ref in source.spec.tensors:
        found.update(_stack(ref.name.removeprefix("base_model.model.")))
    for name in source.spec.modules:
        found.update(_stacks(name, base))
    return frozenset(found)


def _stacks(module: str, base: BaseIndex) -> Iterator[str]:
    """Yields the names of the list of layers that a module is in."""
    yield from _stack(module)
    leaf = next(iter(sorted(base.naming.below(module), reverse=True)), "weight")
    for part in base.naming.find(f"{module}.{leaf}")[:1]:
        yield from _stack(part.ref.name)


def _stack(name: str) -> Iterator[str]:
    match = _STACK.match(name)
    if match is not None:
        yield match["stack"]


def _is_vocabulary(name: str, base: BaseIndex, *, writes: bool) -> bool:
    """Tells whether a module is the embedding, or the head of a model that writes."""
    ref = base.naming.find_tensor(f"{name}.weight")
    if ref is None or ref == base.head:
        return writes
    return ref == base.embedding


def _is_loaded(name: str, config: Mapping[str, Any]) -> bool:
    """Tells whether a module that is stored is a part of the model, and not one layer too many."""
    match = _STACK.match(f"{name}.")
    count = _layer_count(name, config)
    number = -1 if match is None else int(match["number"][:9])
    return not _UNLOADED.search(f"{name}.") and (count is None or number < count)


def _layer_count(name: str, config: Mapping[str, Any]) -> int | None:
    part: Any = config.get("text_config") or config
    for key, pattern in _TOWERS.items():
        if key in config and pattern.search(name):
            part = config[key]
    counts = [part.get(key) for key in _COUNTS] if isinstance(part, Mapping) else []
    return max((count for count in counts if type(count) is int), default=None)
