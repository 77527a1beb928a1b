"""An adapter as a value: configuration, modules, features; every tensor accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from packager.adapter.config import AdapterConfig, parse_adapter_config
from packager.adapter.feature import (
    Feature,
    base_copy_feature,
    find_features,
    tensor_feature,
)
from packager.adapter.parameter import ParameterPair, find_parameter_pairs
from packager.dtype import MERGEABLE
from packager.errors import AdapterError
from packager.filekind import list_model_files
from packager.tensorfile import TensorRef, check_not_pickle, read_header
from packager.untrusted import check_folder_name, read_json_object, resolve_inside

_FACTOR_DTYPES = (*MERGEABLE, "F64")
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# Source: PEFT 0.21, src/peft/utils/save_and_load.py: the wrapper's prefix, the module's dotted
# name, then the parameter without the adapter's name.
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
# Source: the same file, get_peft_model_state_dict, save_embedding_layers: where LoRA is on the
# head, PEFT saves the frozen weight below it too.
_COPY = re.compile(r"base_model\.model\.(?P<module>.+)\.base_layer\.weight")
# Source: PEFT 0.21, src/peft/tuners/lora/model.py, _get_adapter_state_dict: without `.weight`.
_MAGNITUDE = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_magnitude_vector")
_TENSOR_FEATURES = (
    ("lora_embedding", "LoRA on embeddings"),
    ("lora_magnitude_vector", "DoRA magnitudes"),
    (".lora_B.bias", "biases of lora_B"),
    (".base_layer.lora_", "LoRA on fused parameters"),
    ("token_adapter", "trained token rows"),
)
_RESHAPING = ("use_bdlora", "use_qalora")
"""Fields that give the pairs other shapes than (rank, in) and (out, rank)."""


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear layer.

    Attributes:
        module: Dotted name in the model, such as `model.layers.0.self_attn.q_proj`.
        lora_a: Shape (rank, in_features).
        lora_b: Shape (out_features, rank).
        rank: Rows of `lora_a`.
        alpha: From the configuration.
        scale: Factor of B·A.
        base_copy: The base's own weight, where it was saved along, shape
            (out_features, in_features); it has to equal the base's.
        magnitude: Of DoRA, shape (out_features,), or None.
    """

    module: str
    lora_a: TensorRef
    lora_b: TensorRef
    rank: int
    alpha: float
    scale: float
    base_copy: TensorRef | None = None
    magnitude: TensorRef | None = None


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter directory, read from its configuration and header only.

    Attributes:
        directory: Where it lies.
        config: Parsed `adapter_config.json`.
        modules: Adapted layers, by name.
        tensors: Every tensor of the weights file.
        leftover: Tensors that belong to no plain LoRA module; a feature or an error.
        features: Everything that the adapter uses, named.
        weights_bytes: Size of the weights file.
        made_at: When the weights file was last written, UTC.
        has_tokenizer: Whether tokenizer files lie beside the weights.
        parameters: Pairs around parameters, those of a module from the outermost inwards.
    """

    directory: Path
    config: AdapterConfig
    modules: Mapping[str, LoraModule]
    tensors: tuple[TensorRef, ...]
    leftover: tuple[str, ...]
    features: tuple[Feature, ...]
    weights_bytes: int
    made_at: datetime
    has_tokenizer: bool
    parameters: tuple[ParameterPair, ...] = ()

    @property
    def parameter_count(self) -> int:
        """Trained parameters: the elements of every tensor but copies of the base's."""
        copies = [item.base_copy for item in self.modules.values() if item.base_copy is not None]
        return sum(math.prod(tensor.shape) for tensor in self.tensors if tensor not in copies)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Element types in use, sorted."""
        return tuple(sorted({tensor.dtype for tensor in self.tensors}))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks in use, sorted."""
        return tuple(sorted({module.rank for module in self.modules.values()}))


def read_adapter(directory: Path) -> AdapterSpec:
    """Reads an adapter directory; no weights are read.

    Raises:
        AdapterError: No adapter, damaged, or its tensors contradict its configuration.
        UnsafeInputError: The weights are a pickle.
    """
    if not directory.is_dir():
        raise AdapterError(
            "there is no such adapter folder",
            where=str(directory),
            hint="give the folder that holds adapter_config.json",
        )
    check_folder_name(directory)
    config_path = resolve_inside(directory, CONFIG_NAME, where=str(directory))
    if not config_path.exists():
        raise AdapterError(
            "the folder holds no adapter",
            where=str(directory),
            expected=CONFIG_NAME,
            found=_what_it_holds(directory),
            hint="give the folder that PEFT's save_pretrained wrote",
        )
    config = parse_adapter_config(read_json_object(config_path), where=str(config_path))
    weights_path = _find_weights(directory)
    header = read_header(weights_path)
    parameters = find_parameter_pairs(header.tensors, config, str(weights_path))
    modules, leftover = _sort_tensors(header.tensors, parameters, config, str(weights_path))
    written_at = min(weights_path.stat().st_mtime, _LATEST)
    return AdapterSpec(
        directory=directory,
        config=config,
        modules=modules,
        tensors=header.tensors,
        leftover=leftover,
        features=(*find_features(config), *_features_of_tensors(leftover, modules, config)),
        weights_bytes=header.size,
        made_at=datetime.fromtimestamp(written_at, UTC),
        has_tokenizer=(directory / "tokenizer_config.json").exists(),
        parameters=parameters,
    )


def _what_it_holds(directory: Path) -> str:
    names = list_model_files(directory)[:5]
    return ", ".join(names) if names else "no files"


def _find_weights(directory: Path) -> Path:
    path = resolve_inside(directory, WEIGHTS_NAME, where=str(directory))
    if path.exists():
        return path
    for other in sorted(directory.glob("adapter_model.*")):
        check_not_pickle(other)
    raise AdapterError(
        "the adapter has no weights",
        where=str(directory),
        expected=WEIGHTS_NAME,
        found=_what_it_holds(directory),
        hint="save the adapter again with PEFT's save_pretrained",
    )


def _sort_tensors(
    tensors: tuple[TensorRef, ...],
    parameters: tuple[ParameterPair, ...],
    config: AdapterConfig,
    where: str,
) -> tuple[dict[str, LoraModule], tuple[str, ...]]:
    """Tensors as plain LoRA modules, and the names of those that are something else."""
    if not tensors:
        raise AdapterError(
            "the adapter holds no tensors",
            where=where,
            hint="save the adapter again with PEFT's save_pretrained",
        )
    used = {ref.name for pair in parameters for ref in pair.tensors}
    pairs: dict[str, dict[str, TensorRef]] = {}
    copies: dict[str, TensorRef] = {}
    magnitudes: dict[str, TensorRef] = {}
    for tensor in tensors if config.peft_type == "LORA" else ():
        if tensor.name in used:
            continue
        if (copy := _COPY.fullmatch(tensor.name)) is not None:
            copies[copy["module"]] = tensor
        elif (key := _MAGNITUDE.fullmatch(tensor.name)) is not None:
            magnitudes[key["module"]] = tensor
        elif (key := _KEY.fullmatch(tensor.name)) and not key["module"].endswith(".base_layer"):
            pairs.setdefault(key["module"], {})[key["part"]] = tensor
    modules = {
        name: replace(
            _module(name, pairs[name], copies.get(name), config, where),
            magnitude=magnitudes.get(name),
        )
        for name in sorted(pairs)
        if not _has_other_shapes(pairs[name], config)
    }
    used |= {
        ref.name
        for module in modules.values()
        for ref in (module.lora_a, module.lora_b, module.base_copy, module.magnitude)
        if ref is not None
    }
    return modules, tuple(tensor.name for tensor in tensors if tensor.name not in used)


def _has_other_shapes(pair: dict[str, TensorRef], config: AdapterConfig) -> bool:
    """Tells whether a pair is not of matrices of one linear layer, by design."""
    reshaped = any(config.raw.get(field) for field in _RESHAPING)
    return reshaped or any(len(tensor.shape) > 2 for tensor in pair.values())


def _module(
    name: str,
    pair: dict[str, TensorRef],
    base_copy: TensorRef | None,
    config: AdapterConfig,
    where: str,
) -> LoraModule:
    missing = [f"lora_{part}" for part in "AB" if part not in pair]
    if missing:
        raise AdapterError(
            f"half of the adapter of module {name!r} is missing",
            where=where,
            expected="lora_A and lora_B",
            found=f"no {missing[0]}",
            hint="the file is incomplete: save or copy the adapter again",
        )
    lora_a, lora_b, rank = pair["A"], pair["B"], config.rank_of(name)
    shapes = (lora_a.shape, lora_b.shape)
    fits = len(lora_a.shape) == len(lora_b.shape) == 2
    if not fits or lora_a.shape[0] != rank or lora_b.shape[1] != rank:
        raise AdapterError(
            f"the tensors of module {name!r} contradict adapter_config.json",
            where=where,
            expected=f"rank {rank}: lora_A ({rank}, in), lora_B (out, {rank})",
            found=f"lora_A {shapes[0]}, lora_B {shapes[1]}",
            hint="config and weights belong to different trainings, or the rank was edited",
        )
    for tensor in (lora_a, lora_b):
        if tensor.dtype not in _FACTOR_DTYPES:
            raise AdapterError(
                f"the adapter tensor {tensor.name!r} is not of a type that LoRA is trained in",
                where=where,
                expected=", ".join(_FACTOR_DTYPES),
                found=tensor.dtype,
                hint="save the adapter again with PEFT's save_pretrained",
            )
    alpha, scale = config.alpha_of(name), config.scale_of(name)
    return LoraModule(name, lora_a, lora_b, rank, alpha, scale, base_copy)


def _features_of_tensors(
    leftover: tuple[str, ...], modules: Mapping[str, LoraModule], config: AdapterConfig
) -> list[Feature]:
    """Features that the tensors show and the configuration need not."""
    if config.peft_type != "LORA":
        return []
    found = []
    for mark, name in _TENSOR_FEATURES:
        count = sum(mark in tensor for tensor in leftover)
        if count:
            found.append(tensor_feature(name, f"{count} tensors"))
    reshaped = any(config.raw.get(field) for field in _RESHAPING)
    count = sum(_KEY.fullmatch(name) is not None for name in leftover)
    if count and not found and not reshaped:
        found.append(tensor_feature("LoRA on convolutions", f"{count} tensors"))
    copies = [name for name, module in modules.items() if module.base_copy is not None]
    return [*found, *([base_copy_feature(", ".join(copies))] if copies else [])]
