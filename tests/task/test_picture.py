"""A vision-language model: its processor travels along, its answers to text are compared."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from packager.release import Release
from tests.models import write_tokenizer
from tests.task.conftest import release_it

FILES = {
    "preprocessor_config.json": b'{"image_processor_type": "Qwen2VLImageProcessor",\r\n "a": 1}',
    "video_preprocessor_config.json": b'{"video_processor_type": "Qwen2VLVideoProcessor"}  ',
    "processor_config.json": b'{"processor_class":"Qwen2_5_VLProcessor"}',
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("picture") / "base"
    tokens = write_tokenizer(out)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokens, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 256, "initializer_range": 0.15,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4,
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4,
            "patch_size": 4, "spatial_merge_size": 2, "out_hidden_size": 32,
            "window_size": 16, "fullatt_block_indexes": [1],
        },
        vision_start_token_id=4, image_token_id=5, vision_end_token_id=6, video_token_id=7,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(out)
    (out / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    for name, data in FILES.items():
        (out / name).write_bytes(data)
    return out


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    out = base.parent / "adapter"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype="float32")
        lora = peft.LoraConfig(
            r=3, lora_alpha=7, task_type="CAUSAL_LM", target_modules=["q_proj", "qkv", "down_proj"]
        )
        tuned = peft.get_peft_model(model, lora)
        for name, item in tuned.named_parameters():
            if item.requires_grad:
                assert "lora_" in name
                torch.nn.init.normal_(item, std=0.1)
    tuned.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def made(base: Path, adapter: Path) -> Release:
    return release_it(base, adapter, base.parent / "out")


def test_processor_files_travel_byte_for_byte(made: Release) -> None:
    for name, data in FILES.items():
        assert (made.bundle / "merged" / "it" / name).read_bytes() == data


def test_the_adapter_s_own_processor_comes_first(base: Path, adapter: Path, tmp_path: Path) -> None:
    own = b'{"processor_class": "Qwen2_5_VLProcessor", "own": true}'
    (adapter / "processor_config.json").write_bytes(own)
    try:
        bundle = release_it(base, adapter, tmp_path / "out").bundle
    finally:
        (adapter / "processor_config.json").unlink()
    merged = bundle / "merged" / "it"
    assert (merged / "processor_config.json").read_bytes() == own
    assert (merged / "preprocessor_config.json").read_bytes() == FILES["preprocessor_config.json"]


def test_it_is_compared_on_text_and_named_by_its_task(made: Release) -> None:
    proof = made.proof.targets[0]
    assert proof.problems == ()
    assert proof.behaviour is not None
    assert proof.behaviour.measure == "next token"
    assert proof.behaviour.effect_lost < 1e-6
    card = (made.bundle / "merged" / "it" / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-text-to-text\n" in card
    assert "import AutoModelForImageTextToText, AutoProcessor" in card
    assert "without a picture" in card


def test_pictures_are_seen_as_base_and_adapter_see_them(
    base: Path, adapter: Path, made: Release
) -> None:
    auto = transformers.AutoModelForImageTextToText
    merged, info = auto.from_pretrained(made.bundle / "merged" / "it", output_loading_info=True)
    assert not any(info.values())
    without = auto.from_pretrained(base).eval()
    truth = peft.PeftModel.from_pretrained(auto.from_pretrained(base), adapter).eval()
    ids = torch.tensor([[4, 5, 6, 40, 41, 42]])
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(4, 96, generator=torch.Generator().manual_seed(1)),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
        "mm_token_type_ids": (ids == 5).int(),
    }
    with torch.inference_mode():
        first, second, third = (
            model(**inputs).logits.double() for model in (truth, merged.eval(), without)
        )
    assert (second - first).norm() < 1e-5 * (third - first).norm()
    names = load_file(made.bundle / "merged" / "it" / "model.safetensors")
    assert set(names) == set(load_file(base / "model.safetensors"))
