"""What vLLM takes, as read in the release that the launch configuration is checked against.

Source: vLLM 0.32.0, vllm/config/lora.py (ranks), model_executor/models/registry.py and the
classes that it names (which of them are `SupportsLoRA`), lora/peft_helper.py,
model_executor/layers/quantization/__init__.py.
"""

from __future__ import annotations

from packager.adapter.support import VLLM_CHECKED

VLLM_VERSION = VLLM_CHECKED.removeprefix("vLLM ")

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `--max-lora-rank`."""

WITHOUT_LORA = frozenset(
    {
        "BailingMoeV2_5ForCausalLM", "BailingMoeV3ForCausalLM", "BloomForCausalLM",
        "Cohere2MoeForCausalLM", "DbrxForCausalLM", "FalconForCausalLM",
        "FalconMambaForCausalLM", "Gemma3nForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM",
        "HCXVisionV2ForCausalLM", "HrmTextForCausalLM", "IQuestLoopCoderForCausalLM",
        "Mamba2ForCausalLM", "MambaForCausalLM", "MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM",
        "OrionForCausalLM", "StableLmForCausalLM", "Step1ForCausalLM", "Step3TextForCausalLM",
        "Step3p5ForCausalLM", "Zamba2ForCausalLM",
    }
)  # fmt: skip
"""Architectures that it serves with a class of its own which takes no adapter."""

QUANTIZATIONS = frozenset(
    {"auto-round", "awq", "compressed-tensors", "fp8", "gptq", "modelopt", "mxfp4", "quark"}
)
"""Of a base, as its configuration names them; bitsandbytes is no longer among them."""

GATE = "lorapack_gate.Gate"
"""The middleware that keeps the doors; its package stands in the bundle's folder `gate`."""


def find_lora_rank(rank: int) -> int | None:
    """Returns the smallest `--max-lora-rank` that holds a rank, or None if there is none."""
    return next((limit for limit in LORA_RANKS if limit >= rank), None)
