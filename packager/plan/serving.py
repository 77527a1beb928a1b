"""A base with adapters → one server: what vLLM is started with, checked before it is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

from packager.adapter import LoraModule
from packager.base import BaseIndex
from packager.errors import (
    BaseError,
    InputError,
    LicenseError,
    LorapackError,
    UnsupportedFeatureError,
)
from packager.plan.change import HEAD_NAME
from packager.plan.layout import needs_folding
from packager.plan.option import ReleaseOptions
from packager.plan.rule import find_base_weight
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.value import PlannedFile, TargetPlan
from packager.serving.document import adapter_path, original_path, template_path
from packager.serving.engine import (
    LORA_RANKS,
    QUANTIZATIONS,
    VLLM_VERSION,
    WITHOUT_LORA,
    find_lora_rank,
)
from packager.serving.shape import ModelShape, read_shape
from packager.serving.value import (
    Chat,
    Origin,
    ServedAdapter,
    ServedBase,
    ServedFactor,
    ServedLora,
    ServedType,
    ServingPlan,
)
from packager.tensorfile import render_header, tensor_bytes

FOLDER = "vllm"
METADATA = {"format": "pt"}
_DTYPES: dict[str, ServedType] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TASKS = (None, "CAUSAL_LM")
_MERGED = "serve the merged model: --target merged"
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
    problems = [
        *_refused_features(source),
        *_check_task(source),
        *_check_tokenizer(source, base),
    ]
    rank = max(source.spec.ranks, default=0)
    if find_lora_rank(rank) is None:
        problems.append(_rank_too_large(source, rank))
    if problems:
        return None, problems
    lora = _plan_lora(source, base.index)
    name = source.name
    files = [
        PlannedFile(f"{original_path(name)}/adapter_config.json", "adapter", None),
        PlannedFile(
            f"{original_path(name)}/adapter_model.safetensors", "adapter", source.spec.weights_bytes
        ),
        PlannedFile(f"{adapter_path(name)}/adapter_config.json", "written", None),
    ]
    if _own_template(source.chat, base.chat) is not None:
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

    problems = _check_base(sources, base, options)
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
            nbytes=_plan_lora(source, base.index).size,
            digest=source.digest,
            template=_own_template(source.chat, base.chat),
            stop_ids=_stop_ids(source.chat, base.chat),
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


def _refused_features(source: AdapterSource) -> list[LorapackError]:
    return [
        UnsupportedFeatureError(
            f"vLLM {VLLM_VERSION} cannot serve feature {feature.name!r} ({feature.detail}): "
            f"{feature.support['vllm'].reason}",
            where=str(source.spec.directory),
            hint=_MERGED,
        )
        for feature in source.spec.features
        if feature.support["vllm"].status == "merge-only"
    ]


def _check_task(source: AdapterSource) -> list[LorapackError]:
    task = source.spec.config.task_type
    if task in _TASKS:
        return []
    return [
        UnsupportedFeatureError(
            "the server that is written here continues texts and conversations",
            where=str(source.spec.directory),
            expected="task_type CAUSAL_LM",
            found=str(task)[:60],
            hint="release the merged model instead: --target merged",
        )
    ]


def _rank_too_large(source: AdapterSource, rank: int) -> LorapackError:
    return UnsupportedFeatureError(
        f"vLLM {VLLM_VERSION} takes no adapter of so high a rank",
        where=str(source.spec.directory),
        expected=f"at most {LORA_RANKS[-1]}",
        found=f"rank {rank}",
        hint=_MERGED,
    )


def _check_tokenizer(source: AdapterSource, base: BaseSource) -> list[LorapackError]:
    """A server has one tokenizer: the base's."""
    own = None if source.chat is None else source.chat.tokenizer
    served = None if base.chat is None else base.chat.tokenizer
    if own is None or served is None or own == served:
        return []
    return [
        UnsupportedFeatureError(
            f"adapter {source.name!r} has another tokenizer than the base, and a vLLM server has "
            "only one: it would feed the adapter other tokens than it was trained on",
            where=str(source.spec.directory),
            expected="the tokenizer of the base",
            found="other tokens, merges or added tokens in its files",
            hint=f"{_MERGED}; or, if the difference is known to be none, take the tokenizer's "
            "files out of the adapter's folder",
        )
    ]


def _check_base(
    sources: Sequence[AdapterSource], base: BaseSource, options: ReleaseOptions
) -> list[LorapackError]:
    index, origin = base.index, base.origin
    problems: list[LorapackError] = []
    if index.architecture in WITHOUT_LORA:
        problems.append(
            UnsupportedFeatureError(
                f"vLLM {VLLM_VERSION} takes no adapters on {index.architecture}",
                where=str(index.directory),
                hint=_MERGED,
            )
        )
    quantization = _quantization(index)
    if quantization is not None and quantization not in QUANTIZATIONS:
        problems.append(
            UnsupportedFeatureError(
                f"vLLM {VLLM_VERSION} reads no weights quantised by {quantization}",
                where=str(index.directory),
                expected=", ".join(sorted(QUANTIZATIONS)),
                hint="give the 16-bit original of this base with --base, or "
                "serve the merged model: --target merged",
            )
        )
    if base.chat is None or base.chat.tokenizer is None:
        problems.append(
            BaseError(
                "the base has no tokenizer, and a server turns text into tokens",
                where=str(index.directory),
                expected="tokenizer.json or tokenizer.model",
                hint="copy the tokenizer's files of the base into its folder",
            )
        )
    if options.bake_base and origin is not None and origin.gated and not options.accept_license:
        problems.append(
            LicenseError(
                "the base is gated: its weights may be passed on only by who agreed to its licence",
                where=base.title,
                expected="--accept-license beside --bake-base",
                hint="leave --bake-base out, and the server fetches the base with a token of "
                "whoever runs it",
            )
        )
    name = _served_name(base)
    if any(source.name == name for source in sources):
        problems.append(
            InputError(
                "an adapter has the name under which the base is served",
                where=name,
                hint="name it otherwise: lorapack release NAME=ADAPTER",
            )
        )
    return [*problems, *_check_context(index, options)]


def _check_context(index: BaseIndex, options: ReleaseOptions) -> list[LorapackError]:
    shape, wanted = read_shape(index.config), options.max_model_len
    if shape is None or wanted is None or wanted <= shape.context:
        return []
    return [
        InputError(
            "the base was not made for so long a context",
            where="--max-model-len",
            expected=f"at most {shape.context}",
            found=str(wanted),
            hint="give less, or leave it out",
        )
    ]


def _plan_lora(source: AdapterSource, base: BaseIndex) -> ServedLora:
    """Plans the form in which every loader computes what PEFT does.

    The scale is folded only where loaders disagree about it. Folding keeps the type of the values
    where it is exact, by a power of two, and else takes float32: B is then rounded once.
    """
    folded = needs_folding(source)
    rank = max(source.spec.ranks)
    factors: list[ServedFactor] = []
    for module in source.spec.modules.values():
        stored = f"base_model.model.{_stored_module(module, base)}"
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


def _stored_module(module: LoraModule, base: BaseIndex) -> str:
    """Returns the name by which the base's file knows a module: what servers map names from.

    Source: vLLM 0.32.0, vllm/lora/utils.py, parse_fine_tuned_lora_name: an adapter's names go
    through the same mapping as those of the base's weights.
    """
    ref = find_base_weight(module, base)
    if ref is None or f"{module.module}.weight" == HEAD_NAME:
        return module.module
    return ref.name.removesuffix(".weight")


def _folded_dtype(dtype: str, scale: float) -> str:
    if scale == 1 or dtype == "F64":
        return dtype
    # A power of two moves only the exponent, of which float16 has too little to spare.
    exact = math.frexp(scale)[0] in (0.5, -0.5)
    return dtype if exact and dtype != "F16" else "F32"


def _own_template(own: Chat | None, base: Chat | None) -> str | None:
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


def _stop_ids(own: Chat | None, base: Chat) -> tuple[int, ...]:
    return tuple(token for token in own.end_ids if token not in base.end_ids) if own else ()


def _served_name(base: BaseSource) -> str:
    if base.origin is not None and base.origin.repo is not None:
        return base.origin.repo
    return base.index.directory.name


def _serve_base(
    base: BaseSource, origin: Origin, chat: Chat, options: ReleaseOptions, slots: int
) -> ServedBase:
    index, shape = base.index, read_shape(base.index.config)
    return ServedBase(
        name=_served_name(base),
        origin=origin,
        license=base.license,
        architecture=index.architecture,
        nbytes=index.weights_bytes,
        dtype=served_type(index, options),
        quantization=_quantization(index),
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
    if _quantization(index) is None:
        return next(known, "bfloat16")
    stated = index.config.get("dtype") or index.config.get("torch_dtype")
    return next((dtype for dtype in _DTYPES.values() if dtype == stated), "bfloat16")


def _quantization(index: BaseIndex) -> str | None:
    quantized = index.config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    return None if method is None else str(method)[:60]


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
