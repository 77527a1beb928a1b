"""An adapter as a value: configuration, modules, features; every tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from packager.adapter.config import AdapterConfig, parse_adapter_config
from packager.adapter.feature import Feature, find_features, tensor_feature
from packager.errors import AdapterError
from packager.tensorfile import TensorRef, check_not_pickle, read_header
from packager.untrusted import read_json_object

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# Source: PEFT 0.21, src/peft/utils/save_and_load.py: the wrapper's prefix, the module's dotted
# name, then the parameter without the adapter's name.
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_TENSOR_FEATURES = (
    ("lora_embedding", "LoRA on embeddings"),
    ("lora_magnitude_vector", "DoRA magnitudes"),
    (".lora_B.bias", "biases of lora_B"),
    ("base_layer", "LoRA on fused parameters"),
    ("token_adapter", "trained token rows"),
)


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
    """

    module: str
    lora_a: TensorRef
    lora_b: TensorRef
    rank: int
    alpha: float
    scale: float


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

    @property
    def parameter_count(self) -> int:
        """Trained parameters: the elements of every tensor."""
        total = 0
        for tensor in self.tensors:
            count = 1
            for size in tensor.shape:
                count *= size
            total += count
        return total

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
    config_path = directory / CONFIG_NAME
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
    modules, leftover = _sort_tensors(header.tensors, config, str(weights_path))
    status = weights_path.stat()
    return AdapterSpec(
        directory=directory,
        config=config,
        modules=modules,
        tensors=header.tensors,
        leftover=leftover,
        features=(*find_features(config), *_features_of_tensors(leftover, config)),
        weights_bytes=status.st_size,
        made_at=datetime.fromtimestamp(status.st_mtime, UTC),
        has_tokenizer=(directory / "tokenizer_config.json").exists(),
    )


def _what_it_holds(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())[:5]
    return ", ".join(names) if names else "an empty folder"


def _find_weights(directory: Path) -> Path:
    path = directory / WEIGHTS_NAME
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
    tensors: tuple[TensorRef, ...], config: AdapterConfig, where: str
) -> tuple[dict[str, LoraModule], tuple[str, ...]]:
    pairs: dict[str, dict[str, TensorRef]] = {}
    leftover: list[str] = []
    for tensor in tensors:
        key = _KEY.fullmatch(tensor.name)
        if key is None or config.peft_type != "LORA":
            leftover.append(tensor.name)
        else:
            pairs.setdefault(key["module"], {})[key["part"]] = tensor
    modules = {name: _module(name, pairs[name], config, where) for name in sorted(pairs)}
    if not tensors:
        raise AdapterError(
            "the adapter holds no tensors",
            where=where,
            hint="save the adapter again with PEFT's save_pretrained",
        )
    return modules, tuple(leftover)


def _module(name: str, pair: dict[str, TensorRef], config: AdapterConfig, where: str) -> LoraModule:
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
    return LoraModule(name, lora_a, lora_b, rank, config.alpha_of(name), config.scale_of(name))


def _features_of_tensors(leftover: tuple[str, ...], config: AdapterConfig) -> list[Feature]:
    """Features that the tensors show and the configuration need not."""
    if config.peft_type != "LORA":
        return []
    found = []
    for mark, name in _TENSOR_FEATURES:
        count = sum(mark in tensor for tensor in leftover)
        if count:
            found.append(tensor_feature(name, f"{count} tensors"))
    return found
