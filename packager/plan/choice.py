"""Choices as a manifest keeps them, so that a bundle is planned again as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

from packager.errors import BundleError, InputError
from packager.gguf.mixture import parse_quant
from packager.gguf.value import GgufKey
from packager.manifest import Target
from packager.plan.option import (
    DEFAULT_QUANTS,
    HubQuant,
    LoraType,
    MergeBase,
    ReleaseOptions,
)
from packager.quantisation.training import LoadedIn
from packager.record import build_record
from packager.serving.engine import VLLM_VERSION

_MAX_BYTES = 1 << 60


def record_choices(options: ReleaseOptions, targets: set[Target]) -> dict[str, str]:
    """Returns what a plan of these targets depends on, as a manifest keeps it."""
    choices = {
        "dtype": options.dtype or "",
        "merge_base": options.merge_base or "",
        "loaded_in": options.loaded_in or "",
        "combination": options.combination,
    }
    if "merged" in targets:
        choices["hub_quant"] = options.hub_quant or ""
    if "ollama" in targets:
        keys = options.imatrix_keys
        choices |= {
            "quants": ",".join(options.quants),
            "max_gguf_bytes": str(options.max_gguf_bytes or ""),
            "imatrix_keys": "" if keys is None else json.dumps([asdict(key) for key in keys]),
            "system": options.system,
            # Not its folder, which is of no use to others: that one took part.
            "llama_cpp": "yes" if options.llama_cpp else "",
        }
    if "gguf-adapter" in targets:
        choices["adapter_type"] = options.adapter_type
    if "vllm" in targets:
        choices |= {
            "vllm_version": VLLM_VERSION,
            "bake_base": "yes" if options.bake_base else "",
            "accept_license": "yes" if options.accept_license else "",
            "max_model_len": str(options.max_model_len or ""),
            "gpu_memory_bytes": str(options.gpu_memory_bytes or ""),
        }
    return {name: text for name, text in choices.items() if text}


def recall_choices(
    choices: Mapping[str, str], targets: tuple[Target, ...], *, where: str
) -> ReleaseOptions:
    """Returns the options that `record_choices` was given, for these targets.

    Raises:
        BundleError: A choice is not one.
    """
    try:
        return ReleaseOptions(
            targets=targets,
            dtype=choices.get("dtype"),
            quants=tuple(map(parse_quant, choices["quants"].split(",")))
            if "quants" in choices
            else DEFAULT_QUANTS,
            max_gguf_bytes=_count(choices.get("max_gguf_bytes")),
            imatrix_keys=_keys(choices.get("imatrix_keys")),
            adapter_type=_adapter_type(choices.get("adapter_type", "F32")),
            llama_cpp=choices.get("llama_cpp", ""),
            system=choices.get("system", ""),
            combination=choices.get("combination", ""),
            bake_base="bake_base" in choices,
            accept_license="accept_license" in choices,
            max_model_len=_count(choices.get("max_model_len")),
            gpu_memory_bytes=_count(choices.get("gpu_memory_bytes")),
            merge_base=_one_of(MergeBase, "merge_base", choices),
            loaded_in=_one_of(LoadedIn, "loaded_in", choices),
            hub_quant=_one_of(HubQuant, "hub_quant", choices),
        )
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as problem:
        raise BundleError(
            "the manifest is damaged",
            where=where,
            expected="options as a release writes them",
            found=str(problem)[:200],
            hint="copy the bundle again, or release it again",
        ) from problem


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) < _MAX_BYTES:
        raise ValueError(f"a number {text[:40]!r}")
    return int(text)


def _keys(text: str | None) -> tuple[GgufKey, ...] | None:
    if text is None:
        return None
    return tuple(build_record(GgufKey, item) for item in json.loads(text))


def _one_of(kinds: Any, name: str, choices: Mapping[str, str]) -> Any:
    text = choices.get(name)
    if text is None or text in get_args(kinds):
        return text
    raise ValueError(f"{name} {text[:40]!r}")


def _adapter_type(text: str) -> LoraType:
    for known in get_args(LoraType):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"adapter_type {text[:40]!r}")
