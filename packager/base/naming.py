"""Parameters of the loaded model, found in the checkpoint: under another name, or in other cuts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from packager.base.nametable import LEGACY, PREFIXES, RULES, UNMAPPED, VISION_CLASSES
from packager.base.renaming import NameRule, Operation, apply_rules, scoped
from packager.tensorfile import TensorRef

_TOWERS = ("vision_tower", "image_tower", "video_tower")
_MAX_EXPERTS = 1 << 16
# Source: transformers 5.23, models/*/modeling_*.py: where composite models hold it.
_LANGUAGE_MODEL = "model.language_model"
# Source: the same: what stands beside the base model in the classes of tasks.
_HEADS = ("lm_head", "cls", "score", "classifier", "classification_head", "qa_outputs", "embed_out")


@dataclass(frozen=True)
class StoredPart:
    """A stored tensor, and which part of a parameter it holds or is held of it.

    Attributes:
        ref: The stored tensor.
        operation: What turns it into the parameter.
        expert: For `experts`, its place along the parameter's first axis.
        part: For `experts` and `concatenate`, its place among those whose rows lie below each
            other; for `chunk`, the parameter's place within the tensor.
        parts: How many there are of these.
    """

    ref: TensorRef
    operation: Operation = "rename"
    expert: int | None = None
    part: int = 0
    parts: int = 1


class Naming:
    """The parameters that a checkpoint's tensors become when transformers loads them.

    Args:
        config: `config.json`.
        tensors: Name in the checkpoint → where its data lies.

    Attributes:
        prefix: Of the base model within the whole one.
        omits_prefix: Whether no name of the checkpoint begins with it.
        unmapped: Model type whose rules are not known here, or None.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, TensorRef]) -> None:
        self._config = config
        self._rules = name_rules(config)
        self.prefix = base_prefix(config)
        self._tensors = tensors
        self._parts: dict[str, list[StoredPart]] = {}
        for name, ref in tensors.items():
            for parameter, part in self._hold(name, ref):
                self._parts.setdefault(parameter, []).append(part)
        self._leaves: dict[str, set[str]] = {}
        for parameter in self._parts:
            module, _, leaf = parameter.rpartition(".")
            self._leaves.setdefault(module, set()).add(leaf)
        self.omits_prefix = not any(name.startswith(f"{self.prefix}.") for name in self._parts)
        self.unmapped = next((kind for kind in _model_types(config) if kind in UNMAPPED), None)

    def find(self, parameter: str) -> tuple[StoredPart, ...]:
        """Returns the stored tensors that a parameter of the model is made of.

        Names of older releases of transformers, and those of the checkpoint itself, are known too.

        Args:
            parameter: Such as `model.layers.0.mlp.experts.gate_up_proj`.

        Returns:
            One tensor, or all that it is put together from, experts first; empty if there is no
            such parameter or if not all of its tensors are there.
        """
        for name in self._spellings(parameter):
            if name in self._parts:
                return _complete(self._parts[name])
        for name in self._spellings(parameter):
            if name in self._tensors:
                return (StoredPart(self._tensors[name]),)
        found, rule = apply_rules(parameter, self._rules)
        if rule is None and found.names[0] != parameter:
            for name in self._spellings(found.names[0]):
                if name in self._parts:
                    return _complete(self._parts[name])
        return self._find_in_language_model(parameter)

    def _find_in_language_model(self, parameter: str) -> tuple[StoredPart, ...]:
        """Finds a parameter of the language model of a composite model, loaded by itself."""
        if self._text is None:
            return ()
        name = f"{_LANGUAGE_MODEL}.{parameter.removeprefix(f'{self._text.prefix}.')}"
        inner = self._parts.get(name, [])
        return _complete(inner) if inner else self._text.find(parameter)

    @cached_property
    def _text(self) -> Naming | None:
        """Of a composite model, the language model that can be loaded by itself."""
        inner = self._config.get("text_config")
        return Naming(inner, self._tensors) if isinstance(inner, Mapping) else None

    def find_tensor(self, parameter: str) -> TensorRef | None:
        """Returns the stored tensor that is a parameter as a whole, or None."""
        parts = self.find(parameter)
        whole = len(parts) == 1 and parts[0].operation == "rename"
        return parts[0].ref if whole else None

    def below(self, module: str) -> frozenset[str]:
        """Returns the names, within a module, of the parameters that it holds itself."""
        found = [self._leaves.get(name, set()) for name in self._spellings(module)]
        names = frozenset(name for names in found for name in names)
        return names or (self._text.below(module) if self._text is not None else names)

    @cached_property
    def modules(self) -> Mapping[str, frozenset[str]]:
        """Every module of the checkpoint that holds parameters itself, and their names in it."""
        return {module: frozenset(leaves) for module, leaves in self._leaves.items()}

    def lacks_prefix(self, module: str) -> bool:
        """Tells whether the whole model has a module only with the base model's prefix before it.

        The base model loaded by itself has it under this name.
        """
        whole = f"{self.prefix}.{module}"
        return module not in self._leaves and whole in self._leaves

    def is_bare(self, module: str) -> bool:
        """Tells whether a module of the base model is named without its prefix, as it is stored."""
        return module in self._leaves and not self.is_head(module)

    @staticmethod
    def is_head(module: str) -> bool:
        """Tells whether a module stands beside the base model in a model for a task."""
        return module.partition(".")[0] in _HEADS

    def is_cut_with_others(self, name: str) -> bool:
        """Tells whether a stored tensor becomes some of the rows of an expert of a parameter."""
        _, rule = apply_rules(name, self._rules)
        return rule is not None and rule.operation == "experts" and len(rule.sources) > 1

    def spell(self, parameter: str) -> str:
        """Returns the newest name of a parameter, whatever release of transformers named it."""
        return apply_rules(parameter, self._rules)[0].names[0]

    def _hold(self, name: str, ref: TensorRef) -> Iterator[tuple[str, StoredPart]]:
        found, rule = apply_rules(name, self._rules)
        if rule is None:
            yield found.names[0], StoredPart(ref)
        elif rule.operation == "chunk":
            for place, parameter in enumerate(found.names):
                yield parameter, StoredPart(ref, "chunk", None, place, len(found.names))
        else:
            part = StoredPart(ref, rule.operation, found.number, found.part, len(rule.sources))
            yield found.names[0], part

    def _spellings(self, parameter: str) -> Iterator[str]:
        """Yields a name as it is, and as it is where one side omits the base model's prefix."""
        yield parameter
        start = f"{self.prefix}."
        if not parameter.startswith(start):
            yield start + parameter
        elif self.omits_prefix:
            yield parameter.removeprefix(start)


def name_rules(config: Mapping[str, Any]) -> tuple[NameRule, ...]:
    """Returns the rules for the checkpoint of a model, in order.

    Source: transformers 5.23, conversion_mapping.py, get_model_conversion_mapping: those of its
    class or else of its model type, then those of its submodules, then those for all.
    """
    name = _class_name(config)
    kind = str(config.get("model_type", ""))
    prefix = base_prefix(config)
    rules = RULES.get(name, RULES.get(kind, ()))
    base = re.sub(r"For[A-Z]\w*$", "Model", name)
    if base != name:
        rules += scoped(RULES.get(base, ()), "", prefix)
    vision = VISION_CLASSES.get(_inner_type(config, "vision_config"), "")
    for tower in _TOWERS:
        rules += scoped(RULES.get(vision, ()), tower, prefix)
    text = _inner_type(config, "text_config")
    if text != kind:
        rules += scoped(RULES.get(text, ()), "language_model", prefix)
    return rules + LEGACY


def base_prefix(config: Mapping[str, Any]) -> str:
    """Returns what stands before the base model's names in a model for a task."""
    return PREFIXES.get(str(config.get("model_type", "")), "model")


def _class_name(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _inner_type(config: Mapping[str, Any], part: str) -> str:
    inner = config.get(part)
    return str(inner.get("model_type", "")) if isinstance(inner, Mapping) else ""


def _model_types(config: Mapping[str, Any]) -> tuple[str, ...]:
    inner = (_inner_type(config, "text_config"), _inner_type(config, "vision_config"))
    return (str(config.get("model_type", "")), *inner)


def _complete(parts: list[StoredPart]) -> tuple[StoredPart, ...]:
    """Returns all parts of a parameter in order; none if some are missing or come twice."""
    first = parts[0]
    if first.operation in ("rename", "transpose", "chunk"):
        return tuple(parts) if len(parts) == 1 else ()
    ordered = sorted(parts, key=lambda item: (item.expert or 0, item.part))
    experts = range(len(parts) // first.parts) if first.operation == "experts" else (None,)
    wanted = [(expert, part) for expert in experts for part in range(first.parts)]
    found = [(item.expert, item.part) for item in ordered]
    return tuple(ordered) if found == wanted and len(found) <= _MAX_EXPERTS else ()
