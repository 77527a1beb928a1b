"""A merged model through the converter of a llama.cpp checkout that the user names."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from packager.errors import InputError, LorapackError
from packager.gguf.header import DataTensor, GgufHeader, parse_header
from packager.gguf.layout import GgufFile
from packager.gguf.value import GgufKey, GgufModel, GgufTensor, key_value
from packager.plan import ReleasePlan, TargetPlan
from packager.plan.gguf import describe_model
from packager.process import run_program
from packager.tensorfile import TensorRef
from packager.untrusted import resolve_inside

SCRIPT = "convert_hf_to_gguf.py"
_START_BYTES = 64 << 20
_MOST_BYTES = 1 << 30
_BYTES_PER_SECOND = 10e6
_LEAST_SECONDS = 900.0
_OWN_KEYS = ("general.file_type", "general.quantization_version")


@dataclass(frozen=True)
class ConvertedModel:
    """What a converter made.

    Attributes:
        model: Keys and tensors; each tensor is its own source.
        tensors: Where their values lie.
    """

    model: GgufModel
    tensors: dict[str, TensorRef]


def check_checkout(folder: Path) -> None:
    """Refuses a folder without a converter.

    Raises:
        InputError: There is none.
    """
    if not (folder / SCRIPT).is_file():
        raise InputError(
            "the folder is no llama.cpp checkout",
            where=str(folder),
            expected=SCRIPT,
            hint="git clone https://github.com/ggml-org/llama.cpp, and give that folder",
        )


def run_converter(checkout: Path, merged: Path, out: Path, nbytes: int) -> ConvertedModel:
    """Runs the converter on a merged model, into float32.

    It is a program of the user's, with all that it imports; it is told to stay offline.

    Args:
        checkout: Of llama.cpp.
        merged: The merged model's folder.
        out: The GGUF file to appear.
        nbytes: Of the merged model, for the time limit.

    Raises:
        ProcessError: The converter fails or takes too long; its last line is shown.
        InputError: What it wrote cannot be read.
    """
    command = [
        sys.executable, str((checkout / SCRIPT).absolute()), str(merged), "--outfile", str(out),
        "--outtype", "f32",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    seconds = _LEAST_SECONDS + nbytes / _BYTES_PER_SECOND
    run_program(command, seconds=seconds, environment=environment, directory=merged.parent)
    header = read_start(out)
    return ConvertedModel(
        _model(header, out),
        {tensor.name: _ref(tensor, out) for tensor in header.tensors},
    )


def settle_target(target: TargetPlan, folder: Path) -> TargetPlan:
    """Returns a converted target with the files that are there now, read from their headers.

    Args:
        target: Any target; one that no other program converts is returned as it is.
        folder: Of the target.

    Raises:
        InputError: A file is missing or damaged.
    """
    if target.converter is None:
        return target
    files: list[GgufFile] = []
    first: GgufHeader | None = None
    for quant in target.converter.quants:
        stem = re.escape(f"{target.name}-{quant}")
        pattern = re.compile(rf"{stem}(?:-\d{{5}}-of-\d{{5}})?\.gguf")
        paths = [path for path in sorted(folder.iterdir()) if pattern.fullmatch(path.name)]
        for number, path in enumerate(paths):
            resolve_inside(folder, path.name, where=str(folder))
            header = read_start(path)
            first = first or header
            size = path.stat().st_size
            files.append(
                GgufFile(path.name, quant, number, len(paths), (), (), header.data_start, size)
            )
        if not paths:
            raise _lacking(folder / f"{target.name}-{quant}.gguf")
    assert first is not None
    model = replace(_model(first, folder), tensors=())
    return replace(target, gguf=describe_model(model, tuple(files), ()))


def settle_plan(plan: ReleasePlan, bundle: Path) -> ReleasePlan:
    """Returns the plan of a bundle with the files that another converter's targets have.

    Raises:
        InputError: A file is missing or damaged.
    """
    targets = tuple(settle_target(target, bundle / target.path) for target in plan.targets)
    return replace(plan, targets=targets)


def read_start(path: Path) -> GgufHeader:
    """Reads the header of a GGUF file.

    Raises:
        InputError: It cannot be read, or is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _parse_start(file, path, size)
    except OSError as problem:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="check the disk, and run again",
        ) from problem


def _parse_start(file: BinaryIO, path: Path, size: int) -> GgufHeader:
    """The header's own length is not stated: of a large vocabulary, more is read."""
    count = _START_BYTES
    while True:
        file.seek(0)
        data = file.read(count)
        try:
            return parse_header(data, where=str(path), size=size)
        except LorapackError:
            if len(data) < count or count >= _MOST_BYTES:
                raise
        count *= 4


def _model(header: GgufHeader, where: Path) -> GgufModel:
    keys = tuple(key for key in header.keys if key.name not in _OWN_KEYS)
    architecture = str(key_value(keys, "general.architecture") or "")
    layers = _number(keys, f"{architecture}.block_count", where)
    heads = key_value(keys, f"{architecture}.attention.head_count")
    key_heads = key_value(keys, f"{architecture}.attention.head_count_kv")
    experts = key_value(keys, f"{architecture}.expert_count")
    return GgufModel(
        architecture=architecture,
        keys=keys,
        tensors=tuple(
            GgufTensor(tensor.name, tensor.shape, (tensor.name,)) for tensor in header.tensors
        ),
        dropped=(),
        layers=layers,
        experts=experts if isinstance(experts, int) else 0,
        grouped_heads=heads // key_heads
        if isinstance(heads, int) and isinstance(key_heads, int) and key_heads > 0
        else 1,
    )


def _number(keys: tuple[GgufKey, ...], name: str, where: Path) -> int:
    value = key_value(keys, name)
    if isinstance(value, int):
        return value
    raise InputError(
        "the converter wrote a file without a needed key",
        where=str(where),
        expected=name,
        hint="take a newer llama.cpp",
    )


def _ref(tensor: DataTensor, path: Path) -> TensorRef:
    if tensor.type not in ("F32", "F16", "BF16"):
        raise InputError(
            f"the converter wrote tensor {tensor.name!r:.100} in a type that is not plain",
            where=str(path),
            expected="F32, F16 or BF16",
            found=tensor.type,
            hint="take a newer llama.cpp",
        )
    return TensorRef(tensor.name, path, tensor.offset, tensor.type, tensor.shape)


def _lacking(path: Path) -> InputError:
    return InputError(
        "a GGUF file is missing",
        where=str(path),
        hint="copy the bundle again, or release it again",
    )
