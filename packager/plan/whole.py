"""A merged model that a server loads as a whole, where vLLM cannot serve the adapter itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from packager.dtype import MERGEABLE
from packager.errors import LorapackError, UnsupportedFeatureError
from packager.filekind import is_chat_template
from packager.plan.layout import tokenizer_files
from packager.plan.option import ReleaseOptions
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.target import TargetPlan
from packager.serving.engine import VLLM_VERSION
from packager.serving.path import merged_folder
from packager.serving.shape import ModelShape, read_shape
from packager.serving.value import Origin, ServedBase, ServedMerge, ServedType

SERVED_TYPES: dict[str, ServedType] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TOKENIZER_CONFIG = "tokenizer_config.json"
_LABEL_CHARS = 40
_DIGITS = 8


@dataclass(frozen=True)
class Whole:
    """An adapter that is served merged.

    Attributes:
        source: The adapter.
        model: Its merged model.
        served: As which the plan of its server names it.
    """

    source: AdapterSource
    model: TargetPlan
    served: ServedMerge

    @property
    def nbytes(self) -> int:
        """Bytes of the merged model's weights."""
        return sum(shard.nbytes for shard in self.model.shards)

    def read_shape(self, base: BaseSource) -> ModelShape | None:
        """Returns the sizes of the merged model: the base's, but for what the adapter changed."""
        shape = read_shape(base.index.config)
        if shape is None:
            return None
        return replace(
            shape,
            vocabulary=self.model.vocab_rows or shape.vocabulary,
            layers=len(self.model.layers) or shape.layers,
        )


def plan_whole(
    source: AdapterSource, merged: TargetPlan, folder: str, reasons: Sequence[LorapackError]
) -> tuple[TargetPlan | None, list[LorapackError]]:
    """Plans what a server's folder holds of an adapter that is served merged: nothing of its own.

    Args:
        source: The adapter.
        merged: Its merged model.
        folder: Of the servers.
        reasons: Why vLLM cannot serve the adapter itself.

    Returns:
        The target, or None and every reason why vLLM cannot serve the merged model either.
    """
    if any(tensor.four_bit is not None for tensor in merged.tensors):
        return None, [
            UnsupportedFeatureError(
                f"vLLM {VLLM_VERSION} reads no weights quantised by bitsandbytes, as the merged "
                f"model of {source.name!r} is to be",
                where="--quantize-hub",
                hint="leave --quantize-hub out, or --target vllm",
            )
        ]
    why = "; ".join(reason.what for reason in reasons)
    whole = ServedMerge(source.name, source.digest, merged_folder(source.name), why)
    return TargetPlan("vllm", source.name, folder, (), (), whole=whole), []


def serve_whole(
    whole: Whole, base: BaseSource, origin: Origin, options: ReleaseOptions, context: int | None
) -> ServedBase:
    """Returns a merged model as a server loads it.

    Args:
        whole: The model.
        base: What it was merged onto.
        origin: Where that can be had.
        options: Of the release.
        context: Most tokens of a prompt with its answer, or None for what the model says.
    """
    task = whole.model.task
    return ServedBase(
        name=whole.source.name,
        origin=origin,
        license=base.license,
        architecture=base.index.architecture if task is None else task.architecture,
        nbytes=whole.nbytes,
        dtype=_served_type(whole.model),
        quantization=None,
        context=context,
        shape=whole.read_shape(base),
        baked=options.bake_base,
        chat=_takes_conversations(whole.source, base),
        merged=whole.served,
    )


def name_services(front: str, names: Sequence[str]) -> tuple[str, ...]:
    """Returns names by which a server finds its neighbours: labels of DNS, all different.

    Args:
        front: What the server loads.
        names: Of the models of its neighbours.
    """
    # Here, since it brings the templates' engine, which inspecting and helping do without.
    from packager.container.label import resource_name

    services = [resource_name(front)]
    for name in names:
        service = resource_name(f"{services[0]}-{name}")
        # What differs only in signs that a label cannot have gets a digest besides.
        if service in services:
            digest = hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]
            service = f"{service[: _LABEL_CHARS - _DIGITS - 1].rstrip('-')}-{digest}"
        services.append(service)
    return tuple(services[1:])


def _served_type(merged: TargetPlan) -> ServedType:
    """The type that most of the weights have."""
    totals: dict[str, int] = {}
    for tensor in merged.tensors:
        if tensor.dtype in MERGEABLE:
            totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    most = max(totals, key=lambda dtype: totals[dtype]) if totals else "BF16"
    return SERVED_TYPES.get(most, "float32")


def _takes_conversations(source: AdapterSource, base: BaseSource) -> bool:
    """Whether the tokenizer beside the merged weights has a chat template."""
    if source.chat is not None and source.chat.template is not None:
        return True
    kept = [file.path for file in tokenizer_files(source, base) if file.origin == "base"]
    has_place = any(is_chat_template(name) or name == _TOKENIZER_CONFIG for name in kept)
    return has_place and base.chat is not None and base.chat.template is not None
