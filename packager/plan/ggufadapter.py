"""An adapter as a GGUF LoRA: every scale folded into B, rows in llama.cpp's order."""

from __future__ import annotations

from packager.adapter import LoraModule
from packager.base import BaseIndex
from packager.errors import LorapackError, UnsupportedFeatureError
from packager.gguf.block import data_bytes
from packager.gguf.header import padded, render_header
from packager.gguf.mapping import map_model
from packager.gguf.value import GgufKey, GgufTensor
from packager.plan.layout import plan_lora_files
from packager.plan.option import LoraType, ReleaseOptions
from packager.plan.rule import find_base_weight
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.target import TargetPlan
from packager.plan.value import GgufLoraPlan, LoraFactor

_SHOWN = 3


def plan_gguf_adapter(
    source: AdapterSource, base: BaseSource, options: ReleaseOptions
) -> tuple[TargetPlan | None, list[LorapackError]]:
    """Plans a GGUF LoRA.

    Source: llama.cpp 0c1e57098, src/llama-adapter.cpp: what the loader asks for. Without an alpha
    it applies B·A as it is.

    Returns:
        The target, or None and why it is not possible.
    """
    shapes = {name: ref.shape for name, ref in base.index.tensors.items()}
    try:
        model = map_model(base.index.config, shapes)
    except LorapackError as problem:
        return None, [problem]
    places = {tensor.sources: tensor for tensor in model.tensors}
    factors: list[LoraFactor] = []
    lost: list[str] = []
    for module in source.spec.modules.values():
        tensor = _find_place(module, base.index, places)
        if tensor is None:
            lost.append(module.module)
        else:
            factors += _plan_factors(module, tensor)
    if lost:
        return None, [_not_carried(source, lost)]
    path = f"gguf-adapter/{source.name}"
    lora = _lay_out(source.name, model.architecture, tuple(factors), options.adapter_type)
    files = plan_lora_files(base)
    return TargetPlan("gguf-adapter", source.name, path, (), files, gguf_lora=lora), []


def render_lora_start(plan: GgufLoraPlan) -> bytes:
    """Returns the first bytes of the file, up to its data."""
    tensors = [(factor.name, plan.type, factor.shape) for factor in plan.factors]
    return render_header(plan.keys, (), tensors)


def _find_place(
    module: LoraModule, base: BaseIndex, places: dict[tuple[str, ...], GgufTensor]
) -> GgufTensor | None:
    """Returns the tensor of the base's GGUF that a module's update is added to.

    A tied head has none: llama.cpp reads the embedding in its place, which an update would change
    too.
    """
    ref = find_base_weight(module, base)
    if ref is None or ref is base.embedding:
        return None
    tensor = places.get((ref.name,))
    if tensor is None or tensor.transform == "add_one" or len(tensor.shape) != 2:
        return None
    return tensor


def _plan_factors(module: LoraModule, tensor: GgufTensor) -> tuple[LoraFactor, LoraFactor]:
    heads = tensor.heads if tensor.transform == "permute" else 0
    lora_a, lora_b = module.lora_a, module.lora_b
    return (
        LoraFactor(f"{tensor.name}.lora_a", lora_a.shape, lora_a.name),
        LoraFactor(f"{tensor.name}.lora_b", lora_b.shape, lora_b.name, module.scale, heads),
    )


def _lay_out(
    name: str, architecture: str, factors: tuple[LoraFactor, ...], kind: LoraType
) -> GgufLoraPlan:
    keys = (
        GgufKey("general.architecture", "string", architecture),
        GgufKey("general.type", "string", "adapter"),
        GgufKey("general.name", "string", name),
        GgufKey("adapter.type", "string", "lora"),
        GgufKey("adapter.lora.alpha", "float32", 0.0),
    )
    path = f"{name}-lora-{kind}.gguf"
    unplaced = GgufLoraPlan(path, architecture, kind, keys, factors, 0, 0)
    start = len(render_lora_start(unplaced))
    size = start + sum(padded(data_bytes(kind, factor.shape)) for factor in factors)
    return GgufLoraPlan(path, architecture, kind, keys, factors, start, size)


def _not_carried(source: AdapterSource, modules: list[str]) -> UnsupportedFeatureError:
    shown = ", ".join(map(repr, modules[:_SHOWN])) + (" …" if len(modules) > _SHOWN else "")
    return UnsupportedFeatureError(
        f"a GGUF LoRA cannot carry {len(modules)} of the {len(source.spec.modules)} adapted "
        "modules: llama.cpp has no matrix of its own for them",
        where=str(source.spec.directory),
        expected="linear layers of blocks, or an untied head",
        found=shown,
        hint="merge instead: --target ollama, or --target merged",
    )
