"""A base with adapters → one server: what vLLM is started with, checked before it is written."""

from __future__ import annotations

from collections.abc import Sequence

from packager.base import BaseIndex
from packager.errors import InputError, LorapackError
from packager.plan.option import ReleaseOptions
from packager.plan.preflight import check_adapter, check_base, quantization_of, served_name
from packager.plan.servedadapter import own_template, plan_lora, stop_ids
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.value import PlannedFile, TargetPlan
from packager.serving.engine import LORA_RANKS, VLLM_VERSION, find_lora_rank
from packager.serving.path import adapter_path, original_path, template_path
from packager.serving.shape import ModelShape, read_shape
from packager.serving.value import (
    Chat,
    Origin,
    ServedAdapter,
    ServedBase,
    ServedType,
    ServingPlan,
)

FOLDER = "vllm"
_DTYPES: dict[str, ServedType] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LORA_SHARE = 8
"""Adapters that are mixed in one step take at most this part of the memory of a GPU."""
_USUAL_GPU_BYTES = 24_000_000_000
_USED_SHARE = 0.9
_WORKSPACE_BYTES = 2 << 30
_CONTEXT_STEP = 1024


def plan_vllm(
    source: AdapterSource, base: BaseSource, _options: ReleaseOptions
) -> tuple[TargetPlan | None, list[LorapackError]]:
    """Plans what the server's folder holds of one adapter.

    Returns:
        The target, or None and every reason why vLLM cannot serve this adapter.
    """
    problems = check_adapter(source, base)
    if problems:
        return None, problems
    lora = plan_lora(source, base.index)
    name = source.name
    files = [
        PlannedFile(f"{original_path(name)}/adapter_config.json", "adapter", None),
        PlannedFile(
            f"{original_path(name)}/adapter_model.safetensors", "adapter", source.spec.weights_bytes
        ),
        PlannedFile(f"{adapter_path(name)}/adapter_config.json", "written", None),
    ]
    if own_template(source.chat, base.chat) is not None:
        files.append(PlannedFile(template_path(name), "written", None))
    return TargetPlan("vllm", name, FOLDER, (), tuple(files), served=lora), []


def plan_serving(
    sources: Sequence[AdapterSource], base: BaseSource, options: ReleaseOptions
) -> tuple[ServingPlan | None, list[LorapackError]]:
    """Plans the server of a base and of adapters that `plan_vllm` had no objection to.

    Returns:
        The server, or None and every reason why there cannot be one.
    """
    # Here, since it brings the templates' engine, which inspecting and helping do without.
    from packager.container.deployment import plan_deployment

    problems = check_base(sources, base, options)
    if problems or base.origin is None or base.chat is None:
        return None, problems
    ranks = [max(source.spec.ranks) for source in sources]
    limit = find_lora_rank(max(ranks)) or LORA_RANKS[-1]
    mixed = _mixed_adapters(len(sources), limit, base.index, options)
    served = _serve_base(base, base.origin, base.chat, options, limit * mixed)
    adapters = tuple(
        ServedAdapter(
            name=source.name,
            rank=rank,
            nbytes=plan_lora(source, base.index).size,
            digest=source.digest,
            template=own_template(source.chat, base.chat),
            stop_ids=stop_ids(source.chat, base.chat),
        )
        for source, rank in zip(sources, ranks, strict=True)
    )
    plan = ServingPlan(
        vllm_version=VLLM_VERSION,
        base=served,
        adapters=adapters,
        max_lora_rank=limit,
        max_loras=mixed,
        max_cpu_loras=len(sources),
        gpu_memory_bytes=options.gpu_memory_bytes,
    )
    try:
        plan_deployment(plan)
    except InputError as problem:
        return None, [problem]
    return plan, []


def _serve_base(
    base: BaseSource, origin: Origin, chat: Chat, options: ReleaseOptions, slots: int
) -> ServedBase:
    index, shape = base.index, read_shape(base.index.config)
    return ServedBase(
        name=served_name(base),
        origin=origin,
        license=base.license,
        architecture=index.architecture,
        nbytes=index.weights_bytes,
        dtype=served_type(index, options),
        quantization=quantization_of(index),
        context=_fit_context(index, shape, options, slots),
        shape=shape,
        baked=options.bake_base,
        chat=chat.template is not None,
    )


def served_type(index: BaseIndex, options: ReleaseOptions) -> ServedType:
    """Returns the type that the server computes in: `--dtype`, else that of the base's weights."""
    if options.dtype is not None:
        return _DTYPES[options.dtype]
    known = (_DTYPES[dtype] for dtype in index.dtypes if dtype in _DTYPES)
    if quantization_of(index) is None:
        return next(known, "bfloat16")
    stated = index.config.get("dtype") or index.config.get("torch_dtype")
    return next((dtype for dtype in _DTYPES.values() if dtype == stated), "bfloat16")


def _slot_bytes(index: BaseIndex) -> int:
    """Bytes for each rank of an adapter: the engine keeps room for one on every matrix."""
    matrices = [ref for ref in index.tensors.values() if len(ref.shape) == 2]
    embeddings = (index.embedding, index.head)
    return 2 * sum(sum(ref.shape) for ref in matrices if ref not in embeddings)


def _mixed_adapters(count: int, rank: int, index: BaseIndex, options: ReleaseOptions) -> int:
    """As many as there are, as long as their room leaves enough for the base."""
    room = (options.gpu_memory_bytes or _USUAL_GPU_BYTES) // _LORA_SHARE
    return max(1, min(count, room // max(1, rank * _slot_bytes(index))))


def _fit_context(
    index: BaseIndex, shape: ModelShape | None, options: ReleaseOptions, slots: int
) -> int | None:
    """Tokens of one conversation that fit into a GPU; None leaves the measuring to the engine."""
    if options.max_model_len is not None or options.gpu_memory_bytes is None or shape is None:
        return options.max_model_len
    values = shape.latent or 2 * shape.kv_heads * shape.head_dim
    free = options.gpu_memory_bytes * _USED_SHARE - _WORKSPACE_BYTES
    free -= index.weights_bytes + slots * _slot_bytes(index)
    tokens = int(free) // (2 * values * shape.layers) // _CONTEXT_STEP * _CONTEXT_STEP
    return min(tokens, shape.context) if tokens > 0 else None
