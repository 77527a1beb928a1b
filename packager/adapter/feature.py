"""Every feature of an adapter by name, and which target can carry it.

Sources: PEFT 0.21, src/peft/tuners/lora/config.py and mapping of PeftType; vLLM 0.32.0,
vllm/lora/peft_helper.py and vllm/lora/lora_model.py (what is refused at load); Ollama 0.34.1,
server/create.go (adapters are no longer taken, so only a merged model can be shipped).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from packager.adapter.config import AdapterConfig
from packager.adapter.scope import residual_kind
from packager.adapter.tuner import FIELDS, WHOLE_MODULE, why_not_merged
from packager.manifest import Target

Status = Literal["works", "normalised", "merge-only", "not possible"]
TARGETS: tuple[Target, ...] = ("adapter", "merged", "ollama", "gguf-adapter", "vllm")

VLLM_CHECKED = "vLLM 0.32.0"


@dataclass(frozen=True)
class Support:
    """What becomes of a feature in a target, and why."""

    status: Status
    reason: str


@dataclass(frozen=True)
class Feature:
    """A feature that this adapter uses.

    Attributes:
        name: As PEFT calls it.
        detail: Its value in this adapter, short.
        support: Target → what becomes of it.
    """

    name: str
    detail: str
    support: Mapping[Target, Support]


Detector = Callable[[AdapterConfig], str | None]


@dataclass(frozen=True)
class _Rule:
    name: str
    detect: Detector
    merged: Support
    vllm: Support
    adapter: Support = Support("works", "PEFT loads it as trained")
    in_pairs: bool = True
    """Whether pairs of linear layers hold all of it, as a GGUF LoRA does."""


_MERGES = Support("works", "merged in float32, rounded once")
_REPLACED = Support("works", "the trained tensors take the place of the base's")
_ROWS = Support("works", "the trained rows take the place of the base's")
_TIED = Support("works", "embedding and head stay one tensor")
_AS_LORA = Support("works", "after training it is plain LoRA, and merged as such")
_REPEATED = Support("works", "what was taken out of the base is worked out again, and merged")
_BLOCKS = Support("works", "its blocks are put on their diagonals, and merged")
_SWAPPED = Support("works", "merged the way round in which the base stores the weight")
_OLLAMA_MERGES = Support("works", "merged into the GGUF, since Ollama takes no adapters")
_GGUF_FOLDS = Support("normalised", "the scale is folded into B; llama-server --lora loads it")
_GGUF_LACKS = Support("not possible", "a GGUF LoRA holds pairs of linear layers only")
_NOT_MERGED = Support("not possible", "this version of lorapack does not merge it")
_SERVED = Support("works", f"served as it is ({VLLM_CHECKED})")
_FOLDED = Support("normalised", "the scale is folded into lora_B, so no server can misread it")
_KEEPS_BOTH = Support(
    "normalised", "as trained, and a form with the scale folded in for loaders that ignore it"
)


def _refused(why: str = "refused at load") -> Support:
    return Support("merge-only", f"{why} ({VLLM_CHECKED}); serve the merged model")


def _impossible(why: str) -> Support:
    return Support("not possible", why)


def _flag(key: str) -> Detector:
    return lambda config: "true" if config.raw.get(key) else None


def _filled(key: str) -> Detector:
    def detect(config: AdapterConfig) -> str | None:
        value = config.raw.get(key)
        return _short(value) if value else None

    return detect


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, dict)) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _bias(config: AdapterConfig) -> str | None:
    value = config.raw.get("bias", "none")
    return None if value in ("none", None) else _short(value)


_BASE_KEEPING_INITS = (True, False, "true", "false", "gaussian", "orthogonal", "eva", "mica", None)


def _base_changing_init(config: AdapterConfig) -> str | None:
    value = config.raw.get("init_lora_weights", True)
    known = value in _BASE_KEEPING_INITS or _repeatable_init(config) is not None
    return None if known else _short(value)


def _repeatable_init(config: AdapterConfig) -> str | None:
    kind = residual_kind(config)
    return kind if kind in ("olora", "pissa") else None


def _regex_targets(config: AdapterConfig) -> str | None:
    return _short(config.target_modules) if isinstance(config.target_modules, str) else None


def _layers(config: AdapterConfig) -> str | None:
    return _short(list(config.layers_to_transform)) if config.layers_to_transform else None


_RULES: tuple[_Rule, ...] = (
    _Rule("rslora", _flag("use_rslora"), _MERGES, _FOLDED, _KEEPS_BOTH),
    _Rule("rank_pattern", _filled("rank_pattern"), _MERGES, _FOLDED, _KEEPS_BOTH),
    _Rule("alpha_pattern", _filled("alpha_pattern"), _MERGES, _FOLDED, _KEEPS_BOTH),
    _Rule("layers_to_transform", _layers, _MERGES, _SERVED),
    _Rule("exclude_modules", _filled("exclude_modules"), _MERGES, _SERVED),
    _Rule("regex target_modules", _regex_targets, _MERGES, _SERVED),
    _Rule("dora", _flag("use_dora"), _MERGES, _refused(), in_pairs=False),
    _Rule("modules_to_save", _filled("modules_to_save"), _REPLACED, _refused(), in_pairs=False),
    _Rule(
        "trainable_token_indices",
        _filled("trainable_token_indices"),
        _ROWS,
        _refused("no adapter can bring token rows"),
        in_pairs=False,
    ),
    _Rule("bias", _bias, _REPLACED, _refused(), in_pairs=False),
    _Rule("lora_bias", _flag("lora_bias"), _MERGES, _refused(), in_pairs=False),
    _Rule("fan_in_fan_out", _flag("fan_in_fan_out"), _SWAPPED, _SERVED),
    _Rule(
        "target_parameters",
        _filled("target_parameters"),
        Support("works", "merged matrix by matrix, under the names of the checkpoint"),
        _refused(),
        in_pairs=False,
    ),
    _Rule(
        "layer_replication",
        _filled("layer_replication"),
        Support("works", "each layer is written as often as it stands there"),
        _refused(),
        in_pairs=False,
    ),
    _Rule(
        "init_lora_weights",
        _repeatable_init,
        _REPEATED,
        _refused("the initialisation changed the base"),
        in_pairs=False,
    ),
    _Rule(
        "init_lora_weights",
        _base_changing_init,
        _impossible(
            "this initialisation changed the base by what is not in the adapter; save it converted "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        ),
        _refused("the initialisation changed the base"),
    ),
    _Rule(
        "alora",
        _filled("alora_invocation_tokens"),
        _impossible("it acts from its invocation tokens on only, which no weights can tell"),
        _refused(),
    ),
    _Rule(
        "qalora",
        _flag("use_qalora"),
        _impossible("PEFT has no merge of it: it is for layers that stay quantised by GPTQ"),
        _refused(),
    ),
    _Rule("bdlora", _filled("use_bdlora"), _BLOCKS, _refused("not known"), in_pairs=False),
    _Rule(
        "arrow",
        _filled("arrow_config"),
        _impossible("every token is routed to other adapters, which no weights can tell"),
        _refused("routing between adapters"),
    ),
    _Rule("kasa", _filled("kasa_config"), _REPEATED, _refused("not known"), in_pairs=False),
    _Rule("velora", _filled("velora_config"), _AS_LORA, _refused("not known"), in_pairs=False),
    _Rule(
        "monteclora", _filled("monteclora_config"), _AS_LORA, _refused("not known"), in_pairs=False
    ),
    _Rule("megatron", _filled("megatron_config"), _NOT_MERGED, _refused("not known")),
    _Rule(
        "ensure_weight_tying",
        _flag("ensure_weight_tying"),
        _TIED,
        _refused("not known"),
        in_pairs=False,
    ),
)

_NEUTRAL_FIELDS = frozenset(
    {
        "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha",
        "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save",
        "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern",
        "alpha_pattern", "megatron_config", "megatron_core", "trainable_token_indices",
        "loftq_config", "eva_config", "corda_config", "lora_ga_config", "use_dora",
        "velora_config", "alora_invocation_tokens", "use_qalora", "qalora_group_size",
        "monteclora_config", "layer_replication", "runtime_config", "lora_bias",
        "target_parameters", "use_bdlora", "arrow_config", "kasa_config", "ensure_weight_tying",
    }
)  # fmt: skip
"""Fields of `LoraConfig` that a rule above covers or that do not change the function computed."""


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
        _support(_Rule("lora", lambda _: None, _MERGES, _SERVED)),
    )
    found = [plain]
    for rule in _RULES:
        detail = rule.detect(config)
        if detail is not None:
            found.append(Feature(rule.name, detail, _support(rule)))
    return (*found, *_unknown_fields(config))


def tensor_feature(name: str, detail: str) -> Feature:
    """Returns a feature that only the tensors show, such as LoRA on an embedding.

    Source of what is served: vLLM 0.32.0, vllm/lora/utils.py, is_base_embedding_weights: weights
    of the base are passed over at load.
    """
    rule = _OF_TENSORS.get(name) or _Rule(name, str, _NOT_MERGED, _refused())
    return Feature(name, detail, _support(rule))


_OF_TENSORS = {
    "LoRA on embeddings": _Rule("", str, _MERGES, _refused(), in_pairs=False),
    "copy of base weights": _Rule(
        "",
        str,
        Support("works", "have to equal the base's, which is checked, or be its with more rows"),
        _SERVED,
    ),
}


def _support(rule: _Rule) -> dict[Target, Support]:
    merges = rule.merged.status == "works"
    return {
        "adapter": rule.adapter,
        "merged": rule.merged,
        "ollama": _OLLAMA_MERGES if merges else rule.merged,
        "gguf-adapter": _GGUF_FOLDS if merges and rule.in_pairs else _GGUF_LACKS,
        "vllm": rule.vllm,
    }


def _other_tuner(config: AdapterConfig) -> tuple[Feature, ...]:
    """The tuner itself, and what is trained beside it."""
    reason = why_not_merged(config.peft_type)
    merged = Support("works", WHOLE_MODULE) if reason is None else _impossible(reason)
    tuner = _Rule(config.peft_type.lower(), str, merged, _refused("LoRA only"), in_pairs=False)
    found = [Feature(tuner.name, "another tuner than LoRA", _support(tuner))]
    for rule in _RULES:
        detail = rule.detect(config) if rule.name in _BESIDE_TUNERS else None
        if detail is not None:
            unmerged = FIELDS.get(rule.name)
            own = rule if unmerged is None else replace(rule, merged=_impossible(unmerged))
            found.append(Feature(rule.name, detail, _support(own)))
    return tuple(found)


_BESIDE_TUNERS = frozenset({"modules_to_save", *FIELDS})


def _unknown_fields(config: AdapterConfig) -> list[Feature]:
    unknown = sorted(
        key
        for key, value in config.raw.items()
        if key not in _NEUTRAL_FIELDS and value not in (None, False, [], {}, "")
    )
    reason = "a field that this version does not know may change what the adapter computes"
    return [
        Feature(
            key,
            _short(config.raw[key]),
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
