"""Importance matrices as llama-imatrix writes them, with made-up figures."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from packager.gguf.value import GgufModel


def write_gguf_imatrix(path: Path, model: GgufModel) -> None:
    """Writes sums and counts; of the third expert no token was seen."""
    writer = gguf.GGUFWriter(path, "", use_temp_file=False)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.train", "other"])
    writer.add_uint32("imatrix.chunk_count", 17)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, sums in _figures(model).items():
        counts = np.full((sums.shape[0], 1), 3, dtype=np.float32)
        counts[2:3] = 0
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_old_imatrix(path: Path, model: GgufModel, first: float | None = None) -> None:
    """Writes the older format; `first` replaces the very first figure."""
    figures = _figures(model)
    parts = [np.int32(len(figures)).tobytes()]
    for number, (name, sums) in enumerate(figures.items()):
        if number == 0 and first is not None:
            sums[0, 0] = first
        raw = name.encode()
        parts += [np.int32(len(raw)).tobytes(), raw, np.int32([3, sums.size]).tobytes()]
        parts.append(sums.tobytes())
    parts += [np.int32([17, 10]).tobytes(), b"wiki.train"]
    path.write_bytes(b"".join(parts))


def _figures(model: GgufModel) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(7)
    figures = {}
    for tensor in model.tensors:
        if len(tensor.shape) > 1:
            matrices = tensor.shape[0] if len(tensor.shape) == 3 else 1
            size = (matrices, tensor.shape[-1])
            figures[tensor.name] = (3 * random.random(size)).astype(np.float32)
    return figures
