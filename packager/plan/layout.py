"""Which tensor goes into which weights file, and what stands beside the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from packager.base import BaseIndex
from packager.filekind import CARD_NAME, is_chat_template, is_tokenizer_file
from packager.obligation import notice_text
from packager.plan.change import HEAD_NAME
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.value import PlannedFile, PlannedShard, PlannedTensor

WRITTEN_MERGED = ("config.json", CARD_NAME)
NOTICE_NAME = "NOTICE"
INDEX_NAME = "model.safetensors.index.json"
_MARKS_OF_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def plan_shards(
    tensors: Iterable[PlannedTensor], base: BaseIndex, max_bytes: int
) -> tuple[PlannedShard, ...]:
    """Distributes tensors over files of at most `max_bytes`.

    The base's own shard boundaries are kept and only split further, so that reading and writing
    are sequential and a file system that shares blocks can share whole runs of them. A tensor
    larger than `max_bytes` gets a file of its own. The parts of a weight in four bits, which are
    made together, stay together.

    Source of the names: huggingface_hub 1.x, serialization/_base.py.
    """
    groups: list[list[PlannedTensor]] = []
    starts: list[int] = []
    filled, current = 0, None
    data_starts = {file.path: file.data_start for file in base.files}
    for unit in _units(tensors):
        file = _file_of(unit[0], base) or current
        nbytes = sum(tensor.nbytes for tensor in unit)
        if not groups or filled + nbytes > max_bytes or file != current:
            groups.append([])
            starts.append(0 if file is None else data_starts[file])
            filled = 0
        current = file
        groups[-1] += unit
        filled += nbytes
    count = len(groups)
    return tuple(
        PlannedShard(_shard_name(number, count), tuple(group), start)
        for number, (group, start) in enumerate(zip(groups, starts, strict=True), 1)
    )


def _units(tensors: Iterable[PlannedTensor]) -> Iterator[list[PlannedTensor]]:
    """Yields what is not to be parted: a tensor, or all parts of one that is quantised."""
    unit: list[PlannedTensor] = []
    for tensor in tensors:
        follows = tensor.four_bit is not None and tensor.four_bit.part != "weight"
        if unit and not follows:
            yield unit
            unit = []
        unit.append(tensor)
    if unit:
        yield unit


def _file_of(tensor: PlannedTensor, base: BaseIndex) -> Path | None:
    """Returns the base's file that a tensor comes from; of one that the base has not, None."""
    if tensor.name in base.tensors:
        return base.tensors[tensor.name].file
    is_head = tensor.name == HEAD_NAME or tensor.source_adapter is not None
    return None if is_head else base.tensors[tensor.source].file


def plan_merged_files(
    source: AdapterSource, base: BaseSource, shards: tuple[PlannedShard, ...]
) -> tuple[PlannedFile, ...]:
    """Plans what stands beside merged weights: configuration, tokenizer, licence, card."""
    files = list(tokenizer_files(source, base))
    if "generation_config.json" in base.files:
        files.append(PlannedFile("generation_config.json", "base", None))
    files += _licence_files(base)
    if len(shards) > 1:
        files.append(PlannedFile(INDEX_NAME, "written", None))
    files += [PlannedFile(name, "written", None) for name in WRITTEN_MERGED]
    return tuple(files)


def plan_adapter_files(source: AdapterSource, base: BaseSource) -> tuple[PlannedFile, ...]:
    """Plans the folder of an adapter kept separate."""
    files = [PlannedFile("adapter_model.safetensors", "adapter", source.spec.weights_bytes)]
    files += tokenizer_files(source, base)
    files += _licence_files(base)
    written = ["adapter_config.json", "base.lock.json", "README.md"]
    if needs_folding(source):
        written += ["normalised/adapter_model.safetensors", "normalised/adapter_config.json"]
    return (*files, *(PlannedFile(name, "written", None) for name in written))


def plan_gguf_files(base: BaseSource, quants: tuple[str, ...]) -> tuple[PlannedFile, ...]:
    """Plans what stands beside GGUF models: Modelfiles, requests to create, licence, card."""
    written = ["Modelfile", "create.json", CARD_NAME]
    written += [name for quant in quants for name in (modelfile_name(quant), create_name(quant))]
    return (*_licence_files(base), *(PlannedFile(name, "written", None) for name in written))


def modelfile_name(quant: str) -> str:
    """Returns the name of the Modelfile of one quantisation."""
    return f"Modelfile.{quant}"


def create_name(quant: str) -> str:
    """Returns the name of the request that creates the model of one quantisation."""
    return f"create.{quant}.json"


def plan_lora_files(base: BaseSource) -> tuple[PlannedFile, ...]:
    """Plans what stands beside a GGUF LoRA: licence and card."""
    return (*_licence_files(base), PlannedFile(CARD_NAME, "written", None))


def _licence_files(base: BaseSource) -> list[PlannedFile]:
    """What the base's licence wants to travel along; its notice is written if none was shipped."""
    files = [PlannedFile(name, "base", size) for name, size in sorted(base.documents.items())]
    has_notice = any(name.lower().startswith("notice") for name in base.documents)
    if notice_text(base.license) is not None and not has_notice:
        files.append(PlannedFile(NOTICE_NAME, "written", None))
    return files


def needs_folding(source: AdapterSource) -> bool:
    """Tells whether some loaders would read another scale than PEFT does.

    Only plain LoRA has a normalised form; with anything else beside the pairs, folding the scale
    into them would make another adapter.
    """
    config, features = source.spec.config, source.spec.features
    plain = all(item.support["gguf-adapter"].status != "not possible" for item in features)
    return plain and (config.use_rslora or bool(config.rank_pattern) or bool(config.alpha_pattern))


def tokenizer_files(source: AdapterSource, base: BaseSource) -> tuple[PlannedFile, ...]:
    """The adapter's own tokenizer if it has one, whole; else the base's.

    The two are not mixed file by file: a vocabulary from one and a configuration from the other
    belong to no tokenizer. Processor files and a chat template that the adapter lacks still come
    from the base.
    """
    own = {name: size for name, size in source.files.items() if is_tokenizer_file(name)}
    theirs = {name: size for name, size in base.files.items() if is_tokenizer_file(name)}
    if any(mark in own for mark in _MARKS_OF_TOKENIZER):
        theirs = {
            name: size
            for name, size in theirs.items()
            if _is_processor(name) or is_chat_template(name)
        }
    kept = {
        name: size
        for name, size in theirs.items()
        if not (is_chat_template(name) and source.has_chat_template)
    }
    files = [PlannedFile(name, "adapter", size) for name, size in own.items()]
    files += [PlannedFile(name, "base", size) for name, size in kept.items() if name not in own]
    return tuple(sorted(files, key=lambda file: file.path))


def _is_processor(name: str) -> bool:
    return name.endswith("processor_config.json")


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
