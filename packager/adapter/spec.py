"""An adapter as a value: configuration, modules, features; every tensor accounted for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from packager.adapter.config import AdapterConfig, parse_adapter_config
from packager.adapter.feature import find_features, tensor_feature
from packager.adapter.featurerule import shorten
from packager.adapter.parameter import find_parameter_pairs
from packager.adapter.sorting import SortedTensors, sort_saved, sort_tensors
from packager.adapter.support import Feature
from packager.adapter.tensorname import parse_tensor_name
from packager.adapter.tuner import KNOWN
from packager.adapter.value import AdapterSpec
from packager.errors import AdapterError
from packager.filekind import list_model_files
from packager.tensorfile import check_not_pickle, read_header
from packager.untrusted import check_folder_name, read_json_object, resolve_inside

_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_RESHAPING = ("use_qalora",)


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
    if config.peft_type in KNOWN:
        found = sort_tensors(header.tensors, parameters, config, str(weights_path))
    else:
        found = sort_saved(header.tensors, config)
    written_at = min(weights_path.stat().st_mtime, _LATEST)
    return AdapterSpec(
        directory=directory,
        config=config,
        modules=found.modules,
        tensors=header.tensors,
        leftover=found.leftover,
        features=(*find_features(config), *_features_of_tensors(found, config)),
        weights_bytes=header.size,
        made_at=datetime.fromtimestamp(written_at, UTC),
        has_tokenizer=(directory / "tokenizer_config.json").exists(),
        parameters=parameters,
        saved=found.saved,
        frozen=found.frozen,
        token_rows=found.token_rows,
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


def _features_of_tensors(found: SortedTensors, config: AdapterConfig) -> list[Feature]:
    """Features that the tensors show and the configuration need not."""
    features = []
    embeddings = [name for name, module in found.modules.items() if module.embedding]
    if embeddings:
        features.append(tensor_feature("LoRA on embeddings", ", ".join(embeddings)))
    convolutions = [name for name, module in found.modules.items() if module.kernel]
    if convolutions:
        features.append(tensor_feature("LoRA on convolutions", shorten(convolutions)))
    if found.frozen:
        modules = [name.rpartition(".")[0] for name in found.frozen]
        features.append(tensor_feature("copy of base weights", ", ".join(modules)))
    if config.peft_type != "LORA" or any(config.raw.get(field) for field in _RESHAPING):
        return features
    names = [parse_tensor_name(name) for name in found.leftover]
    pairs = [name for name in names if name is not None and name.part in ("lora_a", "lora_b")]
    if pairs:
        fused = any(name.module.endswith(".base_layer") for name in pairs)
        kind = "LoRA on fused parameters" if fused else "LoRA on convolutions in groups"
        features.append(tensor_feature(kind, f"{len(pairs)} tensors"))
    return features
