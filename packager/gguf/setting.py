"""A model's `config.json` as llama.cpp's converter sees it: flat, with defaults, one RoPE form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packager.errors import InputError

_MAX_COUNT = (1 << 32) - 1
_MAX_NUMBER = 3.4e38
_SCALED = ("llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Settings:
    """What a configuration says, where it leaves things out with its class's defaults.

    Attributes:
        values: Setting → value; those of `text_config` stand at the top.
        rope: The RoPE parameters: flat, or a mapping for each kind of attention layer.
    """

    values: Mapping[str, Any]
    rope: Mapping[str, Any]

    @property
    def full_rope(self) -> Mapping[str, Any]:
        """The RoPE parameters of layers with full attention."""
        return as_mapping(self.rope.get("full_attention", self.rope), "rope_parameters")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        if self.values.get("head_dim") is not None:
            return self.count("head_dim")
        return self.count("hidden_size", "n_embd") // self.count("num_attention_heads", "n_head")

    def find(self, *names: str) -> Any:
        """Returns the first of these settings that exists, or None."""
        return next((self.values[name] for name in names if name in self.values), None)

    def count(self, *names: str) -> int:
        """Returns a setting that has to be a whole number from 1 on.

        Raises:
            InputError: It is missing or something else.
        """
        value = self.find(*names)
        if type(value) is int and 1 <= value <= _MAX_COUNT:
            return value
        raise setting_error(names[0], "a whole number from 1 on", value)

    def number(self, *names: str) -> float:
        """Returns a setting that has to be a finite number.

        Raises:
            InputError: It is missing or something else.
        """
        return as_number(self.find(*names), names[0])


def read_settings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Settings:
    """Returns the settings of a language model, also of one within a composite model.

    Source: llama.cpp 0c1e57098, conversion/base.py (`TextModel`), and transformers 5.x, which it
    reads the configuration with: modeling_rope_utils.py, models/*/configuration_*.py.

    Args:
        config: `config.json`.
        defaults: Of the model's class. A `head_dim` or `num_key_value_heads` of None follows
            from the number of heads; `rope_local_base_freq` stands for two kinds of layers.

    Raises:
        InputError: A setting is not what it has to be.
    """
    nested = as_mapping(config.get("text_config") or {}, "text_config")
    values = {**defaults, **config, **nested}
    if "num_key_value_heads" in defaults and values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    settings = Settings(values, {})
    if "head_dim" in defaults and values["head_dim"] is None:
        values["head_dim"] = settings.head_size
    read = _read_layered_rope if "rope_local_base_freq" in defaults else _read_rope
    return Settings(values, read(settings, defaults))


def as_mapping(value: Any, name: str) -> Mapping[str, Any]:
    """Returns a value that has to be a mapping.

    Raises:
        InputError: It is something else.
    """
    if isinstance(value, Mapping):
        return value
    raise setting_error(name, "an object", value)


def as_number(value: Any, name: str) -> float:
    """Returns a value that has to be a number within what float32 holds.

    Raises:
        InputError: It is something else.
    """
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    # False for NaN, and safe for a whole number with hundreds of digits.
    if plain and -_MAX_NUMBER <= value <= _MAX_NUMBER:
        return float(value)
    raise setting_error(name, "a number", value)


def setting_error(name: str, expected: str, found: Any) -> InputError:
    """Returns the error for a setting that is not what it has to be."""
    return InputError(
        "the model's configuration cannot be written as GGUF",
        where=f"config.json: {name}",
        expected=expected,
        found="nothing" if found is None else repr(found)[:80],
        hint="check config.json against the one that the base was published with",
    )


def _read_rope(settings: Settings, defaults: Mapping[str, Any]) -> dict[str, Any]:
    stated = settings.find("rope_scaling") or settings.find("rope_parameters") or {}
    rope = dict(as_mapping(stated, "rope_parameters"))
    for name in ("rope_theta", "partial_rotary_factor"):
        if settings.find(name) is not None:
            rope.setdefault(name, settings.find(name))
    kind = rope.setdefault("rope_type", rope.get("type", "default"))
    if kind in _SCALED and "original_max_position_embeddings" not in defaults:
        rope.setdefault(
            "original_max_position_embeddings", settings.find("max_position_embeddings")
        )
    elif "original_max_position_embeddings" in settings.values:
        original = settings.find("original_max_position_embeddings")
        if kind in _SCALED:
            rope["original_max_position_embeddings"] = original
        rope.setdefault("original_max_position_embeddings", original)
    return rope


def _read_layered_rope(settings: Settings, _defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of layers with full and with sliding attention.

    Source: transformers 5.x, configuration_gemma3.py (`convert_rope_params_to_dict`).
    """
    stated = as_mapping(settings.find("rope_parameters") or {}, "rope_parameters")
    scaling = as_mapping(settings.find("rope_scaling") or {}, "rope_scaling")
    rope: dict[str, Any] = {}
    for layer, theta in (
        ("full_attention", "rope_theta"),
        ("sliding_attention", "rope_local_base_freq"),
    ):
        inner = dict(as_mapping(stated.get(layer) or {}, "rope_parameters"))
        if layer == "full_attention":
            inner.update(scaling)
        inner.setdefault("rope_theta", settings.find(theta))
        inner.setdefault("rope_type", inner.get("type", "default"))
        rope[layer] = inner
    return rope
