"""A tuner that no PEFT has yet: it is released as it is, by nothing but its registration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn

from packager.adapter import read_adapter
from tests.tuner.base import make_qwen2
from tests.tuner.cases import make_tuned
from tests.tuner.test_release import check_as_close_as_peft, make_release

NAME = "GAIN"
MAPPINGS = (
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
    mapping.PEFT_TYPE_TO_TUNER_MAPPING,
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
)


@dataclass
class GainConfig(PeftConfig):
    """Configuration of a tuner that learns a gain for every output."""

    target_modules: list[str] | str | None = field(default=None)
    strength: float = field(default=1.0)
    exclude_modules: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = NAME
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]


class GainLayer(nn.Module, BaseTunerLayer):
    """`W' = (1 + strength · gain) · W`, row by row."""

    adapter_layer_names = ("gain_vector",)
    other_param_names = ("strength",)

    def __init__(self, base_layer: nn.Linear, adapter_name: str, config: GainConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.strength = {adapter_name: config.strength}
        self.gain_vector = nn.ParameterDict({})
        self.gain_vector[adapter_name] = nn.Parameter(torch.zeros(base_layer.out_features))
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        assert not safe_merge
        for name in adapter_names or self.active_adapters:
            self.get_base_layer().weight.data *= self._factor(name).unsqueeze(1)
            self.merged_adapters.append(name)

    def forward(self, values: Tensor, *arguments: Any, **further: Any) -> Tensor:
        result = self.base_layer(values, *arguments, **further)
        if self.merged or self.disable_adapters:
            return result  # type: ignore[no-any-return]
        layer = self.get_base_layer()
        bias = 0 if layer.bias is None else layer.bias
        for name in self.active_adapters:
            result = (result - bias) * self._factor(name) + bias
        return result  # type: ignore[no-any-return]

    def _factor(self, name: str) -> Tensor:
        return 1 + self.strength[name] * self.gain_vector[name]


class GainModel(BaseTuner):
    """Puts the layers in their places."""

    prefix = "gain_"
    tuner_layer_cls = GainLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert current_key
        assert parameter_name is None
        layer = GainLayer(target, adapter_name, peft_config)  # type: ignore[arg-type]
        self._replace_module(parent, target_name, layer, target)


@pytest.fixture
def gain() -> Iterator[None]:
    """Registers the tuner as a later PEFT would, and takes it out again."""
    member = str.__new__(PeftType, NAME)
    member._name_, member._value_ = NAME, NAME
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    PeftType._member_names_.append(NAME)
    register_peft_method(name="gain", config_cls=GainConfig, model_cls=GainModel)
    yield
    for known in MAPPINGS:
        known.pop(member, None)  # type: ignore[attr-defined]
    PeftType._member_names_.remove(NAME)
    del PeftType._member_map_[NAME], PeftType._value2member_map_[NAME]


@pytest.mark.usefixtures("gain")
def test_a_tuner_of_a_later_peft_is_merged_without_a_change_here(tmp_path: Path) -> None:
    base = make_qwen2(tmp_path / "base")
    case = make_tuned(base, tmp_path / "tuned", NAME, strength=2.0)
    feature = read_adapter(case.folder).features[0]
    assert (feature.name, feature.support["merged"].status) == ("gain", "works")
    made = make_release(case, tmp_path / "out", "merged")
    check_as_close_as_peft(case, made.bundle / "merged" / "tuned", "float32")
    proof = made.proof.targets[0]
    assert proof.weights is not None
    assert "gain" in proof.weights.by_rule
    assert proof.behaviour is not None


def test_the_same_adapter_is_refused_where_peft_does_not_know_it(
    gain: None, tmp_path: Path
) -> None:
    from packager.errors import RejectedPlanError
    from packager.tuner.registry import read_config

    base = make_qwen2(tmp_path / "base")
    case = make_tuned(base, tmp_path / "tuned", NAME)
    assert read_config(case.folder).strength == 1.0
    del mapping.PEFT_TYPE_TO_CONFIG_MAPPING[NAME]  # type: ignore[arg-type]
    with pytest.raises(RejectedPlanError) as caught:
        make_release(case, tmp_path / "out", "merged")
    assert "does not know the tuner 'GAIN'" in caught.value.found
    assert gain is None
