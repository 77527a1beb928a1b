"""Level behaviour, on models that were really trained and really merged; PEFT is the oracle."""

from __future__ import annotations

import gc
import json
import logging
import resource
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from packager.errors import AdapterError, InputError, OutputError, ProofError
from packager.verify import behaviour
from packager.verify.behaviour import Truth, check_merged, compare, measure_truth
from packager.verify.judge import MERGED_BOUNDS
from packager.verify.prompt import PROMPTS, Message, Prompt
from packager.verify.proof import SCHEMA_VERSION, BehaviourCheck, Proof, TargetProof, render_proof
from tests.verify.conftest import Edit

Merge = Callable[[Path, Path, str], Path]
EditWeights = Callable[[Path, str, Edit], Path]
WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def truth(small_base: Path, small_adapter: Path) -> Iterator[Truth]:
    with measure_truth(small_base, small_adapter, None) as measured:
        yield measured


@pytest.fixture(scope="module")
def merged(small_base: Path, small_adapter: Path, merge_with_peft: Merge) -> Path:
    return merge_with_peft(small_base, small_adapter, "bfloat16")


def _figures(check: BehaviourCheck) -> set[str]:
    return {line.split()[0] for line in check.problems}


@pytest.mark.parametrize(
    ("dtype", "least", "most"),
    [("float32", 0.0, 1e-9), ("float16", 1e-10, 2e-6), ("bfloat16", 1e-8, 2e-4)],
)
def test_passes_pefts_own_merge(
    truth: Truth,
    small_base: Path,
    small_adapter: Path,
    merge_with_peft: Merge,
    dtype: str,
    least: float,
    most: float,
) -> None:
    check = check_merged(truth, merge_with_peft(small_base, small_adapter, dtype))
    assert check.problems == ()
    assert least <= check.kl_mean <= most
    assert check.kl_mean <= check.kl_max <= 100 * max(check.kl_mean, 1e-9)
    assert check.base_kl_mean > 0.3, "the adapter of this test must do something"
    assert check.effect_lost == pytest.approx(check.kl_mean / check.base_kl_mean)
    assert check.effect_lost < 1e-3
    assert check.top1_agreement > 0.97
    assert check.perplexity_ratio == pytest.approx(1, abs=0.02)
    assert check.prompts == len(PROMPTS) == 16
    assert check.tokens == len(check.kl_per_token) == len(check.base_kl_per_token)
    assert check.tokens == sum(len(ids) - 1 for ids in truth.passages)


def test_rounding_goes_with_the_square_of_the_unit(
    truth: Truth, merged: Path, small_base: Path, small_adapter: Path, merge_with_peft: Merge
) -> None:
    coarse = check_merged(truth, merged).kl_mean
    fine = check_merged(truth, merge_with_peft(small_base, small_adapter, "float16")).kl_mean
    assert 20 < coarse / fine < 200  # 64 in theory: what the bounds are derived from


def test_fails_an_artefact_without_the_adapter(truth: Truth, small_base: Path) -> None:
    check = check_merged(truth, small_base)
    assert check.effect_lost == pytest.approx(1.0, abs=1e-9)
    assert check.kl_per_token == pytest.approx(check.base_kl_per_token)
    assert {"kl_mean", "effect_lost"} <= _figures(check)
    assert "effect_lost is 1, more than 0.0" in "\n".join(check.problems)


@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.weight", "lm_head.weight"])
def test_fails_one_perturbed_tensor(
    truth: Truth, merged: Path, edit_weights: EditWeights, name: str
) -> None:
    def perturb(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        noise = torch.randn_like(tensors[name].float()) * tensors[name].float().std()
        return {**tensors, name: (tensors[name].float() + 0.5 * noise).bfloat16()}

    sound, check = (
        check_merged(truth, merged),
        check_merged(truth, edit_weights(merged, WEIGHTS, perturb)),
    )
    assert check.kl_mean > 100 * sound.kl_mean
    assert {"kl_mean", "effect_lost"} <= _figures(check)


def test_fails_an_adapter_at_half_its_scale(
    truth: Truth, small_base: Path, small_adapter: Path, merge_with_peft: Merge, tmp_path: Path
) -> None:
    half = _copy_with_config(small_adapter, tmp_path / "half", lora_alpha=4)
    check = check_merged(truth, merge_with_peft(small_base, half, "bfloat16"))
    assert 0.02 < check.effect_lost < 1
    assert "effect_lost" in _figures(check)


def test_an_adapter_without_effect_neither_divides_by_zero_nor_fails(
    small_base: Path, small_adapter: Path, merged: Path, edit_weights: EditWeights
) -> None:
    def silence(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: t * (0 if "lora_B" in name else 1) for name, t in tensors.items()}

    idle = edit_weights(small_adapter, ADAPTER_WEIGHTS, silence)
    with measure_truth(small_base, idle, None) as truth:
        assert set(truth.base_kl) == {0.0}
        check = check_merged(truth, small_base)
        assert check.problems == ()
        assert check.effect_lost == check.kl_mean == 0.0
        # The bound on the KL itself still stands.
        assert "kl_mean" in _figures(check_merged(truth, merged))


def test_a_weak_adapter_must_leave_something_too(
    small_base: Path, small_adapter: Path, merge_with_peft: Merge, edit_weights: EditWeights
) -> None:
    """However little an adapter does: a model without it fails, a sound merge passes."""

    def weaken(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: t * (0.03 if "lora_B" in name else 1) for name, t in tensors.items()}

    weak = edit_weights(small_adapter, ADAPTER_WEIGHTS, weaken)
    with measure_truth(small_base, weak, None) as truth:
        sound = check_merged(truth, merge_with_peft(small_base, weak, "bfloat16"))
        lost = check_merged(truth, small_base)
    assert 1e-4 < sound.base_kl_mean < 2e-3, "weaker than the noise that is allowed otherwise"
    assert sound.problems == ()
    assert lost.effect_lost == pytest.approx(1.0)
    assert "effect_lost" in _figures(lost)


def test_counts_what_is_not_finite_and_stays_json(
    truth: Truth, merged: Path, edit_weights: EditWeights
) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        head = tensors["lm_head.weight"].clone()
        head[5, 0] = float("nan")
        return {**tensors, "lm_head.weight": head}

    check = check_merged(truth, edit_weights(merged, WEIGHTS, poison))
    assert check.kl_mean == 1000.0
    assert {"kl_mean", "kl_max", "effect_lost", "perplexity_ratio"} <= _figures(check)
    target = TargetProof("merged", "x", None, None, check, {})
    text = render_proof(
        Proof(SCHEMA_VERSION, "now", "b", "sha256:0", "lock", {}, {}, "m", (target,))
    )

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(text, parse_constant=refuse)["passed"] is False


def test_names_tensors_that_are_missing_or_left_over(
    truth: Truth, merged: Path, edit_weights: EditWeights
) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.layers.1.mlp.up_project.weight"] = tensors.pop(
            "model.layers.1.mlp.up_proj.weight"
        )
        return tensors

    check = check_merged(truth, edit_weights(merged, WEIGHTS, rename))
    assert check.problems[0] == (
        "weights are missing in the files: model.layers.1.mlp.up_proj.weight"
    )
    assert check.problems[1] == (
        "the model does not use these tensors: model.layers.1.mlp.up_project.weight"
    )


def test_a_tensor_that_the_base_does_not_use_either_is_no_problem(
    small_base: Path, small_adapter: Path, merged: Path, edit_weights: EditWeights
) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**tensors, "draft.head.weight": torch.zeros(2)}

    base = edit_weights(small_base, WEIGHTS, add)
    with measure_truth(base, small_adapter, None, PROMPTS[:2]) as truth:
        assert check_merged(truth, edit_weights(merged, WEIGHTS, add)).problems == ()


def test_refuses_another_vocabulary(truth: Truth, merged: Path, edit_weights: EditWeights) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = ("lm_head.weight", "model.embed_tokens.weight")
        return {n: torch.cat([t, t[:8]]) if n in names else t for n, t in tensors.items()}

    folder = edit_weights(merged, WEIGHTS, widen)
    _set_config(folder / "config.json", vocab_size=264)
    with pytest.raises(ProofError) as caught:
        check_merged(truth, folder)
    assert caught.value.expected.startswith("256 tokens")
    assert caught.value.found.startswith("264 tokens")
    # Refused half-way, it leaves nothing switched on behind it.
    del caught
    gc.collect()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def _wrong_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("model.layers", "layers"): t for name, t in tensors.items()}


def _one_less(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t for name, t in tensors.items() if "layers.3.mlp.up_proj." not in name}


def _one_more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = [name for name in tensors if "layers.3.mlp.up_proj." in name]
    more = {name.replace("layers.3", "layers.9"): tensors[name].clone() for name in names}
    return {**tensors, **more}


def _too_wide(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: torch.cat([t, t], 1) if "lora_A" in n else t for n, t in tensors.items()}


def _not_finite(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t * float("inf") if "layers.0.mlp" in n else t for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("change", "what", "found"),
    [
        (_wrong_prefix, "weights do not match", "base_model.model.layers.0."),
        (_one_less, "weights do not match", "none of them"),
        (_one_more, "weights do not match", "layers.9.mlp.up_proj"),
        (_too_wide, "PEFT cannot load", "size mismatch"),
        (_not_finite, "NaN or infinity", ""),
    ],
)
def test_refuses_a_damaged_adapter(
    small_base: Path,
    small_adapter: Path,
    edit_weights: EditWeights,
    change: Edit,
    what: str,
    found: str,
) -> None:
    damaged = edit_weights(small_adapter, ADAPTER_WEIGHTS, change)
    with pytest.raises(AdapterError) as caught:
        measure_truth(small_base, damaged, None, PROMPTS[:1])
    assert what in caught.value.what
    assert found in caught.value.found


def test_refuses_adapters_that_load_code(
    small_base: Path, small_adapter: Path, tmp_path: Path
) -> None:
    pickled = _copy_with_config(small_adapter, tmp_path / "pickled")
    weights = load_file(pickled / ADAPTER_WEIGHTS)
    (pickled / ADAPTER_WEIGHTS).unlink()
    torch.save(weights, pickled / "adapter_model.bin")
    with pytest.raises(InputError, match="cannot be read"):
        measure_truth(small_base, pickled, None, PROMPTS[:1])
    torch.save(weights, pickled / ADAPTER_WEIGHTS)
    with pytest.raises(InputError, match="pickle"):
        measure_truth(small_base, pickled, None, PROMPTS[:1])
    for name, change in (
        ("x", {"peft_type": "XLORA"}),
        ("m", {"megatron_config": {}, "megatron_core": "megatron.core"}),
    ):
        hostile = _copy_with_config(small_adapter, tmp_path / name, **change)
        with pytest.raises(AdapterError, match="loads other code or adapters"):
            measure_truth(small_base, hostile, None, PROMPTS[:1])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantised checkpoint"),
        ({"num_hidden_layers": 10**9}, "more layers than there are tensors"),
        ({"num_hidden_layers": "many"}, "cannot be loaded"),
        ({"hidden_size": -1}, "cannot be loaded"),
        ({"num_attention_heads": 0}, "cannot be loaded"),
        ({"hidden_size": 128}, "cannot be loaded"),
        ({"model_type": "such-a-type", "auto_map": {"AutoConfig": "x.Y"}}, "cannot be loaded"),
        ({"rope_parameters": ["?"]}, "cannot be loaded"),
    ],
)
def test_refuses_a_hostile_config(
    truth: Truth, merged: Path, tmp_path: Path, change: dict[str, object], what: str
) -> None:
    folder = shutil.copytree(merged, tmp_path / "hostile")
    _set_config(folder / "config.json", **change)
    with pytest.raises(ProofError, match=what) as caught:
        check_merged(truth, folder)
    assert str(folder) in caught.value.where


def test_refuses_files_that_lead_elsewhere(
    truth: Truth, merged: Path, small_adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(merged, tmp_path / "stray")
    shutil.copy(small_adapter / "adapter_config.json", folder)
    with pytest.raises(ProofError, match="an adapter's configuration"):
        check_merged(truth, folder)
    (folder / "adapter_config.json").unlink()
    (folder / WEIGHTS).rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match="leads outside"):
        check_merged(truth, folder)


def test_says_nothing_and_asks_nobody(
    small_base: Path,
    small_adapter: Path,
    merged: Path,
    edit_weights: EditWeights,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("somebody opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    damaged = edit_weights(merged, WEIGHTS, lambda tensors: {**tensors, "x": torch.zeros(1)})
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        with measure_truth(small_base, small_adapter, None, PROMPTS[:2]) as truth:
            check_merged(truth, damaged)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_continues_with_the_truths_own_words(truth: Truth) -> None:
    """The end of each passage is what base + adapter say, bar flips between near-ties."""
    agreeing = total = 0
    for ids, logits in zip(truth.passages, truth.read_logits(), strict=True):
        chosen = logits.argmax(-1)[-24:]
        agreeing += int((chosen == torch.tensor(ids[-24:])).sum())
        total += len(chosen)
    assert total == 16 * 24
    assert agreeing / total > 0.97


def test_reports_progress(small_base: Path, small_adapter: Path, merged: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    with measure_truth(
        small_base, small_adapter, None, PROMPTS[:3], progress=lambda *step: steps.append(step)
    ) as truth:
        check_merged(truth, merged, progress=lambda *step: steps.append(step))
    assert [step for step in steps if step[0] == "base + adapter"] == [
        ("base + adapter", done, 3) for done in range(4)
    ]
    assert steps[-1] == ("merged model", 3, 3)


def test_fits_short_contexts_and_tiny_vocabularies(
    small_base: Path, small_adapter: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    get_peft_model(
        model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    ).save_pretrained(tmp_path / "adapter")
    long = Prompt("long", (Message("user", "ä" * 500),))
    with measure_truth(tmp_path / "base", tmp_path / "adapter", None, [long]) as truth:
        assert [len(ids) for ids in truth.passages] == [16]
        assert max(truth.passages[0]) < 40
        assert check_merged(truth, tmp_path / "base").problems == ()


def test_keeps_large_logits_in_a_file_that_vanishes(
    small_base: Path,
    small_adapter: Path,
    merged: Path,
    truth: Truth,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(behaviour, "_MEMORY_BYTES", 4096)
    with measure_truth(small_base, small_adapter, None) as spilled:
        assert list(tmp_path.iterdir()) == [], "a name would be left behind by kill -9"
        assert spilled._store.fileno() > 2, "it should lie in a file"
        # Read twice: a second artefact is compared with the same truth.
        first, second = (check_merged(spilled, merged) for _ in range(2))
    assert first == second == check_merged(truth, merged)
    with pytest.raises(ValueError, match="closed"):
        next(spilled.read_logits())


def test_says_when_the_temporary_file_does_not_fit(
    small_base: Path, small_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behaviour, "_MEMORY_BYTES", 4096)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, limits[1]))
    try:
        with pytest.raises(OutputError, match="temporary file") as caught:
            measure_truth(small_base, small_adapter, None, PROMPTS[:2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "TMPDIR" in caught.value.hint


def test_takes_log_probabilities_too(truth: Truth, small_base: Path) -> None:
    """The seam for other runtimes: they give log-probabilities, and another constant."""
    bounds = MERGED_BOUNDS["BF16"]
    shifted = compare(truth, (rows + 3.5 for rows in truth.read_logits()), bounds=bounds)
    normal = compare(
        truth, (torch.log_softmax(rows, -1) for rows in truth.read_logits()), bounds=bounds
    )
    for check in (shifted, normal):
        assert check.problems == ()
        assert check.kl_max < 1e-10
        assert check.top1_agreement == 1.0
    with pytest.raises(ValueError, match="shorter"):
        compare(truth, iter([next(truth.read_logits())]), bounds=bounds)


def _copy_with_config(folder: Path, copy: Path, **change: object) -> Path:
    shutil.copytree(folder, copy)
    _set_config(copy / "adapter_config.json", **change)
    return copy


def _set_config(path: Path, **change: object) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **change}), encoding="utf-8")
