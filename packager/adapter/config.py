"""`adapter_config.json`: parser, and the two rules of PEFT that depend on it.

Source: PEFT 0.21, src/peft/tuners/lora/config.py (fields), tuners/tuners_utils.py
(check_target_module_exists), utils/other.py (get_pattern_key), tuners/lora/layer.py (scaling).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from packager.adapter.pattern import Matcher
from packager.errors import AdapterError

# Source: PEFT 0.21, tuners/tuners_utils.py, _maybe_include_all_linear_layers: every linear layer
# but the output head; what PEFT saves lists the modules instead.
_ALL_LINEAR = "all-linear"
_HEADS = ("lm_head", "embed_out")


@dataclass(frozen=True)
class AdapterConfig:
    """The fields that decide what the adapter computes; `raw` keeps every field.

    Attributes:
        peft_type: Tuner, upper case, such as `LORA`.
        task_type: Such as `CAUSAL_LM`, or None.
        base_name: `base_model_name_or_path` as trained, or None.
        base_revision: `revision`, or None when the trainer passed none.
        rank: Default rank.
        alpha: Default alpha.
        use_rslora: Whether the scale is alpha/√rank instead of alpha/rank.
        rank_pattern: Module pattern → rank, in order; the first match wins.
        alpha_pattern: Module pattern → alpha, in order; the first match wins.
        target_modules: Module name suffixes, or one regular expression, or None.
        exclude_modules: Likewise.
        layers_to_transform: Layer numbers, or None for all.
        layers_pattern: Names that stand before a layer number.
        raw: The whole document.
        matcher: Of the patterns above, with the time that they may still take.
    """

    peft_type: str
    task_type: str | None
    base_name: str | None
    base_revision: str | None
    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str | None
    exclude_modules: tuple[str, ...] | str | None
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    raw: Mapping[str, Any]
    matcher: Matcher = field(default_factory=Matcher, compare=False, repr=False)

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module: of the first matching pattern, else the default."""
        return int(self.matcher.first(self.rank_pattern, module, self.rank))

    def alpha_of(self, module: str) -> float:
        """Returns the alpha of a module: of the first matching pattern, else the default."""
        return float(self.matcher.first(self.alpha_pattern, module, self.alpha))

    def scale_of(self, module: str) -> float:
        """Returns the factor of B·A for a module. The scale rule lives here only."""
        rank, alpha = self.rank_of(module), self.alpha_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def selects(self, module: str) -> bool:
        """Tells whether PEFT adapts the module of this dotted name."""
        if self.exclude_modules is not None and self.matcher.names(self.exclude_modules, module):
            return False
        if self.target_modules is None:
            return False
        if self.takes_all_linear:
            return module.rpartition(".")[2] not in _HEADS
        if not self.matcher.names(self.target_modules, module):
            return False
        exact = isinstance(self.target_modules, str) or module in self.target_modules
        return exact or self.layers_to_transform is None or self._layer_selected(module)

    @property
    def takes_all_linear(self) -> bool:
        """Whether every linear layer but the head is adapted, and no name is stated."""
        stated = self.target_modules
        return isinstance(stated, str) and stated.lower() == _ALL_LINEAR

    def wraps(self, module: str) -> bool:
        """Tells whether PEFT may adapt a parameter of the module of this dotted name by itself."""
        targets = self.target_parameters
        return any(
            _names_parameter(target, module, target.rpartition(".")[2]) for target in targets
        )

    def selects_parameter(self, module: str, parameter: str) -> bool:
        """Tells whether PEFT adapts a parameter that the module holds, if it holds it.

        Source: PEFT 0.21, tuners/tuners_utils.py, _inject_parameters.
        """
        return any(_names_parameter(item, module, parameter) for item in self.target_parameters)

    def selected_parameters(self, module: str) -> list[str]:
        """Returns the dotted names of the parameters of a module that PEFT would adapt, sorted."""
        leaves = {target.rpartition(".")[2] for target in self.target_parameters}
        return sorted(f"{module}.{leaf}" for leaf in leaves if self.selects_parameter(module, leaf))

    @property
    def target_parameters(self) -> tuple[str, ...]:
        """Endings of the names of parameters that are adapted by themselves."""
        value = self.raw.get("target_parameters")
        return tuple(filter(_is_text, value)) if isinstance(value, list) else ()

    def _layer_selected(self, module: str) -> bool:
        # The group has a name, since a stranger's pattern may hold groups of its own.
        patterns = [rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\." for name in self.layers_pattern]
        for pattern in patterns or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
            found = self.matcher.match(pattern, module)
            if found is not None and found["idx"] is not None:
                return int(found["idx"]) in (self.layers_to_transform or ())
        return False


def parse_adapter_config(raw: Mapping[str, Any], *, where: str) -> AdapterConfig:
    """Parses `adapter_config.json`.

    Fields that only other tuners need may be missing; those that LoRA needs are checked.

    Args:
        raw: The document.
        where: Its path, for errors.

    Raises:
        AdapterError: A field is missing or has the wrong type or range.
    """
    read = _Reader(raw, where)
    peft_type = read.text("peft_type")
    if peft_type is None:
        raise AdapterError(
            "this is not a PEFT adapter",
            where=where,
            expected='"peft_type"',
            found="no such field",
            hint="point to the folder that PEFT's save_pretrained wrote",
        )
    is_lora = peft_type.upper() == "LORA"
    return AdapterConfig(
        peft_type=peft_type.upper(),
        task_type=read.text("task_type"),
        base_name=read.text("base_model_name_or_path"),
        base_revision=read.text("revision"),
        rank=int(read.number("r", default=None if is_lora else 0, whole=True)),
        alpha=read.number("lora_alpha", default=None if is_lora else 0),
        use_rslora=read.flag("use_rslora"),
        rank_pattern={key: int(value) for key, value in read.patterns("rank_pattern", whole=True)},
        alpha_pattern=dict(read.patterns("alpha_pattern", whole=False)),
        target_modules=read.names("target_modules"),
        exclude_modules=read.names("exclude_modules"),
        layers_to_transform=read.layers(),
        layers_pattern=_as_tuple(read.names("layers_pattern")),
        raw=dict(raw),
    )


class _Reader:
    """Typed access to a stranger's document."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self._raw = raw
        self._where = where

    def text(self, key: str) -> str | None:
        value = self._raw.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, "text")

    def flag(self, key: str) -> bool:
        value = self._raw.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self._wrong(key, "true or false")

    def number(self, key: str, *, default: float | None, whole: bool = False) -> float:
        value = self._raw.get(key, default)
        if _is_number(value, whole=whole) and (value > 0 or not whole or value == default):
            return float(value)
        raise self._wrong(key, "a positive whole number" if whole else "a finite number")

    def patterns(self, key: str, *, whole: bool) -> list[tuple[str, float]]:
        value = self._raw.get(key) or {}
        if isinstance(value, dict) and all(
            _is_number(item, whole=whole) and (item > 0 or not whole) for item in value.values()
        ):
            return [(pattern, float(item)) for pattern, item in value.items()]
        raise self._wrong(key, "a mapping from module patterns to numbers")

    def names(self, key: str) -> tuple[str, ...] | str | None:
        value = self._raw.get(key)
        if value is None or value in ([], ""):
            return None
        if isinstance(value, str):
            return value
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise self._wrong(key, "a list of names or one pattern")

    def layers(self) -> tuple[int, ...] | None:
        value = self._raw.get("layers_to_transform")
        if value is None or value == []:
            return None
        numbers = value if isinstance(value, list) else [value]
        if all(_is_number(item, whole=True) for item in numbers):
            return tuple(numbers)
        raise self._wrong("layers_to_transform", "layer numbers")

    def _wrong(self, key: str, expected: str) -> AdapterError:
        return AdapterError(
            f"the field {key!r} is not what PEFT writes there",
            where=self._where,
            expected=expected,
            found=repr(self._raw.get(key))[:120],
            hint="save the adapter again with PEFT's save_pretrained",
        )


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e9 and math.isfinite(value) and (not whole or value == int(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _names_parameter(target: str, module: str, parameter: str) -> bool:
    name = f"{module}.{parameter}"
    return name == target or name.endswith(f".{target}")


def _as_tuple(value: tuple[str, ...] | str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value
