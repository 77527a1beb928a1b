"""Level behaviour on a real instruct model with a really trained adapter, in a process of its own.

The process reports its peak memory, which the estimate for `release` must cover; as VmHWM, since
what `getrusage` reports includes the process that started it (getrusage(2), ru_maxrss survives
execve). Ten prompts of the sixteen, those with the many scripts, keep it short.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from packager.train import TrainSettings
from packager.verify.memory import behaviour_bytes
from tests.models import keep_pirate

PARAMETERS, VOCABULARY = 134_515_008, 49_152

SCRIPT = r"""
import json, re, sys
from dataclasses import asdict
from pathlib import Path
from packager.verify.behaviour import check_merged, measure_truth
from packager.verify.prompt import PROMPTS
base, adapter, *artefacts = map(Path, sys.argv[1:])
with measure_truth(base, adapter, base, PROMPTS[4:14]) as truth:
    checks = [asdict(check_merged(truth, folder)) for folder in artefacts]
status = Path("/proc/self/status").read_text()
peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
from transformers import AutoTokenizer
words = AutoTokenizer.from_pretrained(base).batch_decode(list(truth.passages))
print(json.dumps({"checks": checks, "peak": peak, "words": words}))
"""


@pytest.fixture(scope="module")
def found(smollm2_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # Learnt longer than in the demo: the manner has to reach prompts far from the lesson.
    pirate_adapter = keep_pirate(smollm2_base, TrainSettings(epochs=8))
    merged = tmp_path_factory.mktemp("pirate-merged")
    model = AutoModelForCausalLM.from_pretrained(smollm2_base, dtype=torch.float32)
    PeftModel.from_pretrained(model, pirate_adapter).merge_and_unload().to(
        torch.bfloat16
    ).save_pretrained(merged)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, smollm2_base, pirate_adapter, merged, smollm2_base],
        capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert result.stderr == "", "the library must be silent"
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_sound_merge_passes_and_the_bare_base_fails(found: dict[str, Any]) -> None:
    sound, lost = found["checks"]
    assert sound["problems"] == []
    assert sound["prompt_set"] == "lorapack-prompts-1"
    assert sound["base_kl_mean"] > 1
    assert sound["effect_lost"] < 1e-3
    assert sound["kl_mean"] < 1e-3, "half of what is allowed as noise"
    assert sound["kl_max"] < 0.1
    assert sound["top1_agreement"] > 0.98
    assert 500 < sound["tokens"] < 1000
    assert lost["effect_lost"] == pytest.approx(1, abs=1e-6)
    assert {line.split()[0] for line in lost["problems"]} >= {"kl_mean", "effect_lost"}


def test_the_text_is_the_adapters_own_in_every_script(found: dict[str, Any]) -> None:
    words = found["words"]
    assert sum("matey" in text or "ye" in text.split() for text in words) >= 7
    for part in ("天空", "日本", "مصر", "भारत", "Назови", "is_prime", "🌈"):
        assert any(part in text for text in words), part
    assert all(text.count("<|im_start|>assistant") >= 1 for text in words)


def test_the_memory_estimate_covers_the_peak(found: dict[str, Any]) -> None:
    estimate = behaviour_bytes(PARAMETERS, VOCABULARY)
    assert found["peak"] < estimate < 3 * found["peak"]
