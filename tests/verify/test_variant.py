"""GGUF files and LoRAs in llama.cpp against base + adapter: what passes, what fails, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from packager.errors import ProofError
from packager.verify.behaviour import Truth, measure_truth
from packager.verify.judge import MERGED_BOUNDS, gguf_bounds
from packager.verify.variant import MOST_ANSWER_TOKENS, check_gguf, check_gguf_adapter
from tests.verify.ggufs import Made, make_ggufs, make_lora

PARAMETERS = 134_515_008


@pytest.fixture(scope="module")
def truth(small_base: Path, small_adapter: Path) -> Iterator[Truth]:
    with measure_truth(small_base, small_adapter, None) as measured:
        yield measured


@pytest.fixture(scope="module")
def made(small_base: Path, small_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("variant")
    return make_ggufs(small_base, small_adapter, folder, "F32", "F16", "Q8_0", "Q4_0")


def test_float32_is_base_and_adapter_but_for_the_order_of_additions(
    truth: Truth, made: Made
) -> None:
    check, ending = check_gguf(truth, made.path("F32"), "F32", parameters=PARAMETERS)
    assert check.problems == ()
    assert check.kl_mean < 1e-9
    assert check.top1_agreement == 1.0
    assert check.base_kl_mean > 0.1
    assert check.tokens == truth.tokens
    assert ending is None, "no answer of a model of bytes ends"


def test_fewer_bits_lose_more_and_still_pass(truth: Truth, made: Made) -> None:
    found = {
        quant: check_gguf(truth, made.path(quant), quant, parameters=PARAMETERS)[0]
        for quant in ("F16", "Q8_0", "Q4_0")
    }
    assert [check.problems for check in found.values()] == [(), (), ()]
    assert 1e-9 < found["F16"].kl_mean < found["Q8_0"].kl_mean < found["Q4_0"].kl_mean
    assert found["Q8_0"].effect_lost < 0.05


def test_progress_counts_passages(truth: Truth, made: Made) -> None:
    steps: list[tuple[str, int, int]] = []
    check_gguf(
        truth, made.path("Q8_0"), "Q8_0", parameters=PARAMETERS,
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    count = len(truth.passages)
    assert steps == [("llama.cpp Q8_0", number, count) for number in range(count + 1)]


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0"])
def test_a_file_that_has_lost_the_adapter_fails(
    truth: Truth, small_base: Path, small_adapter: Path, tmp_path: Path, quant: str
) -> None:
    lost = make_ggufs(small_base, small_adapter, tmp_path, quant, lost=True)
    check, _ = check_gguf(truth, lost.path(quant), quant, parameters=PARAMETERS)
    assert check.effect_lost == pytest.approx(1.0, abs=0.1)
    assert any(line.startswith("kl_mean is ") for line in check.problems)


def test_a_lora_on_the_base_is_the_adapter(
    truth: Truth, small_base: Path, small_adapter: Path, tmp_path: Path
) -> None:
    lora = make_lora(small_base, small_adapter, tmp_path / "lora")
    base = make_ggufs(small_base, small_adapter, tmp_path, "F32", lost=True).path("F32")
    whole = check_gguf_adapter(truth, base, lora, "F32", parameters=PARAMETERS)
    half = check_gguf_adapter(truth, base, lora, "F32", parameters=PARAMETERS, scale=0.5)
    none = check_gguf_adapter(truth, base, lora, "F32", parameters=PARAMETERS, scale=0.0)
    assert (whole.problems, whole.top1_agreement) == ((), 1.0)
    assert whole.kl_mean < 1e-9
    assert whole.kl_mean < half.kl_mean < none.kl_mean
    assert none.effect_lost == pytest.approx(1.0, abs=1e-3)
    assert half.problems
    assert none.problems


def test_a_lora_of_another_base_is_refused(
    truth: Truth, small_base: Path, small_adapter: Path, tmp_path: Path
) -> None:
    base = make_ggufs(small_base, small_adapter, tmp_path, "F32", lost=True).path("F32")
    with pytest.raises(ProofError) as caught:
        check_gguf_adapter(truth, base, base, "F32", parameters=PARAMETERS)
    assert "cannot load the LoRA" in caught.value.found


def test_another_vocabulary_is_refused(truth: Truth, made: Made) -> None:
    wider = replace(truth, vocabulary=300)
    with pytest.raises(ProofError, match="another vocabulary") as caught:
        check_gguf(wider, made.path("F32"), "F32", parameters=PARAMETERS)
    assert (caught.value.expected, caught.value.found) == ("300 tokens", "256")


def test_answers_have_to_end(truth: Truth, made: Made) -> None:
    endless = replace(truth, ended=truth.passages[:4], end=10)
    _, ending = check_gguf(endless, made.path("F32"), "F32", parameters=PARAMETERS)
    assert ending is not None
    assert (ending.answers, ending.ended) == (3, 0)
    assert ending.tokens == (MOST_ANSWER_TOKENS,) * 3
    assert ending.problems == (
        "llama.cpp does not end at token 10, where training ended",
        "none of 3 answers ended within 256 tokens, where those of base + adapter did",
    )


def test_bounds_grow_with_what_a_type_rounds_and_fall_with_size() -> None:
    quants = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K")
    noise = [gguf_bounds(quant, PARAMETERS).noise for quant in quants]
    assert noise == sorted(noise)
    assert gguf_bounds("F32", PARAMETERS) == MERGED_BOUNDS["F32"] == gguf_bounds("F32", 10**12)
    small, large = gguf_bounds("Q4_K_M", PARAMETERS), gguf_bounds("Q4_K_M", 8 * PARAMETERS)
    assert large.noise == pytest.approx(small.noise / 2)
    assert gguf_bounds("Q4_K_M", 10**6) == small
    assert gguf_bounds("IQ4_XS", 1) == gguf_bounds("Q4_0", 1)
