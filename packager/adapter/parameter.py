"""Pairs of factors that PEFT put around a parameter itself, such as the fused experts of a layer.

Source: PEFT 0.21, src/peft/tuners/lora/layer.py (ParamWrapper), tuners/tuners_utils.py
(_inject_parameters).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from packager.adapter.config import AdapterConfig
from packager.errors import AdapterError
from packager.tensorfile import TensorRef

_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)(?P<inner>(?:\.base_layer)*)\.lora_(?P<part>[AB])\.weight"
)
_WRAPPER = ".base_layer"


@dataclass(frozen=True)
class ParameterPair:
    """One pair of factors.

    Which parameter of the module it is for, PEFT does not save: it puts one wrapper around the
    other, in the order in which the module defines the parameters.

    Attributes:
        module: Dotted name of the module that holds the parameter.
        depth: How many other wrappers are around this one.
        lora_a: Shape (experts·rank, in_features).
        lora_b: Shape (out_features, experts·rank).
    """

    module: str
    depth: int
    lora_a: TensorRef
    lora_b: TensorRef

    @property
    def tensors(self) -> tuple[TensorRef, TensorRef]:
        """Both factors."""
        return (self.lora_a, self.lora_b)


def find_parameter_pairs(
    tensors: Iterable[TensorRef], config: AdapterConfig, where: str
) -> tuple[ParameterPair, ...]:
    """Returns the pairs around parameters, those of a module from the outermost inwards.

    Args:
        tensors: Of the adapter.
        config: Its configuration.
        where: Path of the weights, for errors.

    Raises:
        AdapterError: Half of a pair is missing, or is no matrix.
    """
    found: dict[tuple[str, int], dict[str, TensorRef]] = {}
    for tensor in tensors if config.peft_type == "LORA" and config.target_parameters else ():
        key = _KEY.fullmatch(tensor.name)
        if key is not None and _is_wrapped(key["module"], config):
            depth = len(key["inner"]) // len(_WRAPPER)
            found.setdefault((key["module"], depth), {})[key["part"]] = tensor
    return tuple(
        _pair(module, depth, found[module, depth], where) for module, depth in sorted(found)
    )


def _is_wrapped(module: str, config: AdapterConfig) -> bool:
    return config.wraps(module) and not config.selects(module)


def _pair(module: str, depth: int, pair: dict[str, TensorRef], where: str) -> ParameterPair:
    missing = [f"lora_{part}" for part in "AB" if part not in pair]
    if missing or any(len(tensor.shape) != 2 for tensor in pair.values()):
        shapes = ", ".join(f"lora_{part} {tensor.shape}" for part, tensor in sorted(pair.items()))
        raise AdapterError(
            f"the adapter of a parameter of {module!r} is not a pair of matrices",
            where=where,
            expected="lora_A (experts·rank, in), lora_B (out, experts·rank)",
            found=shapes,
            hint="the file is incomplete: save or copy the adapter again",
        )
    return ParameterPair(module, depth, pair["A"], pair["B"])
