"""What vLLM cannot serve, said before anything is written, with the way out."""

from __future__ import annotations

from collections.abc import Sequence

from packager.base import BaseIndex
from packager.errors import (
    BaseError,
    InputError,
    LicenseError,
    LorapackError,
    UnsupportedFeatureError,
)
from packager.plan.option import ReleaseOptions
from packager.plan.rule import count_embedding_rows
from packager.plan.source import AdapterSource, BaseSource
from packager.serving.engine import (
    LORA_RANKS,
    QUANTIZATIONS,
    VLLM_VERSION,
    WITHOUT_LORA,
    find_lora_rank,
)
from packager.serving.shape import read_shape

_SHOWN = 3
_TASKS = (None, "CAUSAL_LM")
_MERGED = "add --target merged: its merged model is then served as a whole"


def check_adapter(source: AdapterSource, base: BaseSource) -> list[LorapackError]:
    """Returns every reason why vLLM cannot serve an adapter on its base."""
    problems = [
        *_check_carries(base.index),
        *_refused_features(source),
        *_check_vocabulary(source, base.index),
        *_check_tokenizer(source, base),
    ]
    rank = max(source.spec.ranks, default=0)
    if find_lora_rank(rank) is None:
        problems.append(_rank_too_large(source, rank))
    left = _left_over(source)
    if left and not problems:
        problems.append(_not_carried(source, left))
    return problems


def check_base(
    sources: Sequence[AdapterSource], base: BaseSource, options: ReleaseOptions
) -> list[LorapackError]:
    """Returns every reason why there cannot be a server of a base and its adapters.

    Args:
        sources: All that it answers as, on the base or merged.
        base: Their base.
        options: Of the release.
    """
    index, origin = base.index, base.origin
    problems: list[LorapackError] = []
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
    name = served_name(base)
    if any(source.name == name for source in sources):
        problems.append(
            InputError(
                "an adapter has the name under which the base is served",
                where=name,
                hint="name it otherwise: lorapack release NAME=ADAPTER",
            )
        )
    return [*problems, *_check_context(index, options)]


def served_name(base: BaseSource) -> str:
    """Returns the name under which the base answers: on the Hub its own, else its folder's."""
    if base.origin is not None and base.origin.repo is not None:
        return base.origin.repo
    return base.index.directory.name


def quantization_of(index: BaseIndex) -> str | None:
    """Returns how the base's weights are stored, as its configuration names it."""
    quantized = index.config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    return None if method is None else str(method)[:60]


def _check_carries(index: BaseIndex) -> list[LorapackError]:
    """What keeps vLLM from serving any adapter on a base."""
    problems: list[LorapackError] = []
    if index.architecture in WITHOUT_LORA:
        problems.append(
            UnsupportedFeatureError(
                f"vLLM {VLLM_VERSION} takes no adapters on {index.architecture}",
                where=str(index.directory),
                hint=_MERGED,
            )
        )
    quantization = quantization_of(index)
    if quantization is not None and quantization not in QUANTIZATIONS:
        problems.append(
            UnsupportedFeatureError(
                f"vLLM {VLLM_VERSION} reads no weights quantised by {quantization}",
                where=str(index.directory),
                expected=", ".join(sorted(QUANTIZATIONS)),
                hint=f"give the 16-bit original of this base with --base, or {_MERGED}",
            )
        )
    return problems


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


def _left_over(source: AdapterSource) -> list[str]:
    """Tensors of the adapter that would not reach the server."""
    spec = source.spec
    used = {ref.name for refs in spec.frozen.values() for ref in refs}
    for module in spec.modules.values():
        if module.is_pair and not module.embedding:
            used |= {module.lora_a.name, module.lora_b.name}
    return [ref.name for ref in spec.tensors if ref.name not in used]


def _not_carried(source: AdapterSource, left: list[str]) -> LorapackError:
    return UnsupportedFeatureError(
        f"{len(left)} tensors of the adapter have no place in what vLLM {VLLM_VERSION} loads",
        where=str(source.spec.directory),
        expected="pairs of linear layers",
        found=", ".join(left[:_SHOWN]),
        hint=_MERGED,
    )


def check_task(source: AdapterSource) -> list[LorapackError]:
    """Returns why neither an adapter nor its merged model can be served, or nothing."""
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


def _check_vocabulary(source: AdapterSource, base: BaseIndex) -> list[LorapackError]:
    rows = count_embedding_rows(source, base)
    if base.embedding is None or rows == base.embedding.shape[0]:
        return []
    return [
        UnsupportedFeatureError(
            f"vLLM {VLLM_VERSION} serves no adapter with a vocabulary of another size than the "
            "base's",
            where=str(source.spec.directory),
            expected=f"{base.embedding.shape[0]} rows of the embedding",
            found=str(rows),
            hint=_MERGED,
        )
    ]


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
