"""Layers that an adapter stands on more often than the base has them.

Source: PEFT 0.21, tuners/tuners_utils.py, replicate_layers: pairs (first, end) of layers of the
base, one after the other; the copies share their weights, and each has adapters of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from packager.base import BaseIndex
from packager.errors import AdapterError, LorapackError
from packager.plan.source import AdapterSource
from packager.plan.value import PlannedTensor
from packager.tensorfile import TensorRef

# Source: the same function: the lists of layers that it knows, within any number of models.
_LAYER = re.compile(
    r"(?P<before>(?:(?:model|transformer|bert|encoder)\.)*(?:layers|layer|h)\.)(?P<number>\d+)\."
)
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_MAX_LAYERS = 4096


def layer_map(source: AdapterSource) -> tuple[int, ...]:
    """Returns the base's layer of each layer of the model, or nothing where they are the base's."""
    ranges = source.spec.config.raw.get("layer_replication")
    if not isinstance(ranges, list):
        return ()
    layers: list[int] = []
    for item in ranges:
        if _is_range(item) and len(layers) < _MAX_LAYERS:
            layers += range(item[0], item[1])
    return tuple(layers[:_MAX_LAYERS])


def check_layers(source: AdapterSource, base: BaseIndex) -> list[LorapackError]:
    """Refuses layers that the base does not have, and what PEFT would not take."""
    ranges = source.spec.config.raw.get("layer_replication")
    if not ranges:
        return []
    found = {int(match["number"]) for match in map(_LAYER.match, base.tensors) if match}
    layers = layer_map(source)
    whole = isinstance(ranges, list) and all(map(_is_range, ranges))
    if layers and whole and set(layers) <= found:
        return []
    return [
        AdapterError(
            "layer_replication names layers that the base does not have",
            where=str(source.spec.directory),
            expected=f"pairs (first, end) of layers 0 to {max(found, default=0)}",
            found=str(ranges)[:80],
            hint="this adapter was trained on another base; give that one with --base",
        )
    ]


def _is_range(item: Any) -> bool:
    known = isinstance(item, list) and all(type(bound) is int for bound in item)
    return known and len(item) == 2 and 0 <= item[0] <= item[1] <= _MAX_LAYERS


def replicate_layers(source: AdapterSource, base: BaseIndex) -> BaseIndex:
    """Returns the base as the adapter sees it: layers again, left out, or in another order."""
    layers = layer_map(source)
    if not layers:
        return base
    tensors: dict[str, TensorRef] = {}
    for name, ref in base.tensors.items():
        match = _LAYER.match(name)
        if match is None:
            tensors[name] = ref
            continue
        for number, own in enumerate(layers):
            if own == int(match["number"]):
                new = f"{match['before']}{number}.{name[match.end() :]}"
                tensors[new] = replace(ref, name=new)
    return replace(base, config=replicate_config(base.config, layers), tensors=tensors)


def keep_sources(
    planned: dict[str, PlannedTensor], layers: BaseIndex, base: BaseIndex
) -> dict[str, PlannedTensor]:
    """Names what tensors start from as the base itself does."""
    if layers is base:
        return planned
    places = {(ref.file, ref.offset): name for name, ref in base.tensors.items()}
    found = {}
    for name, tensor in planned.items():
        ref = layers.tensors.get(tensor.source)
        if tensor.source_adapter is None and ref is not None:
            tensor = replace(tensor, source=places[ref.file, ref.offset])  # noqa: PLW2901
        found[name] = tensor
    return found


def replicate_config(config: Mapping[str, Any], layers: tuple[int, ...]) -> dict[str, Any]:
    """Returns a configuration with as many layers; lists with an item for each layer follow."""
    changed = dict(config)
    count = next((config[key] for key in _COUNTS if type(config.get(key)) is int), None)
    for key, value in config.items():
        if key in _COUNTS:
            changed[key] = len(layers)
        elif isinstance(value, list) and len(value) == count and count > 1:
            changed[key] = [value[number] for number in layers if number < count]
    return changed
