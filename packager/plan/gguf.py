"""A merged model as GGUF: what each file will hold, byte for byte, before a weight is read."""

from __future__ import annotations

import hashlib
import json

from packager.base import BaseIndex
from packager.errors import LorapackError
from packager.gguf.general import general_keys
from packager.gguf.layout import plan_files
from packager.gguf.mapping import map_model, with_keys
from packager.gguf.value import GgufKey, GgufModel
from packager.plan.layout import plan_gguf_files
from packager.plan.option import ReleaseOptions
from packager.plan.rule import plan_tensors, unties_head
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.value import GgufPlan, LongKey, PlannedTensor, TargetPlan

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
    problems = list(source.gguf.problems)
    merged, _ = plan_tensors(source, base.index, "F32")
    try:
        model = map_source(source, base.index, merged)
    except LorapackError as problem:
        return None, [problem, *problems]
    if problems:
        return None, problems
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
    gguf = GgufPlan(
        architecture=model.architecture,
        keys=tuple(key for key in model.keys if not _is_long(key)),
        long_keys=tuple(_abridge(key) for key in model.keys if _is_long(key)),
        tensors=model.tensors,
        dropped=model.dropped,
        files=files,
        merged=tuple(tensor for name, tensor in merged.items() if name in used),
    )
    beside = plan_gguf_files(base, options.quants)
    untied = unties_head(merged, base.index)
    path = f"ollama/{source.name}"
    return TargetPlan("ollama", source.name, path, (), beside, untied, gguf), []


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
    config = dict(base.config)
    if unties_head(merged, base):
        config["tie_word_embeddings"] = False
    model = map_model(config, {name: tensor.shape for name, tensor in merged.items()})
    assert source.gguf is not None
    general = general_keys(source.gguf.facts, model.tensors)
    return with_keys(model, general, source.gguf.keys)


def gguf_notes(target: TargetPlan) -> list[str]:
    """Says which tensors get another type than their quantisation wants, and why."""
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
