"""Keys that tell where a model comes from, under which licence, and how to sample from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from packager.errors import InputError
from packager.gguf.value import GgufKey, GgufTensor, KeyType

_MAX_INT32 = (1 << 31) - 1
_MAX_FLOAT32 = 3.4e38

# Source: llama.cpp 0c1e57098, gguf-py/gguf/metadata.py: setting in generation_config.json → key.
_SAMPLING: tuple[tuple[str, str, KeyType], ...] = (
    ("top_k", "top_k", "int32"),
    ("top_p", "top_p", "float32"),
    ("min_p", "min_p", "float32"),
    ("xtc_probability", "xtc_probability", "float32"),
    ("xtc_threshold", "xtc_threshold", "float32"),
    ("temperature", "temp", "float32"),
    ("penalty_last_n", "penalty_last_n", "int32"),
    ("penalty_repeat", "penalty_repeat", "float32"),
    ("mirostat", "mirostat", "int32"),
    ("mirostat_tau", "mirostat_tau", "float32"),
    ("mirostat_eta", "mirostat_eta", "float32"),
)


@dataclass(frozen=True)
class GeneralFacts:
    """What a release knows of a model besides its weights.

    Attributes:
        name: Of the model.
        license: Hub id, or empty.
        license_name: For a licence that is `other`.
        license_link: Likewise: a web address or a file's name.
        base_repo: `org/name` of the base on the Hub, or empty.
        base_commit: Its 40 hexadecimal digits, or empty.
        base_digest: `sha256:<hex>` of the base's files, or empty.
        adapter_digest: `sha256:<hex>` of the adapter's files, or empty.
        tags: As a card has them.
        languages: Likewise.
    """

    name: str
    license: str = ""
    license_name: str = ""
    license_link: str = ""
    base_repo: str = ""
    base_commit: str = ""
    base_digest: str = ""
    adapter_digest: str = ""
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


def general_keys(facts: GeneralFacts, tensors: Iterable[GgufTensor]) -> tuple[GgufKey, ...]:
    """Returns the keys of a model's origin; what is not known has no key.

    Those below `lorapack.` are this program's own.

    Source: ggml docs/gguf.md, "General metadata"; llama.cpp 0c1e57098, gguf-py/gguf/constants.py.

    Args:
        facts: What is known.
        tensors: Of the model, for the label of its size.
    """
    organization, _, base = facts.base_repo.rpartition("/")
    texts = {
        "general.type": "model",
        "general.name": facts.name,
        "general.size_label": size_label(tensors),
        "general.license": facts.license,
        "general.license.name": facts.license_name,
        "general.license.link": facts.license_link,
        "general.base_model.0.name": base,
        "general.base_model.0.organization": organization,
        "general.base_model.0.version": facts.base_commit if base else "",
        "general.base_model.0.repo_url": base and f"https://huggingface.co/{facts.base_repo}",
        "lorapack.base.repo": facts.base_repo,
        "lorapack.base.commit": facts.base_commit,
        "lorapack.base.digest": facts.base_digest,
        "lorapack.adapter.digest": facts.adapter_digest,
    }
    keys = [GgufKey(name, "string", text) for name, text in texts.items() if text]
    if base:
        keys.append(GgufKey("general.base_model.count", "uint32", 1))
    for name, values in (("tags", facts.tags), ("languages", facts.languages)):
        if values:
            keys.append(GgufKey(f"general.{name}", "string", values))
    return tuple(keys)


def sampling_keys(generation_config: Mapping[str, Any]) -> tuple[GgufKey, ...]:
    """Returns the keys of `generation_config.json`'s sampling settings.

    Raises:
        InputError: A setting is not a number that its key holds.
    """
    stated = dict(generation_config)
    if stated.get("penalty_repeat") is None:
        stated["penalty_repeat"] = stated.get("repetition_penalty")
    keys = []
    for setting, name, kind in _SAMPLING:
        value = stated.get(setting)
        if value is None:
            continue
        if not _fits(value, kind):
            raise InputError(
                "the sampling settings cannot be written as GGUF",
                where=f"generation_config.json: {setting}",
                expected="a whole number" if kind == "int32" else "a number",
                found=repr(value)[:80],
                hint="correct generation_config.json",
            )
        keys.append(GgufKey(f"general.sampling.{name}", kind, value))
    return tuple(keys)


def size_label(tensors: Iterable[GgufTensor]) -> str:
    """Returns how large a model is, such as `1.2B` or, with experts, `8x7B`.

    Source: llama.cpp 0c1e57098, gguf-py/gguf/utility.py (`size_label`) and gguf_writer.py
    (`get_total_parameter_count`): the parameters of one expert of each kind are counted.
    """
    total, experts = 0, set()
    for tensor in tensors:
        size = math.prod(tensor.shape)
        if "_exps." in tensor.name:
            experts.add(tensor.shape[0])
            size //= tensor.shape[0]
        total += size
    prefix = f"{max(experts)}x" if experts else ""
    for limit, unit, letter in ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M")):
        if total > limit:
            return prefix + _rounded(total * unit, letter)
    return prefix + _rounded(total * 1e-3, "K")


def _rounded(value: float, letter: str) -> str:
    digits = max(2 - len(str(round(value)).lstrip("0")), 0)
    return f"{value:.{digits}f}{letter}"


def _fits(value: Any, kind: KeyType) -> bool:
    if kind == "int32":
        return type(value) is int and -_MAX_INT32 <= value <= _MAX_INT32
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and -_MAX_FLOAT32 <= value <= _MAX_FLOAT32
