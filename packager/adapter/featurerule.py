"""The table of features: how each is told from a configuration, and what becomes of it.

Sources: PEFT 0.21, src/peft/tuners/lora/config.py and mapping of PeftType; vLLM 0.32.0,
vllm/lora/peft_helper.py and vllm/lora/lora_model.py (what is refused at load); Ollama 0.34.1,
server/create.go (adapters are no longer taken, so only a merged model can be shipped).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from packager.adapter.config import AdapterConfig
from packager.adapter.scope import residual_kind
from packager.adapter.support import VLLM_CHECKED, Support

Detector = Callable[[AdapterConfig], str | None]


_KEPT = Support("works", "PEFT loads it as trained")


@dataclass(frozen=True)
class FeatureRule:
    """A feature: how it is told from a configuration, and what becomes of it.

    Attributes:
        name: As PEFT calls it.
        detect: Returns its value in a configuration, short, or None where it is not in use.
        merged: In a merged model, in safetensors or GGUF.
        vllm: In a server.
        adapter: In an adapter kept separate.
        in_pairs: Whether pairs of linear layers hold all of it, as a GGUF LoRA does.
    """

    name: str
    detect: Detector
    merged: Support
    vllm: Support
    adapter: Support = _KEPT
    in_pairs: bool = True


MERGES = Support("works", "merged in float32, rounded once")
_REPLACED = Support("works", "the trained tensors take the place of the base's")
ROWS = Support("works", "the trained rows take the place of the base's")
_TIED = Support("works", "embedding and head stay one tensor")
_AS_LORA = Support("works", "after training it is plain LoRA, and merged as such")
_REPEATED = Support("works", "what was taken out of the base is worked out again, and merged")
_BLOCKS = Support("works", "its blocks are put on their diagonals, and merged")
_SWAPPED = Support("works", "merged the way round in which the base stores the weight")
OLLAMA_MERGES = Support("works", "merged into the GGUF, since Ollama takes no adapters")
GGUF_FOLDS = Support("normalised", "the scale is folded into B; llama-server --lora loads it")
GGUF_LACKS = Support("not possible", "a GGUF LoRA holds pairs of linear layers only")
NOT_MERGED = Support("not possible", "this version of lorapack does not merge it")
SERVED = Support("works", f"served as it is ({VLLM_CHECKED})")
FOLDED = Support("normalised", "the scale is folded into lora_B, so no server can misread it")
KEEPS_BOTH = Support(
    "normalised", "as trained, and a form with the scale folded in for loaders that ignore it"
)


def refused(why: str = "refused at load") -> Support:
    """Returns what becomes of a feature that a server refuses and a merge carries."""
    return Support("merge-only", f"{why} ({VLLM_CHECKED}); serve the merged model")


def impossible(why: str) -> Support:
    """Returns what becomes of a feature that no weights can carry."""
    return Support("not possible", why)


def _flag(key: str) -> Detector:
    return lambda config: "true" if config.raw.get(key) else None


def _filled(key: str) -> Detector:
    def detect(config: AdapterConfig) -> str | None:
        value = config.raw.get(key)
        return shorten(value) if value else None

    return detect


def shorten(value: Any) -> str:
    """Returns a value as people are shown it, in at most 60 characters."""
    text = ", ".join(map(str, value)) if isinstance(value, (list, dict)) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _bias(config: AdapterConfig) -> str | None:
    value = config.raw.get("bias", "none")
    return None if value in ("none", None) else shorten(value)


_BASE_KEEPING_INITS = (True, False, "true", "false", "gaussian", "orthogonal", "eva", "mica", None)


def _base_changing_init(config: AdapterConfig) -> str | None:
    value = config.raw.get("init_lora_weights", True)
    known = value in _BASE_KEEPING_INITS or _repeatable_init(config) is not None
    return None if known or value == "loftq" else shorten(value)


def _repeatable_init(config: AdapterConfig) -> str | None:
    kind = residual_kind(config)
    return None if kind == "kasa" else kind


def _iterated_loftq(config: AdapterConfig) -> str | None:
    loftq = config.raw.get("init_lora_weights") == "loftq"
    return "loftq" if loftq and residual_kind(config) is None else None


def _regex_targets(config: AdapterConfig) -> str | None:
    return shorten(config.target_modules) if isinstance(config.target_modules, str) else None


def _layers(config: AdapterConfig) -> str | None:
    return shorten(list(config.layers_to_transform)) if config.layers_to_transform else None


RULES: tuple[FeatureRule, ...] = (
    FeatureRule("rslora", _flag("use_rslora"), MERGES, FOLDED, KEEPS_BOTH),
    FeatureRule("rank_pattern", _filled("rank_pattern"), MERGES, FOLDED, KEEPS_BOTH),
    FeatureRule("alpha_pattern", _filled("alpha_pattern"), MERGES, FOLDED, KEEPS_BOTH),
    FeatureRule("layers_to_transform", _layers, MERGES, SERVED),
    FeatureRule("exclude_modules", _filled("exclude_modules"), MERGES, SERVED),
    FeatureRule("regex target_modules", _regex_targets, MERGES, SERVED),
    FeatureRule("dora", _flag("use_dora"), MERGES, refused(), in_pairs=False),
    FeatureRule(
        "modules_to_save", _filled("modules_to_save"), _REPLACED, refused(), in_pairs=False
    ),
    FeatureRule(
        "trainable_token_indices",
        _filled("trainable_token_indices"),
        ROWS,
        refused("no adapter can bring token rows"),
        in_pairs=False,
    ),
    FeatureRule("bias", _bias, _REPLACED, refused(), in_pairs=False),
    FeatureRule("lora_bias", _flag("lora_bias"), MERGES, refused(), in_pairs=False),
    FeatureRule("fan_in_fan_out", _flag("fan_in_fan_out"), _SWAPPED, SERVED),
    FeatureRule(
        "target_parameters",
        _filled("target_parameters"),
        Support("works", "merged matrix by matrix, under the names of the checkpoint"),
        refused(),
        in_pairs=False,
    ),
    FeatureRule(
        "layer_replication",
        _filled("layer_replication"),
        Support("works", "each layer is written as often as it stands there"),
        refused(),
        in_pairs=False,
    ),
    FeatureRule(
        "init_lora_weights",
        _repeatable_init,
        _REPEATED,
        refused("the initialisation changed the base"),
        in_pairs=False,
    ),
    FeatureRule(
        "init_lora_weights",
        _base_changing_init,
        impossible(
            "this initialisation changed the base by what is not in the adapter; save it converted "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        ),
        refused("the initialisation changed the base"),
    ),
    FeatureRule(
        "init_lora_weights",
        _iterated_loftq,
        impossible(
            "LoftQ quantised the base in several iterations, which no other machine repeats to the "
            "bit; save the base as it was trained on (unload, then save_pretrained), give that "
            "with --base, and set init_lora_weights to true in adapter_config.json"
        ),
        refused("the initialisation changed the base"),
    ),
    FeatureRule(
        "alora",
        _filled("alora_invocation_tokens"),
        impossible("it acts from its invocation tokens on only, which no weights can tell"),
        refused(),
    ),
    FeatureRule(
        "qalora",
        _flag("use_qalora"),
        impossible("PEFT has no merge of it: it is for layers that stay quantised by GPTQ"),
        refused(),
    ),
    FeatureRule("bdlora", _filled("use_bdlora"), _BLOCKS, refused("not known"), in_pairs=False),
    FeatureRule(
        "arrow",
        _filled("arrow_config"),
        impossible("every token is routed to other adapters, which no weights can tell"),
        refused("routing between adapters"),
    ),
    FeatureRule("kasa", _filled("kasa_config"), _REPEATED, refused("not known"), in_pairs=False),
    FeatureRule("velora", _filled("velora_config"), _AS_LORA, refused("not known"), in_pairs=False),
    FeatureRule(
        "monteclora", _filled("monteclora_config"), _AS_LORA, refused("not known"), in_pairs=False
    ),
    FeatureRule("megatron", _filled("megatron_config"), NOT_MERGED, refused("not known")),
    FeatureRule(
        "ensure_weight_tying",
        _flag("ensure_weight_tying"),
        _TIED,
        refused("not known"),
        in_pairs=False,
    ),
)

NEUTRAL_FIELDS = frozenset(
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

OF_TENSORS = {
    "LoRA on embeddings": FeatureRule("", str, MERGES, refused(), in_pairs=False),
    "LoRA on convolutions": FeatureRule("", str, MERGES, refused(), in_pairs=False),
    "LoRA on convolutions in groups": FeatureRule(
        "",
        str,
        impossible(
            "the weight of a group sees the inputs of the group only, and what was trained sees all"
        ),
        refused(),
        in_pairs=False,
    ),
    "copy of base weights": FeatureRule(
        "",
        str,
        Support("works", "have to equal the base's, which is checked, or be its with more rows"),
        SERVED,
    ),
}
