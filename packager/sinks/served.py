"""An adapter as a server loads it: its factors, one tensor at a time, and its configuration.

The form computes the same ΔW for every loader: ranks are filled up with zeros to the largest, and
where loaders disagree about the scale it is part of `lora_B`, with `lora_alpha` equal to `r`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from packager.adapter import AdapterSpec
from packager.errors import AdapterError, output_error
from packager.manifest import FileEntry
from packager.plan.servedadapter import METADATA
from packager.rowreader import read_rows, torch_dtype
from packager.sequential import SequentialFile
from packager.serving.path import adapter_path
from packager.serving.value import ServedFactor, ServedLora
from packager.sinks.peft import FOLDED_FIELDS
from packager.tensorfile import TensorRef, render_header

WEIGHTS_NAME = "adapter_model.safetensors"


def write_served_lora(folder: Path, name: str, lora: ServedLora, spec: AdapterSpec) -> FileEntry:
    """Writes the weights.

    Args:
        folder: Of the server.
        name: Of the adapter.
        lora: What the file holds.
        spec: The adapter as trained.

    Raises:
        AdapterError: NaN or infinity in the adapter, or a value too large for its type.
        InputError: The adapter cannot be read.
        OutputError: The disk is full or fails.
    """
    tensors = {ref.name: ref for ref in spec.tensors}
    place = f"{adapter_path(name)}/{WEIGHTS_NAME}"
    path, digest = folder / place, hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = SequentialFile(path, lora.size)
        try:
            for data in _parts(lora, tensors):
                digest.update(data)
                file.append(data)
            file.finish()
        finally:
            file.close()
    except OSError as problem:
        raise output_error(problem, path) from problem
    return FileEntry(place, lora.size, digest.hexdigest())


def render_served_config(spec: AdapterSpec, lora: ServedLora, base: str, commit: str | None) -> str:
    """Returns `adapter_config.json`.

    Args:
        spec: The adapter as trained.
        lora: The form that it gets.
        base: Name of the base on the Hub, or under which it is served.
        commit: Of the base on the Hub, or None.
    """
    rank = lora.rank
    plain = {
        "r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    assert plain.keys() == FOLDED_FIELDS
    pin = {"base_model_name_or_path": base, "revision": commit, "inference_mode": True}
    document = {**spec.config.raw, **pin, **(plain if lora.folded else {})}
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def make_served_factor(factor: ServedFactor, ref: TensorRef) -> Tensor:
    """Reads one half of an update as the file has it.

    Returns:
        Shape and dtype as of the factor.

    Raises:
        AdapterError: NaN or infinity, as trained or in the type of the factor.
    """
    values = read_rows(ref, 0, ref.shape[0])
    scaled = values if factor.scale == 1 else values.double() * factor.scale
    made = torch.zeros(factor.shape, dtype=torch_dtype(factor.dtype))
    made[: values.shape[0], : values.shape[1]] = scaled
    if not bool(torch.isfinite(made).all()):
        raise AdapterError(
            f"the adapter tensor {factor.source!r} holds NaN or infinity",
            where=str(ref.file),
            expected=f"finite values in {factor.dtype}",
            hint="the training diverged: use an earlier checkpoint",
        )
    return made


def _parts(lora: ServedLora, tensors: dict[str, TensorRef]) -> Iterator[bytes]:
    rows = [(factor.name, factor.dtype, factor.shape) for factor in lora.factors]
    yield render_header(rows, METADATA)
    for factor in lora.factors:
        made = make_served_factor(factor, tensors[factor.source])
        yield made.view(torch.uint8).numpy().tobytes()
