"""The tensors of a quantised base as its layers have them, from headers and small descriptions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from packager.errors import BaseError
from packager.quantisation.encoding import (
    EightBit,
    FourBit,
    Microscaled,
    NestedScales,
    QuantisedRef,
    ScaledFloat,
    Turned,
    row_count,
)
from packager.quantisation.layer import is_transposed
from packager.quantisation.scheme import block_size, compressed_block, find_scheme, value_dtype
from packager.quantisation.state import MAX_STATE_BYTES, STATE_MARK, parse_state
from packager.tensorfile import TensorRef, read_span

Tensors = Mapping[str, TensorRef]

_ASIDE = (".weight_format", ".input_scale", ".activation_scale", ".output_scale")
_FLOATS = ("F8_E4M3", "F8_E5M2")
_SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")


def find_logical(config: Mapping[str, Any], stored: Tensors) -> dict[str, TensorRef]:
    """Returns the tensors that a base stands for: name → plain or quantised tensor.

    What only describes another tensor, such as its scales, has no place of its own.

    Args:
        config: `config.json`.
        stored: Every tensor of the files, by name.

    Raises:
        BaseError: A quantised tensor and what describes it contradict each other.
        InputError: A file cannot be read.
    """
    scheme = find_scheme(config)
    if scheme is None:
        return dict(stored)
    found = _FINDERS[scheme](config, stored)
    used = {ref.name for item in found.values() for ref in item.stored}
    tensors: dict[str, TensorRef] = {}
    for name, ref in stored.items():
        if name in found:
            tensors[name] = found[name]
        elif name in used and name.endswith("_blocks"):
            logical = name.removesuffix("_blocks")
            tensors[logical] = found[logical]
        elif name not in used and not _is_aside(name, found):
            tensors[name] = ref
    return tensors


def _is_aside(name: str, found: Mapping[str, QuantisedRef]) -> bool:
    """Tells whether a tensor belongs to a quantised one without deciding its values."""
    owner, mark, _ = name.partition(STATE_MARK)
    if mark and owner in found:
        return True
    module = next((name.removesuffix(end) for end in _ASIDE if name.endswith(end)), None)
    return module is not None and f"{module}.weight" in found


def _find_bitsandbytes(config: Mapping[str, Any], stored: Tensors) -> dict[str, QuantisedRef]:
    found: dict[str, QuantisedRef] = {}
    for name, ref in stored.items():
        owner, mark, _ = name.partition(STATE_MARK)
        if mark:
            found[owner] = _four_bit(owner, ref, stored)
    for name, ref in stored.items():
        module = name.removesuffix(".weight")
        if ref.dtype == "I8" and name.endswith(".weight") and f"{module}.SCB" in stored:
            found[name] = _eight_bit(ref, stored[f"{module}.SCB"], value_dtype(config))
    return {name: _turn(ref, config) for name, ref in found.items()}


def _turn(ref: QuantisedRef, config: Mapping[str, Any]) -> QuantisedRef:
    """Returns a weight the way round that its layer has it when nothing is quantised."""
    encoding = ref.encoding
    turned = is_transposed(config, ref.name.removesuffix(".weight")) and len(ref.shape) == 2
    if not turned or not isinstance(encoding, FourBit | EightBit):
        return ref
    return replace(ref, shape=ref.shape[::-1], encoding=Turned(encoding, ref.shape))


def _four_bit(name: str, described: TensorRef, stored: Tensors) -> QuantisedRef:
    if described.nbytes > MAX_STATE_BYTES:
        raise _unfit(described, f"at most {MAX_STATE_BYTES} bytes", f"{described.nbytes}")
    where = f"{described.file} ({described.name})"
    state = parse_state(bytes(read_span(described, 0, described.nbytes)), where=where)
    count = math.prod(state.shape)
    scales, nested = -(-count // state.block), None
    if state.nested is not None:
        blocks = -(-scales // state.nested.block)
        nested = NestedScales(
            absmax=_part(stored, f"{name}.nested_absmax", "F32", blocks),
            codes=_part(stored, f"{name}.nested_quant_map", "F32", 256),
            block=state.nested.block,
            offset=state.nested.offset,
        )
    packed = _part(stored, name, None, -(-count // 2))
    encoding = FourBit(
        packed=packed,
        kind=state.kind,
        codes=_part(stored, f"{name}.quant_map", "F32", 16),
        absmax=_part(stored, f"{name}.absmax", "F32" if nested is None else "U8", scales),
        block=state.block,
        nested=nested,
    )
    return QuantisedRef(name, packed.file, packed.offset, state.dtype, state.shape, encoding)


def _eight_bit(packed: TensorRef, scales: TensorRef, dtype: str) -> QuantisedRef:
    if len(packed.shape) != 2 or scales.dtype != "F32" or scales.shape != packed.shape[:1]:
        raise _unfit(packed, f"{packed.shape[:1]} F32 scales", f"{scales.dtype} {scales.shape}")
    encoding = EightBit(packed, scales)
    return QuantisedRef(packed.name, packed.file, packed.offset, dtype, packed.shape, encoding)


def _find_fp8(config: Mapping[str, Any], stored: Tensors) -> dict[str, QuantisedRef]:
    return _find_floats(config, stored, "_scale_inv", block_size(config))


def _find_compressed(config: Mapping[str, Any], stored: Tensors) -> dict[str, QuantisedRef]:
    return _find_floats(config, stored, "_scale", compressed_block(config))


def _find_floats(
    config: Mapping[str, Any], stored: Tensors, suffix: str, block: tuple[int, int] | None
) -> dict[str, QuantisedRef]:
    found = {}
    for name, ref in stored.items():
        scales = stored.get(f"{name}{suffix}")
        if ref.dtype in _FLOATS:
            if scales is None or len(ref.shape) < 2:
                raise _unfit(ref, f"{name}{suffix} beside a matrix", f"shape {ref.shape}")
            encoding = ScaledFloat(ref, scales, _rectangle(ref, scales, block))
            dtype = value_dtype(config)
            found[name] = QuantisedRef(name, ref.file, ref.offset, dtype, ref.shape, encoding)
        elif scales is not None:
            raise _unfit(ref, "8-bit floats", ref.dtype)
    return found


def _rectangle(ref: TensorRef, scales: TensorRef, block: tuple[int, int] | None) -> tuple[int, int]:
    """Returns rows and columns that share a scale, as the number of scales has it."""
    (rows, columns), matrices = ref.shape[-2:], math.prod(ref.shape[:-2])
    count, rest = divmod(math.prod(scales.shape), matrices or 1)
    choices = [(rows, columns), (1, columns)]
    if block is not None and len(scales.shape) >= 2:
        choices.insert(0, block)
    for height, width in choices:
        if not rest and count == -(-rows // height) * -(-columns // width):
            if scales.dtype in _SCALES:
                return height, width
            raise _unfit(ref, f"scales of {', '.join(_SCALES)}", scales.dtype)
    wanted = f"scales for blocks of {block}" if block else "a scale for the matrix or each row"
    raise _unfit(ref, wanted, f"{scales.shape} for {ref.shape}")


def _find_mxfp4(config: Mapping[str, Any], stored: Tensors) -> dict[str, QuantisedRef]:
    found = {}
    for name, packed in stored.items():
        logical = name.removesuffix("_blocks")
        scales = stored.get(f"{logical}_scales")
        if logical == name or scales is None:
            continue
        shape, types = packed.shape, (packed.dtype, scales.dtype)
        if len(shape) != 4 or shape[3] != 16 or scales.shape != shape[:3] or types != ("U8", "U8"):
            raise _unfit(packed, "U8 (experts, columns, groups, 16)", f"{types} {shape}")
        values = (shape[0], shape[2] * 32, shape[1])
        found[logical] = QuantisedRef(
            logical, packed.file, packed.offset, value_dtype(config), values,
            Microscaled(packed, scales),
        )  # fmt: skip
    return found


_FINDERS: dict[str, Callable[[Mapping[str, Any], Tensors], dict[str, QuantisedRef]]] = {
    "bitsandbytes": _find_bitsandbytes,
    "fp8": _find_fp8,
    "compressed-tensors": _find_compressed,
    "mxfp4": _find_mxfp4,
}


def _part(stored: Tensors, name: str, dtype: str | None, count: int) -> TensorRef:
    """Returns a tensor of so many elements, or, of any type, so many bytes."""
    ref = stored.get(name)
    if ref is None:
        raise BaseError(
            f"a part of a quantised weight is missing: {name!r:.120}",
            hint="download the base again: a file is incomplete",
        )
    rows, width = row_count(ref.shape)
    found = ref.nbytes if dtype is None else rows * width
    if (dtype is not None and ref.dtype != dtype) or found != count:
        what = "bytes" if dtype is None else f"elements of {dtype}"
        raise _unfit(ref, f"{count} {what}", f"{ref.dtype} {ref.shape}")
    return ref


def _unfit(ref: TensorRef, expected: str, found: str) -> BaseError:
    return BaseError(
        f"the quantised tensor {ref.name!r:.120} does not fit what describes it",
        where=str(ref.file),
        expected=expected,
        found=found[:120],
        hint="download the base again, or give its 16-bit original with --base",
    )
