"""Every feature of an adapter by name, and which target can carry it."""

from __future__ import annotations

from dataclasses import replace

from packager.adapter.config import AdapterConfig
from packager.adapter.featurerule import (
    GGUF_FOLDS,
    GGUF_LACKS,
    MERGES,
    NEUTRAL_FIELDS,
    NOT_MERGED,
    OF_TENSORS,
    OLLAMA_MERGES,
    ROWS,
    RULES,
    SERVED,
    FeatureRule,
    impossible,
    refused,
    shorten,
)
from packager.adapter.support import Feature, Support
from packager.adapter.tuner import BY_ROWS, FIELDS, WHOLE_MODULE, why_not_merged
from packager.manifest import Target


def find_features(config: AdapterConfig) -> tuple[Feature, ...]:
    """Names every feature that the configuration uses, known or not.

    Returns:
        The tuner itself first, then what departs from plain LoRA, in a fixed order.
    """
    if config.peft_type != "LORA":
        return _other_tuner(config)
    plain = Feature(
        "lora",
        f"rank {config.rank}, alpha {config.alpha:g}",
        _support(FeatureRule("lora", lambda _: None, MERGES, SERVED)),
    )
    found = [plain]
    for rule in RULES:
        detail = rule.detect(config)
        if detail is not None:
            found.append(Feature(rule.name, detail, _support(rule)))
    return (*found, *_unknown_fields(config))


def tensor_feature(name: str, detail: str) -> Feature:
    """Returns a feature that only the tensors show, such as LoRA on an embedding.

    Source of what is served: vLLM 0.32.0, vllm/lora/utils.py, is_base_embedding_weights: weights
    of the base are passed over at load.
    """
    rule = OF_TENSORS.get(name) or FeatureRule(name, str, NOT_MERGED, refused())
    return Feature(name, detail, _support(rule))


def _support(rule: FeatureRule) -> dict[Target, Support]:
    merges = rule.merged.status == "works"
    return {
        "adapter": rule.adapter,
        "merged": rule.merged,
        "ollama": OLLAMA_MERGES if merges else rule.merged,
        "gguf-adapter": GGUF_FOLDS if merges and rule.in_pairs else GGUF_LACKS,
        "vllm": rule.vllm,
    }


def _other_tuner(config: AdapterConfig) -> tuple[Feature, ...]:
    """The tuner itself, and what is trained beside it."""
    reason = why_not_merged(config.peft_type)
    merged = Support("works", WHOLE_MODULE) if reason is None else impossible(reason)
    served = refused("LoRA only")
    if config.peft_type == BY_ROWS:
        merged, served = ROWS, refused("no adapter can bring token rows")
    tuner = FeatureRule(config.peft_type.lower(), str, merged, served, in_pairs=False)
    found = [Feature(tuner.name, "another tuner than LoRA", _support(tuner))]
    for rule in RULES:
        detail = rule.detect(config) if rule.name in _BESIDE_TUNERS else None
        if detail is not None:
            unmerged = FIELDS.get(rule.name)
            own = rule if unmerged is None else replace(rule, merged=impossible(unmerged))
            found.append(Feature(rule.name, detail, _support(own)))
    return tuple(found)


_BESIDE_TUNERS = frozenset({"modules_to_save", "bias", *FIELDS})


def _unknown_fields(config: AdapterConfig) -> list[Feature]:
    unknown = sorted(
        key
        for key, value in config.raw.items()
        if key not in NEUTRAL_FIELDS and value not in (None, False, [], {}, "")
    )
    reason = "a field that this version does not know may change what the adapter computes"
    return [
        Feature(
            key,
            shorten(config.raw[key]),
            {
                "adapter": Support("works", "PEFT loads it as trained, if it knows the field"),
                "merged": Support("not possible", reason),
                "ollama": Support("not possible", reason),
                "gguf-adapter": Support("not possible", reason),
                "vllm": Support("not possible", reason),
            },
        )
        for key in unknown
    ]
