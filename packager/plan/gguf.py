"""A merged model as GGUF: what each file will hold, byte for byte, before a weight is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from packager.base import BaseIndex
from packager.errors import LorapackError
from packager.filekind import CARD_NAME
from packager.gguf.general import general_keys
from packager.gguf.layout import GgufFile, plan_files
from packager.gguf.mapping import map_model, with_keys
from packager.gguf.value import GgufKey, GgufModel
from packager.plan.config import adapt_config, resized_rows
from packager.plan.layout import plan_gguf_files, plan_merged_files, plan_shards
from packager.plan.option import ReleaseOptions
from packager.plan.replication import layer_map
from packager.plan.rule import plan_tensors, unties_head
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.target import TargetPlan
from packager.plan.value import ConverterPlan, GgufPlan, LongKey, PlannedTensor

MOST_SHOWN = 16
"""Values of an array that a plan shows; of a longer one, number and digest."""


def plan_ollama(
    source: AdapterSource, base: BaseSource, options: ReleaseOptions
) -> tuple[TargetPlan | None, list[LorapackError]]:
    """Plans finished GGUF files with all that Ollama needs.

    Returns:
        The target, or None and why it is not possible.
    """
    assert source.gguf is not None
    merged, _ = plan_tensors(source, base.index, "F32")
    unmapped = list(source.gguf.unmapped)
    model: GgufModel | None = None
    try:
        model = map_source(source, base.index, merged)
    except LorapackError as problem:
        # A tokenizer whose architecture is unknown says just the same.
        unmapped = [problem, *(item for item in unmapped if str(item) != str(problem))]
    problems = [*([] if options.llama_cpp else unmapped), *source.gguf.problems]
    if problems:
        return None, problems
    if unmapped or model is None:
        return _plan_converted(source, base, options, merged, unmapped[0]), []
    files = tuple(
        file
        for quant in options.quants
        for file in plan_files(
            model,
            quant,
            f"{source.name}-{quant}",
            max_bytes=options.max_gguf_bytes,
            imatrix_keys=options.imatrix_keys,
        )
    )
    used = {name for tensor in model.tensors for name in tensor.sources}
    sources = tuple(tensor for name, tensor in merged.items() if name in used)
    gguf = describe_model(model, files, sources)
    return replace(_plan_target(source, base, options, merged), gguf=gguf), []


def _plan_target(
    source: AdapterSource,
    base: BaseSource,
    options: ReleaseOptions,
    merged: dict[str, PlannedTensor],
) -> TargetPlan:
    beside = plan_gguf_files(base, options.quants)
    return TargetPlan(
        target="ollama",
        name=source.name,
        path=f"ollama/{source.name}",
        shards=(),
        files=beside,
        unties_head=unties_head(merged, base.index),
        vocab_rows=resized_rows(merged, base.index),
        layers=layer_map(source),
    )


def _plan_converted(
    source: AdapterSource,
    base: BaseSource,
    options: ReleaseOptions,
    merged: dict[str, PlannedTensor],
    reason: LorapackError,
) -> TargetPlan:
    """Plans what another converter is given; what it will write is not known beforehand."""
    shards = plan_shards(merged.values(), base.index, options.max_shard_bytes)
    files = tuple(
        file for file in plan_merged_files(source, base, shards) if file.path != CARD_NAME
    )
    converter = ConverterPlan(options.quants, options.max_gguf_bytes, shards, files, reason.what)
    return replace(_plan_target(source, base, options, merged), converter=converter)


def describe_model(
    model: GgufModel, files: tuple[GgufFile, ...], merged: tuple[PlannedTensor, ...]
) -> GgufPlan:
    """Returns a model and its files as a plan has them, long arrays abridged."""
    return GgufPlan(
        architecture=model.architecture,
        keys=tuple(key for key in model.keys if not _is_long(key)),
        long_keys=tuple(_abridge(key) for key in model.keys if _is_long(key)),
        tensors=model.tensors,
        dropped=model.dropped,
        files=files,
        merged=merged,
    )


def map_source(
    source: AdapterSource, base: BaseIndex, merged: dict[str, PlannedTensor] | None = None
) -> GgufModel:
    """Returns the whole model with all keys, long arrays included.

    Args:
        source: The adapter, with what its GGUF holds.
        base: The base.
        merged: The merged tensors, or None to plan them.

    Raises:
        LorapackError: This model cannot be written as GGUF.
    """
    if merged is None:
        merged, _ = plan_tensors(source, base, "F32")
    config = adapt_config(
        base.config,
        unties_head=unties_head(merged, base),
        vocab_rows=resized_rows(merged, base),
        layers=layer_map(source),
    )
    model = map_model(config, {name: tensor.shape for name, tensor in merged.items()})
    assert source.gguf is not None
    general = general_keys(source.gguf.facts, model.tensors)
    return with_keys(model, general, source.gguf.keys)


def gguf_notes(target: TargetPlan) -> list[str]:
    """Says which tensors get another type than their quantisation wants, and why."""
    if target.converter is not None:
        return [
            f"{target.path}: {target.converter.reason}: the converter of --llama-cpp is run as a "
            "program of yours, on the merged model"
        ]
    if target.gguf is None:
        return []
    notes = []
    for quant in dict.fromkeys(file.quant for file in target.gguf.files):
        placed = [
            item for file in target.gguf.files if file.quant == quant for item in file.tensors
        ]
        fallen = [item.tensor for item in placed if item.tensor.fell_back]
        if fallen:
            widths = ", ".join(map(str, sorted({tensor.shape[-1] for tensor in fallen})))
            types = ", ".join(sorted({f"{item.fell_back} as {item.type}" for item in fallen}))
            notes.append(
                f"{target.path}: {quant}: {len(fallen)} of {len(placed)} tensors have rows of "
                f"{widths} values, which the type's blocks do not fill: {types}"
            )
    return notes


def _is_long(key: GgufKey) -> bool:
    return isinstance(key.value, tuple) and len(key.value) > MOST_SHOWN


def _abridge(key: GgufKey) -> LongKey:
    assert isinstance(key.value, tuple)
    text = json.dumps(key.value, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return LongKey(key.name, key.type, len(key.value), digest)
