"""Adapters and their base → servers: what vLLM is started with, checked before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from packager.base import BaseIndex
from packager.errors import InputError, LorapackError
from packager.plan.option import ReleaseOptions
from packager.plan.preflight import (
    check_adapter,
    check_base,
    check_task,
    quantization_of,
    served_name,
)
from packager.plan.servedadapter import own_template, plan_lora, stop_ids
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.target import TargetPlan
from packager.plan.value import PlannedFile
from packager.plan.whole import SERVED_TYPES, Whole, name_services, plan_whole, serve_whole
from packager.serving.engine import LORA_RANKS, VLLM_VERSION, find_lora_rank
from packager.serving.path import adapter_path, neighbour_path, original_path, template_path
from packager.serving.shape import ModelShape, read_shape
from packager.serving.share import USED_SHARE, WORKSPACE_BYTES, share_memory
from packager.serving.value import (
    Chat,
    Origin,
    ServedAdapter,
    ServedBase,
    ServedType,
    ServingPlan,
)

FOLDER = "vllm"
_LORA_SHARE = 8
"""Adapters that are mixed in one step take at most this part of the memory of a GPU."""
_USUAL_GPU_BYTES = 24_000_000_000
_CONTEXT_STEP = 1024


def plan_vllm(
    source: AdapterSource, base: BaseSource, merged: TargetPlan | None
) -> tuple[TargetPlan | None, list[LorapackError]]:
    """Plans what the server's folder holds of one adapter.

    Args:
        source: The adapter.
        base: Its base.
        merged: Its merged model, which is served where the adapter cannot be, or None.

    Returns:
        The target, and every reason why vLLM cannot serve the adapter itself: then it is that of
        the merged model, or None.
    """
    problems, reasons = check_task(source), check_adapter(source, base)
    if problems or (reasons and merged is None):
        return None, [*reasons, *problems]
    if reasons and merged is not None:
        whole, problems = plan_whole(source, merged, FOLDER, reasons)
        return whole, [*reasons, *problems]
    return _plan_served(source, base), []


def _plan_served(source: AdapterSource, base: BaseSource) -> TargetPlan:
    """What stands there of an adapter that is served itself."""
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
    return TargetPlan("vllm", name, FOLDER, (), tuple(files), served=lora)


def plan_servers(
    targets: Sequence[TargetPlan],
    adapters: Sequence[AdapterSource],
    base: BaseSource,
    options: ReleaseOptions,
) -> tuple[tuple[TargetPlan, ...], ServingPlan | None, list[LorapackError]]:
    """Plans the servers of a release.

    Args:
        targets: Of the release.
        adapters: Likewise.
        base: Likewise.
        options: Likewise.

    Returns:
        The targets, of which those that are served merged have found their folder, and none is
        served where there cannot be a server; the first server, or None without one; and every
        reason why there cannot be one.
    """
    by_name = {source.name: source for source in adapters}
    served = [by_name[item.name] for item in targets if item.served is not None]
    merged = {item.name: item for item in targets if item.target == "merged"}
    wholes = [
        Whole(by_name[item.name], merged[item.name], item.whole)
        for item in targets
        if item.whole is not None
    ]
    if not served and not wholes:
        return tuple(targets), None, []
    beside = [whole.source.name for whole in (wholes if served else wholes[1:])]
    placed = tuple(
        replace(item, path=f"{FOLDER}/{neighbour_path(item.name)}")
        if item.whole is not None and item.name in beside
        else item
        for item in targets
    )
    first, problems = plan_serving(served, base, options, wholes)
    kept = tuple(item for item in placed if item.target != "vllm" or first is not None)
    return kept, first, problems


def plan_serving(
    sources: Sequence[AdapterSource],
    base: BaseSource,
    options: ReleaseOptions,
    wholes: Sequence[Whole] = (),
) -> tuple[ServingPlan | None, list[LorapackError]]:
    """Plans the servers of adapters that `plan_vllm` had no objection to.

    Args:
        sources: Served on the base.
        base: Their base.
        options: Of the release.
        wholes: Served merged.

    Returns:
        The first server, or None and every reason why there cannot be one.
    """
    problems = check_base([*sources, *(whole.source for whole in wholes)], base, options)
    if problems or base.origin is None or base.chat is None:
        return None, problems
    index, memory = base.index, options.gpu_memory_bytes
    rank = max((max(source.spec.ranks) for source in sources), default=0)
    limit = find_lora_rank(rank) or LORA_RANKS[-1]
    mixed = _mixed_adapters(len(sources), limit, index, options)
    loads = [index.weights_bytes + limit * mixed * _slot_bytes(index)] if sources else []
    loads += [whole.nbytes for whole in wholes]
    shares = share_memory(loads, memory)
    servers: list[ServingPlan] = []
    if sources:
        context = _fit_context(read_shape(index.config), options, loads[0], shares[0])
        loaded = _serve_base(base, base.origin, base.chat, options, context)
        servers.append(_serve_adapters(sources, base, base.chat, loaded, limit, mixed))
    for place, whole in enumerate(wholes, len(servers)):
        context = _fit_context(whole.read_shape(base), options, loads[place], shares[place])
        loaded = serve_whole(whole, base, base.origin, options, context)
        servers.append(ServingPlan(VLLM_VERSION, loaded, (), 0, 0, 0, None))
    names = [server.base.name for server in servers]
    # Nobody looks for the first: it is what all others are behind.
    services = ("", *name_services(names[0], names[1:]))
    first, *others = (
        replace(server, gpu_memory_bytes=memory, gpu_share=share, service=service)
        for server, share, service in zip(servers, shares, services, strict=True)
    )
    plan = replace(first, neighbours=tuple(others))
    problem = _misfit(plan)
    return (plan, []) if problem is None else (None, [problem])


def _misfit(plan: ServingPlan) -> LorapackError | None:
    """Returns why one of the servers fits on no number of GPUs, or None where all do."""
    # Here, since it brings the templates' engine, which inspecting and helping do without.
    from packager.container.deployment import plan_deployment

    try:
        for server in (plan, *plan.neighbours):
            plan_deployment(server)
    except InputError as problem:
        return problem
    return None


def _serve_adapters(
    sources: Sequence[AdapterSource],
    base: BaseSource,
    chat: Chat,
    loaded: ServedBase,
    limit: int,
    mixed: int,
) -> ServingPlan:
    """The server of adapters on their base, before its place among others is known."""
    adapters = tuple(
        ServedAdapter(
            name=source.name,
            rank=max(source.spec.ranks),
            nbytes=plan_lora(source, base.index).size,
            digest=source.digest,
            template=own_template(source.chat, chat),
            stop_ids=stop_ids(source.chat, chat),
        )
        for source in sources
    )
    return ServingPlan(VLLM_VERSION, loaded, adapters, limit, mixed, len(sources), None)


def _serve_base(
    base: BaseSource, origin: Origin, chat: Chat, options: ReleaseOptions, context: int | None
) -> ServedBase:
    index = base.index
    return ServedBase(
        name=served_name(base),
        origin=origin,
        license=base.license,
        architecture=index.architecture,
        nbytes=index.weights_bytes,
        dtype=served_type(index, options),
        quantization=quantization_of(index),
        context=context,
        shape=read_shape(index.config),
        baked=options.bake_base,
        chat=chat.template is not None,
    )


def served_type(index: BaseIndex, options: ReleaseOptions) -> ServedType:
    """Returns the type that the server computes in: `--dtype`, else that of the base's weights."""
    if options.dtype is not None:
        return SERVED_TYPES[options.dtype]
    known = (SERVED_TYPES[dtype] for dtype in index.dtypes if dtype in SERVED_TYPES)
    if quantization_of(index) is None:
        return next(known, "bfloat16")
    stated = index.config.get("dtype") or index.config.get("torch_dtype")
    return next((dtype for dtype in SERVED_TYPES.values() if dtype == stated), "bfloat16")


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
    shape: ModelShape | None, options: ReleaseOptions, load: int, share: float | None
) -> int | None:
    """Tokens of one conversation that fit into a GPU; None leaves the measuring to the engine."""
    if options.max_model_len is not None or options.gpu_memory_bytes is None or shape is None:
        return options.max_model_len
    values = shape.latent or 2 * shape.kv_heads * shape.head_dim
    free = options.gpu_memory_bytes * (share or USED_SHARE) - WORKSPACE_BYTES - load
    tokens = int(free) // (2 * values * shape.layers) // _CONTEXT_STEP * _CONTEXT_STEP
    return min(tokens, shape.context) if tokens > 0 else None
