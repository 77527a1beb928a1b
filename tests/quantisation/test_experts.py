"""An adapter of experts that the base stores in MXFP4, which PEFT trains dequantised."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from packager.mergefolder import merge_to_folder
from packager.progress import Silent


def test_experts_in_mxfp4_are_merged_as_peft_merges_them(gpt_oss: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj", "router.weight"],
    )  # fmt: skip
    # Without Triton, transformers dequantises to bfloat16, which holds every value of MXFP4.
    base = AutoModelForCausalLM.from_pretrained(gpt_oss, dtype=torch.float32).float()
    tuned = get_peft_model(base, config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=random) * 0.2)
    tuned.save_pretrained(tmp_path / "adapter")
    merge_to_folder(str(gpt_oss), tmp_path / "adapter", tmp_path / "merged", 5 << 30, Silent())
    again = AutoModelForCausalLM.from_pretrained(gpt_oss, dtype=torch.float32).float()
    truth = PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload().state_dict()
    merged = load_file(tmp_path / "merged/model.safetensors")
    names = [name for name in merged if name.endswith(("gate_up_proj", "down_proj"))]
    assert len(names) == 4
    for name in names:
        assert merged[name].dtype == torch.bfloat16
        # Half a unit in the last place of bfloat16, and what float32 loses.
        error = (merged[name].double() - truth[name].double()).abs()
        assert bool((error <= 2.0**-8 * truth[name].double().abs() * (1 + 1e-3) + 1e-5).all())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokens = torch.arange(3, 60).view(3, 19)
    with torch.inference_mode():
        wanted = tuned(input_ids=tokens).logits
        found = loaded(input_ids=tokens).logits
    assert (found - wanted).norm() < 0.05 * wanted.norm()
