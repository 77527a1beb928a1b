"""One adapter of a server: its weights in a form that every loader reads alike, and its chat."""

from __future__ import annotations

import math

from packager.adapter import LoraModule
from packager.base import BaseIndex
from packager.plan.layout import needs_folding
from packager.plan.rule import find_base_weight
from packager.plan.source import AdapterSource
from packager.serving.value import Chat, ServedFactor, ServedLora
from packager.tensorfile import render_header, tensor_bytes

METADATA = {"format": "pt"}
"""Of the weights file."""

_PART = "language_model."
"""Of the names within a composite model."""


def plan_lora(source: AdapterSource, base: BaseIndex) -> ServedLora:
    """Plans the form in which every loader computes what PEFT does.

    The scale is folded only where loaders disagree about it. Folding keeps the type of the values
    where it is exact, by a power of two, and else takes float32: B is then rounded once.
    """
    folded = needs_folding(source)
    rank = max(source.spec.ranks)
    factors: list[ServedFactor] = []
    for module in source.spec.modules.values():
        stored = f"base_model.model.{_served_module(module, base)}"
        lora_a, lora_b = module.lora_a, module.lora_b
        scale = module.scale if folded else 1.0
        shapes = (rank, lora_a.shape[1]), (lora_b.shape[0], rank)
        dtype = _folded_dtype(lora_b.dtype, scale)
        name = f"{stored}.lora_A.weight"
        factors.append(ServedFactor(name, lora_a.dtype, shapes[0], lora_a.name, 1.0))
        name = f"{stored}.lora_B.weight"
        factors.append(ServedFactor(name, dtype, shapes[1], lora_b.name, scale))
    rows = [(factor.name, factor.dtype, factor.shape) for factor in factors]
    data = sum(tensor_bytes(dtype, shape) for _, dtype, shape in rows)
    return ServedLora(rank, folded, tuple(factors), len(render_header(rows, METADATA)) + data)


def _served_module(module: LoraModule, base: BaseIndex) -> str:
    """Returns the name by which the server finds a module.

    That is the adapter's own, but where a language model was trained by itself and is a part of
    the model that the server loads: then it is the name that the base's file has.

    Source: vLLM 0.32.0, vllm/lora/utils.py, parse_fine_tuned_lora_name: an adapter's names go
    through the same mapping as those of the base's weights.
    """
    ref = find_base_weight(module, base)
    if ref is None or _PART not in ref.name or _PART in module.module:
        return module.module
    return ref.name.removesuffix(".weight")


def _folded_dtype(dtype: str, scale: float) -> str:
    if scale == 1 or dtype == "F64":
        return dtype
    # A power of two moves only the exponent, of which float16 has too little to spare.
    exact = math.frexp(scale)[0] in (0.5, -0.5)
    return dtype if exact and dtype != "F16" else "F32"


def own_template(own: Chat | None, base: Chat | None) -> str | None:
    """Returns the chat template that an adapter needs beside the server's, or None.

    A template may write out special tokens by name, which the server fills in with those of the
    base: where the adapter's are others, they are set in front.
    """
    template = (own.template or base.template) if own is not None and base is not None else None
    if template is None or own is None or base is None:
        return None
    settings = [
        f"{{% set {name} = {_quote(text)} %}}"
        for name, text in own.specials.items()
        if name in template and base.specials.get(name) != text
    ]
    if not settings:
        return None if template == base.template else template
    # An expression ends the settings: after a statement, jinja drops a line break.
    return "".join(settings) + "{{ '' }}" + template


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def stop_ids(own: Chat | None, base: Chat) -> tuple[int, ...]:
    """Returns the tokens that end an adapter's answers, beside those that end the base's."""
    return tuple(token for token in own.end_ids if token not in base.end_ids) if own else ()
