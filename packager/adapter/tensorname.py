"""Names in an adapter's weights file, and what each tells of its tensor.

Source: PEFT 0.21, utils/save_and_load.py (get_peft_model_state_dict: the wrapper's prefix, the
module's dotted name, then the parameter without the adapter's name), tuners/lora/layer.py and
variants.py (parameters of the layers), utils/other.py (ModulesToSaveWrapper,
TrainableTokensWrapper).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Part = Literal[
    "lora_a",  # lora_A, lora_B: of a linear layer
    "lora_b",
    "embedding_a",
    "embedding_b",
    "magnitude",
    "lora_bias",
    "tokens",  # rows of an embedding
    "frozen",  # the base's own parameter below an adapter's
    "saved",  # a parameter by the model's own name
    "again",  # the same, from inside of its wrapper
    "diagonal",  # of KaSA
    "idle",  # of training only
]

_PREFIX = "base_model.model."
_WRAPPED = r"(?:base_layer|token_adapter\.base_layer|original_module)"
_FORMS: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"(?P<module>.+)\.lora_A\.weight"), "lora_a"),
    (re.compile(r"(?P<module>.+)\.lora_B\.weight"), "lora_b"),
    (re.compile(r"(?P<module>.+)\.lora_B\.bias"), "lora_bias"),
    (re.compile(r"(?P<module>.+)\.lora_embedding_A"), "embedding_a"),
    (re.compile(r"(?P<module>.+)\.lora_embedding_B"), "embedding_b"),
    (re.compile(r"(?P<module>.+)\.lora_magnitude_vector"), "magnitude"),
    (re.compile(r"(?P<module>.+)\.lora_diag"), "diagonal"),
    (re.compile(r"(?P<module>.+)\.lora_velora_embed"), "idle"),
    (re.compile(r"(?P<module>.+)\.lora_monteclora_sampler(?:\..+)?"), "idle"),
    (re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta"), "tokens"),
    (re.compile(rf"(?P<module>.+?)\.{_WRAPPED}\.(?P<leaf>weight|bias)"), "frozen"),
    (re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<leaf>.+)"), "again"),
)
_PARAMETER = re.compile(r"(?P<module>.+)\.(?P<leaf>[^.]+)")


@dataclass(frozen=True)
class TensorName:
    """A name, taken apart.

    Attributes:
        part: What the tensor is.
        module: Dotted name of the module in the model.
        leaf: Of a parameter of the model, its last name; else empty.
    """

    part: Part
    module: str
    leaf: str = ""

    @property
    def parameter(self) -> str:
        """Name of the model's parameter."""
        return f"{self.module}.{self.leaf}"


def parse_tensor_name(name: str) -> TensorName | None:
    """Takes a name apart; None where no form of LoRA's has it."""
    if not name.startswith(_PREFIX):
        return None
    rest = name.removeprefix(_PREFIX)
    for form, part in _FORMS:
        if (match := form.fullmatch(rest)) is not None:
            return TensorName(part, match["module"], match.groupdict().get("leaf") or "")
    if ".lora_" in rest or (match := _PARAMETER.fullmatch(rest)) is None:
        return None
    return TensorName("saved", match["module"], match["leaf"])
