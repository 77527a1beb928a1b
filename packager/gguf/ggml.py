"""Blocks of quantised values, made by ggml itself: the library inside of xllamacpp, by ctypes.

Only functions without state are called, on arrays of ours, so that threads may share one library.

Source: llama.cpp 0c1e57098, ggml/include/ggml.h, ggml_quantize_chunk and ggml_validate_row_data.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packager.errors import InputError
from packager.gguf.block import BLOCKS, BlockType, row_bytes

_PACKAGE = "xllamacpp"
_HINT = "install lorapack again: pip install --force-reinstall xllamacpp"
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "ggml_blck_size": (ctypes.c_int64, [ctypes.c_int]),
    "ggml_type_size": (ctypes.c_size_t, [ctypes.c_int]),
    "ggml_type_name": (ctypes.c_char_p, [ctypes.c_int]),
    "ggml_quantize_init": (None, [ctypes.c_int]),
    "ggml_validate_row_data": (ctypes.c_bool, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
            ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        ],
    ),
}  # fmt: skip


class Ggml:
    """The loaded library.

    Args:
        path: The shared object.

    Raises:
        InputError: It cannot be loaded, lacks a function, or has other types than we know.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as problem:
            raise _unusable(path, "a library for this machine", str(problem)[:200]) from problem
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name, None)
            if function is None:
                raise _unusable(path, f"the function {name}", "none of that name")
            function.restype, function.argtypes = result, arguments
        for type_name, block in BLOCKS.items():
            found = (
                (self._library.ggml_type_name(block.number) or b"")
                .decode("ascii", "replace")
                .upper(),
                self._library.ggml_blck_size(block.number),
                self._library.ggml_type_size(block.number),
            )
            if found != (type_name.upper(), block.values, block.nbytes):
                raise _unusable(path, f"{type_name} with {block}", repr(found))
            self._library.ggml_quantize_init(block.number)

    def quantise_rows(
        self,
        type_name: BlockType,
        rows: NDArray[np.float32],
        out: NDArray[np.uint8],
        importance: NDArray[np.float32] | None = None,
    ) -> bool:
        """Quantises rows into `out`; other threads run meanwhile.

        Args:
            type_name: Of the blocks.
            rows: Shape (rows, width), contiguous, finite.
            out: As many bytes as the rows take, contiguous.
            importance: Shape (width,), the weight of each column, or None.

        Returns:
            Whether the result is finite; a value may be too large for the type.
        """
        count, width = rows.shape
        nbytes = count * row_bytes(type_name, width)
        _check_array(rows, np.float32, count * width)
        _check_array(out, np.uint8, nbytes)
        if importance is not None:
            _check_array(importance, np.float32, width)
        number = BLOCKS[type_name].number
        weights = None if importance is None else importance.ctypes.data
        written = self._library.ggml_quantize_chunk(
            number, rows.ctypes.data, out.ctypes.data, 0, count, width, weights
        )
        assert written == nbytes
        return bool(self._library.ggml_validate_row_data(number, out.ctypes.data, nbytes))


def _check_array(array: NDArray[Any], dtype: Any, size: int) -> None:
    """Keeps wrong arrays from reaching C, which would read and write past them."""
    assert array.dtype == dtype
    assert array.size == size
    assert array.flags.c_contiguous


@lru_cache(maxsize=1)
def load_ggml() -> Ggml:
    """Finds and loads the library, once; xllamacpp itself is not imported.

    Raises:
        InputError: xllamacpp is missing or another than expected.
    """
    return Ggml(_find_library(find_spec(_PACKAGE)))


def _find_library(spec: Any) -> Path:
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob(f"{_PACKAGE}*.so")):
            return path
    raise InputError(
        "the library that quantises is missing",
        where=_PACKAGE,
        expected="xllamacpp with its shared object",
        hint=_HINT,
    )


def _unusable(path: Path, expected: str, found: str) -> InputError:
    return InputError(
        "the library that quantises cannot be used",
        where=str(path),
        expected=expected,
        found=found,
        hint=_HINT,
    )
