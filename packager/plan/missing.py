"""What a configuration names and the weights file lacks: PEFT would load it as if untrained.

PEFT makes a layer of every module that `adapter_config.json` selects, and loads into it what the
file holds. Of one that is missing it warns, and the layer does nothing; without a saved module or
trained rows it does not load at all. So nothing is merged until every one is there.

Source: PEFT 0.21, tuners/tuners_utils.py (inject_adapter, check_target_module_exists),
utils/other.py (_set_trainable, set_additional_trainable_modules), utils/save_and_load.py
(set_peft_model_state_dict).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from packager.adapter.scope import is_saved, is_shielded, trains_rows
from packager.base import BaseIndex
from packager.errors import AdapterError, LorapackError
from packager.plan.change import HEAD_NAME
from packager.plan.source import AdapterSource
from packager.plan.trained import TrainedModel, read_model
from packager.quantisation.layer import is_head, linear_module

_SHOWN = 3
_NUMBER = re.compile(r"\d+")
_MATRIX_DIMENSIONS = (2, 3)
# Source: transformers 5.x, models/*/modeling_*.py: stored once, no part of a module's state now.
_BUFFERS = frozenset({"inv_freq", "masked_bias", "position_ids"})


def find_missing(source: AdapterSource, base: BaseIndex) -> list[LorapackError]:
    """Returns why an adapter is not whole, one error for each field that names what is missing.

    Args:
        source: The adapter, whose tensors are known to have a place in the base.
        base: The base, with the layers that the adapter was trained on.
    """
    if base.naming.unmapped is not None or source.spec.leftover:
        return []  # whose tensors those are is not known
    model = read_model(source, base)
    found = {
        "target_modules": _missing_targets(source, base, model),
        "target_parameters": _missing_parameters(source, base, model),
        "modules_to_save": _missing_saved(source, base, model),
        "trainable_token_indices": _missing_rows(source, base, model),
    }
    return [_missing(source, field, names) for field, names in found.items() if names]


def _missing_targets(source: AdapterSource, base: BaseIndex, model: TrainedModel) -> list[str]:
    """Returns the matrices that PEFT would put an adapter on, and that have no tensors."""
    own = _adapted(source, model)
    if not own and source.spec.config.peft_type != "LORA":
        return []
    there = {place for name in own for place in _places(base, f"{name}.weight")}
    wanted = [name for name in model.modules if "weight" in model.modules[name]]
    wanted += _numbered_like(own, base)
    return [
        name
        for name in dict.fromkeys(wanted)
        if _is_target(source, base, name)
        and model.has(name)
        and not there.issuperset(_places(base, f"{name}.weight"))
    ]


def _adapted(source: AdapterSource, model: TrainedModel) -> list[str]:
    """Returns the modules that the weights file has tensors of.

    Other tuners than LoRA name their tensors as they like, behind the module's name. Where they
    keep all that they trained in what the modules share, no module has any.
    """
    if source.spec.config.peft_type == "LORA":
        return list(source.spec.modules)
    saved = {ref.name for refs in source.spec.saved.values() for ref in refs}
    own = (ref.name for ref in source.spec.tensors if ref.name not in saved)
    names = [name.removeprefix("base_model.model.") for name in own]
    beginnings = {name[:end] for name in names for end, char in enumerate(name) if char == "."}
    return [name for name in model.modules if name in beginnings]


def _numbered_like(own: Iterable[str], base: BaseIndex) -> list[str]:
    """Returns stored matrices that are named as adapted ones up to their numbers.

    Experts are adapted one by one, though the model that is loaded holds them in one parameter.
    """
    unnamed = {name for name in own if name not in base.naming.modules}
    forms = {_NUMBER.sub("#", name) for name in unnamed}
    stored = (name.removesuffix(".weight") for name in base.tensors if name.endswith(".weight"))
    return [name for name in stored if _NUMBER.sub("#", name) in forms]


def _is_target(source: AdapterSource, base: BaseIndex, name: str) -> bool:
    config = source.spec.config
    parts = base.naming.find(f"{name}.weight")
    shape = parts[0].ref.shape if parts else ()
    if not config.selects(name) or is_shielded(config, name):
        return False
    if name == HEAD_NAME.removesuffix(".weight") and not parts:
        return True
    if config.takes_all_linear:
        linear = linear_module(f"{name}.weight", shape, parts[0].ref.dtype) if parts else None
        return linear is not None and not is_head(name)
    return len(shape) == _MATRIX_DIMENSIONS[0]


def _missing_parameters(source: AdapterSource, base: BaseIndex, model: TrainedModel) -> list[str]:
    """Returns the parameters that PEFT would wrap, of modules without any pair."""
    config = source.spec.config
    own = {pair.module for pair in source.spec.parameters} | set(source.spec.modules)
    there = {
        place
        for name in own
        for leaf in base.naming.below(name)
        for place in _places(base, f"{name}.{leaf}")
    }
    return [
        f"{name}.{leaf}"
        for name, leaves in model.modules.items()
        for leaf in sorted(leaves)
        if config.selects_parameter(name, leaf)
        and model.has(name)
        and not there.issuperset(_places(base, f"{name}.{leaf}"))
        and _dimensions(base, f"{name}.{leaf}") in _MATRIX_DIMENSIONS
    ]


def _dimensions(base: BaseIndex, parameter: str) -> int:
    parts = base.naming.find(parameter)
    stacked = bool(parts) and parts[0].operation == "experts"
    return len(parts[0].ref.shape) + stacked if parts else 0


def _missing_saved(source: AdapterSource, base: BaseIndex, model: TrainedModel) -> list[str]:
    """Returns parameters of modules that PEFT would have saved whole."""
    config = source.spec.config
    there = {place for name in source.spec.saved for place in _places(base, name)}
    follows = bool(config.raw.get("ensure_weight_tying")) and base.ties_embeddings
    return [
        f"{name}.{leaf}"
        for name, leaves in model.modules.items()
        if is_saved(config, name) and model.has(name) and not (follows and _is_tied(name, base))
        for leaf in sorted(leaves - _BUFFERS)
        if (leaf != "bias" or "weight" in leaves)
        and not there.issuperset(_places(base, f"{name}.{leaf}"))
    ]


def _missing_rows(source: AdapterSource, base: BaseIndex, model: TrainedModel) -> list[str]:
    """Returns modules of which PEFT would have saved trained rows; a tied head follows."""
    config = source.spec.config
    there = {place for name in source.spec.token_rows for place in _places(base, f"{name}.weight")}
    return [
        name
        for name in model.modules
        if trains_rows(config, name, is_embedding=_is_embedding(name, base))
        and model.has(name)
        and not _is_tied(name, base)
        and not there.issuperset(_places(base, f"{name}.weight"))
    ]


def _is_embedding(name: str, base: BaseIndex) -> bool:
    ref = base.naming.find_tensor(f"{name}.weight")
    return ref is not None and base.embedding is not None and ref.name == base.embedding.name


def _is_tied(name: str, base: BaseIndex) -> bool:
    """Tells whether a module is a head that shares the embedding's weight."""
    head = HEAD_NAME if base.head is None else base.head.name
    return base.ties_embeddings and base.naming.spell(f"{name}.weight") == head


def _places(base: BaseIndex, parameter: str) -> Iterator[tuple[str, int]]:
    """Yields where a parameter is stored, by which two names of it are known as the same."""
    parts = base.naming.find(parameter)
    for part in parts:
        yield part.ref.name, part.part
    if not parts:
        yield base.naming.spell(parameter), 0


def _missing(source: AdapterSource, field: str, names: list[str]) -> AdapterError:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return AdapterError(
        f"the adapter is not whole: {field} names {len(names)} parts of the base that have no "
        "tensors in its file",
        where=str(source.spec.directory),
        expected="tensors for " + shown + (f" and {more} more" if more > 0 else ""),
        found=f"{len(source.spec.tensors)} tensors, none for these",
        hint="save or copy the adapter again; if these were not trained, take them out of "
        f"{field} in adapter_config.json, or set exclude_modules",
    )
