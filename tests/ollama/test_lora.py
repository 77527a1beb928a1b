"""--target gguf-adapter: in llama.cpp, base + GGUF LoRA is base + adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from transformers import AutoModelForCausalLM

from packager.errors import ProofError, RejectedPlanError
from packager.plan import ReleaseOptions
from packager.plan.option import LoraType
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from packager.verify.bundle import verify_bundle
from packager.verify.llama import run_llama
from tests import models
from tests.gguf.reading import read_keys
from tests.llamacpp_source import Conversion, convert_all
from tests.ollama.conftest import ATTENTION, TEST_PRE

PASSAGE = tuple(range(3, 60))
LORAS: dict[str, dict[str, Any]] = {
    "llama": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 6, "down_proj": 2},
        "alpha_pattern": {"k_proj": 3, "up_proj": 11},
    },
    "llama-tied": {},
    "qwen2": {"r": 3, "lora_alpha": 7},
    "gemma2": {},
    "mixtral": {"target_modules": ATTENTION},
    "phi2": {},
    "gpt2": {},
    "stablelm": {},
}


@pytest.fixture(scope="module")
def worlds(
    bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path, Path]]:
    """Name → base, adapter, and the base as llama.cpp's converter writes it."""
    root = tmp_path_factory.mktemp("loras")
    made = {}
    for name, lora in LORAS.items():
        arguments = {"target_modules": "all-linear", **lora}
        adapter = models.make_adapter(bases[name], root / name / "pirate", **arguments)
        made[name] = (bases[name], adapter, root / name / "base.gguf")
    convert_all([Conversion(base, out, "f32", TEST_PRE) for base, _, out in made.values()])
    return made


def make(base: Path, adapter: Path, out: Path, kind: LoraType = "F32") -> Path:
    options = ReleaseOptions(targets=("gguf-adapter",), license="mit", adapter_type=kind)
    request = ReleaseRequest(
        ((None, adapter),), out, base=str(base), options=options, behaviour=False
    )
    return release(request, Silent()).bundle


@pytest.mark.parametrize("name", LORAS)
@pytest.mark.parametrize(("kind", "most"), [("F32", 2e-3), ("F16", 5e-3)])
def test_base_and_lora_are_base_and_adapter(
    name: str, kind: LoraType, most: float, worlds: dict[str, tuple[Path, Path, Path]],
    tmp_path: Path,
) -> None:  # fmt: skip
    base, adapter, gguf = worlds[name]
    bundle = make(base, adapter, tmp_path / "out", kind)
    lora = bundle / f"gguf-adapter/pirate/pirate-lora-{kind}.gguf"
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([PASSAGE])
    with torch.inference_mode():
        without = plain(ids).logits[0, :-1].log_softmax(1)
        tuned = PeftModel.from_pretrained(plain, adapter)
        wanted = tuned(input_ids=ids).logits[0, :-1].log_softmax(1)
    with run_llama(gguf, (PASSAGE,), adapter=lora) as run:
        (logits,) = run.read_logits()
    found = logits.log_softmax(1)[:, : wanted.shape[1]]
    assert (found - wanted).norm() < most * (without - wanted).norm()


def test_the_file_says_what_the_loader_asks_for(
    worlds: dict[str, tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    base, adapter, _ = worlds["llama"]
    path = make(base, adapter, tmp_path / "out") / "gguf-adapter/pirate/pirate-lora-F32.gguf"
    keys = {name: value for name, (_, value) in read_keys(path).items() if "GGUF" not in name}
    assert keys == {
        "general.architecture": "llama", "general.type": "adapter", "general.name": "pirate",
        "adapter.type": "lora", "adapter.lora.alpha": 0.0,
    }  # fmt: skip
    names = {tensor.name for tensor in GGUFReader(path).tensors}
    assert len(names) == 2 * 2 * 7
    assert {"blk.0.attn_q.weight.lora_a", "blk.1.ffn_down.weight.lora_b"} < names


def test_verify_sees_a_changed_value(
    worlds: dict[str, tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    from packager.verify.lora import check_gguf_lora

    base, adapter, _ = worlds["llama"]
    options = ReleaseOptions(targets=("gguf-adapter",), license="mit")
    request = ReleaseRequest(
        ((None, adapter),), tmp_path / "out", base=str(base), options=options, behaviour=False
    )
    made = release(request, Silent())
    folder = made.bundle / "gguf-adapter/pirate"
    (target,) = made.plan.targets
    assert target.gguf_lora is not None
    proof = verify_bundle(made.bundle, level="weights", base=None, progress=Silent())
    assert proof.targets[0].problems == ()
    path = folder / target.gguf_lora.path
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x40
    path.write_bytes(data)
    from packager.adapter import read_adapter

    check = check_gguf_lora(target.gguf_lora, folder, read_adapter(adapter))
    assert [line for line in check.problems if "is not what the adapter was trained to" in line]


@pytest.mark.parametrize(
    ("lora", "part"),
    [
        ({"target_modules": ["lm_head", "q_proj"]}, "cannot carry 1 of the 3 adapted modules"),
        ({"use_dora": True}, "feature 'dora'"),
        ({"modules_to_save": ["lm_head"]}, "feature 'modules_to_save'"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "feature 'LoRA on embeddings'"),
    ],
)
def test_what_it_cannot_carry_is_refused_by_name(
    lora: dict[str, Any], part: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["llama-tied"]
    adapter = models.make_adapter(base, tmp_path / "pirate", **lora)
    with pytest.raises(RejectedPlanError) as caught:
        make(base, adapter, tmp_path / "out")
    assert any(part in str(problem) for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_llama_cpp_itself_refuses_the_lora_of_another_architecture(
    worlds: dict[str, tuple[Path, Path, Path]], tmp_path: Path
) -> None:
    base, adapter, _ = worlds["qwen2"]
    lora = make(base, adapter, tmp_path / "out") / "gguf-adapter/pirate/pirate-lora-F32.gguf"
    with (
        pytest.raises(ProofError, match="does not run the file"),
        run_llama(worlds["llama"][2], (PASSAGE,), adapter=lora) as run,
    ):
        list(run.read_logits())
