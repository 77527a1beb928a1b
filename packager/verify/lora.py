"""A GGUF LoRA against the adapter that it was made from, and in llama.cpp on its base."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from packager.adapter import AdapterSpec
from packager.bundle import check_free_space
from packager.dtype import MANTISSA_BITS
from packager.errors import InputError
from packager.gather import Gathered
from packager.gguf.header import DataTensor, GgufHeader, parse_header
from packager.gguf.layout import GgufFile, plan_files
from packager.gguf.mapping import map_model, with_keys
from packager.gguf.mixture import Quant
from packager.gguf.value import GgufKey, GgufModel
from packager.plan import GgufLoraPlan, LoraFactor, PlannedTensor
from packager.progress import Silent
from packager.rowreader import read_rows
from packager.tensorfile import TensorRef
from packager.verify.proof import BehaviourCheck, WeightsCheck

if TYPE_CHECKING:
    from packager.verify.behaviour import OnStep, Truth

_SPARE_BYTES = 1 << 16
_SMALLEST = {"F32": -126, "BF16": -126, "F16": -14}


def check_gguf_lora(plan: GgufLoraPlan, folder: Path, spec: AdapterSpec) -> WeightsCheck:
    """Compares every half of every update with the adapter's, in float64.

    Args:
        plan: Of the file.
        folder: That holds it.
        spec: The adapter.
    """
    total = len(plan.factors)
    problems: list[str] = []
    try:
        header = _read_header(folder / plan.path, plan)
    except InputError as problem:
        return _summarise(0, total, (str(problem),))
    stored = {tensor.name: tensor for tensor in header.tensors}
    refs = {ref.name: ref for ref in spec.tensors}
    problems += _check_keys(plan, header)
    problems += [f"{name} is left over" for name in stored.keys() - {f.name for f in plan.factors}]
    for factor in plan.factors:
        tensor = stored.get(factor.name)
        if tensor is None or (tensor.type, tensor.shape) != (plan.type, factor.shape):
            problems.append(f"{factor.name} is missing or has another type or shape")
        elif not _is_same(factor, refs[factor.source], _ref(folder / plan.path, tensor)):
            problems.append(f"{factor.name} is not what the adapter was trained to")
    return _summarise(total, total, tuple(problems))


def measure_gguf_lora(
    plan: GgufLoraPlan,
    folder: Path,
    gathered: Gathered,
    truth: Truth,
    *,
    threads: int = 2,
    progress: OnStep | None = None,
) -> BehaviourCheck:
    """Runs the LoRA in llama.cpp on the base, which is written as GGUF for it and removed again.

    Args:
        plan: Of the file.
        folder: That holds it.
        gathered: The sources.
        truth: Of the adapter.
        threads: That write the base.
        progress: Told about steps.

    Raises:
        ProofError: llama.cpp is missing, or cannot run base and LoRA.
        OutputError: There is no room for the base.
    """
    from packager.quantise import WeightSources, write_gguf
    from packager.verify.variant import check_gguf_adapter

    index = gathered.base.index
    model, quant = _base_model(gathered)
    files = plan_files(model, quant, "base")
    planned = {
        name: PlannedTensor(name, "F32", ref.shape, "cast", name)
        for name, ref in index.tensors.items()
    }
    with tempfile.TemporaryDirectory(prefix="lorapack-base-") as name:
        if progress is not None:
            progress("write the base as GGUF", 0, 1)
        check_free_space(Path(name, files[0].path), sum(file.size for file in files))
        write_gguf(
            Path(name),
            model,
            files,
            WeightSources(planned, index.tensors, {}),
            threads=threads,
            progress=Silent(),
        )
        if progress is not None:
            progress("write the base as GGUF", 1, 1)
        return check_gguf_adapter(
            truth,
            Path(name, files[0].path),
            folder / plan.path,
            coarser(quant, plan.type),
            parameters=index.parameter_count,
            progress=progress,
        )


def base_files(gathered: Gathered) -> tuple[GgufFile, ...]:
    """Returns what `measure_gguf_lora` writes of the base."""
    model, quant = _base_model(gathered)
    return plan_files(model, quant, "base")


def coarser(quant: Quant, kind: str) -> Quant:
    """Returns the one of two plain types that rounds more."""
    order: tuple[Quant, ...] = ("F32", "F16", "BF16")
    return max(quant, next(item for item in order if item == kind), key=order.index)


def _base_model(gathered: Gathered) -> tuple[GgufModel, Quant]:
    """The base in the type that it is stored in, without a tokenizer: token ids go in and out."""
    index = gathered.base.index
    model = map_model(index.config, {name: ref.shape for name, ref in index.tensors.items()})
    rows = next(item.shape[0] for item in model.tensors if item.name == "token_embd.weight")
    keys = (
        GgufKey("tokenizer.ggml.model", "string", "none"),
        GgufKey(f"{model.architecture}.vocab_size", "uint32", rows),
    )
    stored = index.dtypes[0] if index.dtypes else "F32"
    plain: tuple[Quant, ...] = ("F16", "BF16")
    return with_keys(model, keys), next((item for item in plain if item == stored), "F32")


def _read_header(path: Path, plan: GgufLoraPlan) -> GgufHeader:
    try:
        with path.open("rb") as stream:
            start = stream.read(plan.data_start + _SPARE_BYTES)
        return parse_header(start, where=str(path), size=path.stat().st_size)
    except OSError as problem:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="check the disk; copy the bundle again",
        ) from problem


def _check_keys(plan: GgufLoraPlan, header: GgufHeader) -> list[str]:
    wanted = {key.name: (key.type, key.value) for key in plan.keys}
    found = {key.name: (key.type, key.value) for key in header.keys}
    return [
        f"key {name} is {found.get(name)}, not {wanted.get(name)}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def _ref(path: Path, tensor: DataTensor) -> TensorRef:
    return TensorRef(tensor.name, path, tensor.offset, tensor.type, tensor.shape)


def _is_same(factor: LoraFactor, trained: TensorRef, stored: TensorRef) -> bool:
    """To half a unit in the last place of the stored type."""
    truth = read_rows(trained, 0, trained.shape[0]).double() * factor.scale
    found = read_rows(stored, 0, stored.shape[0])
    if factor.heads:
        truth = truth[_rotary_order(truth.shape[0], factor.heads)]
    exponent = torch.floor(torch.log2(truth.abs().clamp_min(2.0 ** _SMALLEST[stored.dtype])))
    unit = 2.0 ** (exponent - MANTISSA_BITS[stored.dtype])
    return bool(((found.double() - truth).abs() <= 0.5 * unit * (1 + 1e-9)).all())


def _rotary_order(rows: int, heads: int) -> Tensor:
    """For each row of llama.cpp's the row of transformers': pairs lie next to each other there.

    Source: transformers 5.x, modeling_llama.py, rotate_half: element i turns with i + half.
    """
    size = rows // heads
    order = [
        head * size + pair + turned * (size // 2)
        for head in range(heads)
        for pair in range(size // 2)
        for turned in (0, 1)
    ]
    return torch.tensor(order)


def _summarise(good: int, total: int, problems: tuple[str, ...]) -> WeightsCheck:
    return WeightsCheck(good, total, {"folded": (good, total)}, good, total, (), problems)
