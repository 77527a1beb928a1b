"""The tensors of a LoRA adapter, each put in its place; what has none is left over."""

from __future__ import annotations

from dataclasses import dataclass, field

from packager.adapter.config import AdapterConfig
from packager.adapter.module import FACTOR_DTYPES, ModuleParts, build_module
from packager.adapter.parameter import ParameterPair
from packager.adapter.scope import is_saved, token_indices
from packager.adapter.tensorname import Part, TensorName, parse_tensor_name
from packager.adapter.value import LoraModule, TokenRows
from packager.errors import AdapterError
from packager.tensorfile import TensorRef

# Source: PEFT 0.21, utils/constants.py, EMBEDDING_LAYER_NAMES, and what get_input_embeddings and
# get_output_embeddings return in transformers 5.x: saved with an adapter where the vocabulary was
# resized or the layer is adapted, without a word in the configuration.
EMBEDDING_MODULES = frozenset(
    {
        "embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "shared",
        "tok_embeddings", "decoder", "output",
    }
)  # fmt: skip
_RESHAPING = ("use_qalora",)
"""Fields that give the pairs other shapes than (rank, in) and (out, rank)."""
_OF_MODULES: tuple[Part, ...] = (
    "lora_a", "lora_b", "embedding_a", "embedding_b", "magnitude", "lora_bias", "diagonal", "idle",
)  # fmt: skip


@dataclass
class SortedTensors:
    """What `sort_tensors` fills; the fields are those of `AdapterSpec`."""

    modules: dict[str, LoraModule] = field(default_factory=dict)
    saved: dict[str, tuple[TensorRef, ...]] = field(default_factory=dict)
    frozen: dict[str, tuple[TensorRef, ...]] = field(default_factory=dict)
    token_rows: dict[str, TokenRows] = field(default_factory=dict)
    leftover: tuple[str, ...] = ()


def sort_tensors(
    tensors: tuple[TensorRef, ...],
    parameters: tuple[ParameterPair, ...],
    config: AdapterConfig,
    where: str,
) -> SortedTensors:
    """Sorts the tensors of a LoRA adapter.

    Args:
        tensors: All of them.
        parameters: Pairs among them that are around parameters.
        config: Of the adapter.
        where: Path of the weights, for errors.

    Raises:
        AdapterError: There are none, half of a pair is missing, or shapes and types are not those
            that the configuration tells.
    """
    if not tensors:
        raise AdapterError(
            "the adapter holds no tensors",
            where=where,
            hint="save the adapter again with PEFT's save_pretrained",
        )
    found = SortedTensors()
    parts: dict[str, ModuleParts] = {}
    again: list[tuple[str, TensorRef]] = []  # after what it repeats
    wrapping = {ref.name for pair in parameters for ref in pair.tensors}
    for ref in tensors:
        name = parse_tensor_name(ref.name)
        if name is None or ref.name in wrapping or name.module.endswith(".base_layer"):
            continue
        if name.part in _OF_MODULES:
            parts.setdefault(name.module, ModuleParts()).add(name.part, ref)
        elif name.part == "tokens":
            found.token_rows[name.module] = _token_rows(name.module, ref, config, where)
        elif name.part == "again":
            again.append((name.parameter, ref))
        else:
            _sort_parameter(name, ref, config, found)
    for parameter, ref in again:
        _unfreeze(found, parameter)
        found.saved[parameter] = (*found.saved.get(parameter, ()), ref)
    for module, own in sorted(parts.items()):
        if own.has_pair and not _has_other_shapes(own, config):
            found.modules[module] = build_module(module, own, config, where)
    _drop_unwrapped(found)
    used = _names(found) | wrapping
    found.leftover = tuple(ref.name for ref in tensors if ref.name not in used)
    return found


def sort_saved(tensors: tuple[TensorRef, ...], config: AdapterConfig) -> SortedTensors:
    """Finds what another tuner than LoRA saved whole.

    Its own tensors have no place here: whose they are is known by the modules of the base.
    """
    found = SortedTensors()
    for ref in tensors:
        name = parse_tensor_name(ref.name)
        if name is None:
            continue
        whole = name.part in ("saved", "again") and is_saved(config, name.module)
        if whole or (name.part in ("saved", "frozen") and _trains_bias(name, config)):
            found.saved[name.parameter] = (*found.saved.get(name.parameter, ()), ref)
    return found


def _drop_unwrapped(found: SortedTensors) -> None:
    """Leaves over what lies below a layer that the adapter does not have: PEFT passes it over."""
    for parameter, refs in list(found.frozen.items()):
        module = parameter.rpartition(".")[0]
        wrapped = module in found.modules or module in found.token_rows
        kept = tuple(
            ref
            for ref in refs
            if wrapped or parameter in found.saved or ref.name.endswith(f".model.{parameter}")
        )
        if kept:
            found.frozen[parameter] = kept
        else:
            del found.frozen[parameter]


def _names(found: SortedTensors) -> set[str]:
    refs = [ref for module in found.modules.values() for ref in module.tensors]
    for copies in (*found.saved.values(), *found.frozen.values()):
        refs += copies
    refs += [item.rows for item in found.token_rows.values()]
    return {ref.name for ref in refs}


def _sort_parameter(
    name: TensorName, ref: TensorRef, config: AdapterConfig, found: SortedTensors
) -> None:
    """A parameter of the model: trained if the configuration says so, else a copy of the base's."""
    if _trains_bias(name, config) or (name.part == "saved" and is_saved(config, name.module)):
        found.saved[name.parameter] = (*found.saved.get(name.parameter, ()), ref)
    elif name.part == "frozen" or name.module.rpartition(".")[2] in EMBEDDING_MODULES:
        found.frozen[name.parameter] = (*found.frozen.get(name.parameter, ()), ref)


def _trains_bias(name: TensorName, config: AdapterConfig) -> bool:
    """Tells whether a tensor is one of the base's own biases that PEFT trained in place."""
    return name.leaf == "bias" and config.raw.get("bias") not in (None, "none")


def _unfreeze(found: SortedTensors, parameter: str) -> None:
    """Knows a tied head by its wrapper, since the configuration names only the embedding."""
    refs = found.frozen.pop(parameter, ())
    own = tuple(ref for ref in refs if ref.name.endswith(f".model.{parameter}"))
    kept = tuple(ref for ref in refs if ref not in own)
    if own:
        found.saved[parameter] = (*own, *found.saved.get(parameter, ()))
    if kept:
        found.frozen[parameter] = kept


def _has_other_shapes(parts: ModuleParts, config: AdapterConfig) -> bool:
    """Tells whether a pair is not of matrices of one layer, by design."""
    return any(config.raw.get(name) for name in _RESHAPING) or parts.is_grouped


def _token_rows(module: str, ref: TensorRef, config: AdapterConfig, where: str) -> TokenRows:
    indices = token_indices(config, module)
    fits = len(ref.shape) == 2 and ref.shape[0] == len(indices)
    if fits and ref.dtype in FACTOR_DTYPES:
        return TokenRows(module, ref, indices)
    raise AdapterError(
        f"the trained token rows of {module!r} contradict adapter_config.json",
        where=where,
        expected=f"{len(indices)} rows, from trainable_token_indices",
        found=f"shape {ref.shape} in {ref.dtype}",
        hint="config and weights belong to different trainings: save the adapter again",
    )
