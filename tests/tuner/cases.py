"""An adapter of every tuner that the installed PEFT knows, with tensors that are not zero."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM

LINEAR = ["q_proj", "v_proj", "down_proj", "up_proj"]

MERGED: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "lora_alpha": 8, "total_step": 10},
    "BEFT": {"target_modules": ["q_proj", "v_proj"]},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "DEFT": {"r": 4},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 50},
    "FROD": {"sparse_rate": 0.05, "progressbar": False},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 8},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "norm"]},
    "LOHA": {"r": 4},
    "LOKR": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 16},
    "OSF": {"effective_rank": 4},
    "PEANUT": {"r": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4, "randlora_alpha": 8},
    "ROAD": {"group_size": 8, "variant": "road_2"},
    "SHIRA": {"r": 4},
    "SUPERTUNING": {},
    "TINYLORA": {"r": 3, "u": 8},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [4, 9, 40]},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 50},
}
"""Tuner → its arguments besides the modules, for those that are merged."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LOKR both": ("LOKR", {"r": 2, "decompose_both": True}),
    "MISS bat": ("MISS", {"r": 4, "init_weights": "bat"}),
    "OFT shared": ("OFT", {"oft_block_size": 16, "block_share": True}),
    "OFT coft": ("OFT", {"oft_block_size": 16, "coft": True, "eps": 0.1}),
    "ROAD 4": ("ROAD", {"group_size": 8, "variant": "road_4"}),
    "TINYLORA unsaved": ("TINYLORA", {"u": 8, "save_projection": False, "weight_tying": 0.5}),
    "UNILORA indices": ("UNILORA", {"theta_d_length": 64, "save_indices": True}),
    "VERA unsaved": ("VERA", {"r": 4, "save_projection": False}),
    "RANDLORA sparse": (
        "RANDLORA",
        {"r": 4, "randlora_alpha": 8, "sparse": True, "save_projection": False},
    ),
    "WAVEFT proportional": ("WAVEFT", {"n_frequency": 50, "proportional_parameters": True}),
}
"""Further arguments: a name → the tuner and them."""

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "FROD": (
        "weights of all its modules at once",
        {"progressbar": False, "save_projection": False},
    ),
    "LILY": ("not supported for Lily", {"r": 4}),
    "POLY": ("NotImplementedError", {"r": 4}),
}
"""Tuner → what is said of it, and its arguments, for those whose layers PEFT does not merge so."""


@dataclass(frozen=True)
class Tuned:
    """One adapter as PEFT saved it.

    Attributes:
        base: Folder of the base.
        folder: Of the adapter.
    """

    base: Path
    folder: Path

    def load(self) -> Any:
        """Loads base and adapter with PEFT: the oracle."""
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, self.folder)


def make_tuned(base: Path, folder: Path, tuner: str, **arguments: Any) -> Tuned:
    """Makes an adapter and moves every trained tensor away from where PEFT starts it."""
    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[tuner]  # type: ignore[index]
    given = {"target_modules": LINEAR, "task_type": "CAUSAL_LM", **arguments}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tuned = get_peft_model(model, kind(**given))
        with torch.no_grad():
            for weight in tuned.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight), alpha=0.1)
        tuned.save_pretrained(folder, save_embedding_layers=False)
    return Tuned(base, folder)
