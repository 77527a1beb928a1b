"""The terminal summary, and the figures and words that it shares with the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.verify.figure import (
    describe_bytes,
    describe_count,
    describe_number,
    describe_share,
    describe_small_share,
    printable,
)
from packager.verify.proof import ChatCheck, FilesCheck, VariantProof
from packager.verify.text import render_proof_text
from packager.verify.wording import judge_proof
from tests.verify.proofs import (
    HOSTILE,
    SCRIPTS,
    make_adapter_target,
    make_behaviour,
    make_gguf_target,
    make_proof,
    make_target,
    make_weights,
)


def test_passed(check_golden: Callable[[str, str], None]) -> None:
    check_golden("proof/passed.txt", render_proof_text(make_proof()))


def test_failed(check_golden: Callable[[str, str], None]) -> None:
    problems = tuple(f"model.layers.{i}.mlp.up_proj.weight differs from what was planned"
                     for i in range(8))  # fmt: skip
    target = make_target(
        name="海賊",
        files=FilesCheck(9, 271_000_000, ("merged/海賊/config.json differs",)),
        weights=make_weights(problems=problems),
        behaviour=make_behaviour(loss=1.0),
    )
    check_golden("proof/failed.txt", render_proof_text(make_proof(make_adapter_target(), target)))


def test_gguf(check_golden: Callable[[str, str], None]) -> None:
    good = make_gguf_target()
    first, second = good.variants
    assert first.behaviour is not None
    assert first.weights is not None
    assert first.ending is not None
    bad = replace(
        good,
        name="lost",
        variants=(
            replace(
                first,
                weights=replace(first.weights, problems=("blk.0.attn_q.weight is missing",)),
                behaviour=replace(first.behaviour, problems=("kl_mean is 1.9, more than 1.5",)),
                ending=replace(first.ending, ended=0, problems=("none of 3 answers ended",)),
            ),
            replace(second, weights=None, behaviour=None, ending=None),
        ),
        chat=ChatCheck(8, 7, ("system: token 5 differs",)),
    )
    assert good.passed
    assert bad.problems == (
        "Q4_K_M: blk.0.attn_q.weight is missing",
        "Q4_K_M: kl_mean is 1.9, more than 1.5",
        "Q4_K_M: none of 3 answers ended",
        "system: token 5 differs",
    )
    check_golden("proof/gguf.txt", render_proof_text(make_proof(good, bad)))


def test_a_quantisation_that_hides_the_adapter_says_so() -> None:
    [first, _] = make_gguf_target().variants
    assert first.behaviour is not None
    hidden = replace(first, behaviour=replace(first.behaviour, thresholds={"kl_mean": 1.5}))
    text = render_proof_text(make_proof(make_gguf_target(variants=(hidden,))))
    assert "Q4_K_M: effect below its noise, mean KL 0.153 nats" in text
    assert "little about it" in text


def test_levels_of_gguf_that_were_not_run_say_why() -> None:
    bare = tuple(VariantProof(it.quant, it.path, 1) for it in make_gguf_target().variants)
    target = make_gguf_target(
        variants=bare, chat=None, skipped={"weights": "not asked for", "behaviour": "no memory"}
    )
    text = render_proof_text(make_proof(target))
    assert "not checked: not asked for" in text
    assert "not checked: no memory" in text


def test_partial(check_golden: Callable[[str, str], None]) -> None:
    weights = replace(make_weights(), checked=20)
    target = make_target(weights=weights, behaviour=None, skipped={"behaviour": "--no-behaviour"})
    check_golden("proof/partial.txt", render_proof_text(make_proof(target)))


def test_shows_what_would_act_on_a_terminal() -> None:
    text = render_proof_text(make_proof(make_target(name=HOSTILE), make_target(name=SCRIPTS)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[31m\\u202e{{7*7}}" in text
    assert SCRIPTS in text


def test_the_verdict_tells_apart_what_matters() -> None:
    def tone(*targets: object) -> str:
        return judge_proof(make_proof(*targets)).tone  # type: ignore[arg-type]

    assert tone(make_target(), make_adapter_target()) == "passed"
    assert tone(make_adapter_target()) == "passed"
    assert tone(make_target(behaviour=None)) == "partial"
    assert tone(make_target(weights=None)) == "partial"
    assert tone(replace(make_adapter_target(), files=None)) == "partial"
    assert tone(make_target(files=None, weights=None, behaviour=None)) == "partial"
    assert tone(make_target(), make_target(behaviour=make_behaviour(loss=0.5))) == "failed"
    # A problem weighs more than a check that was not run.
    broken = FilesCheck(1, 1, ("x differs",))
    assert tone(make_target(files=broken, weights=None, behaviour=None)) == "failed"
    assert judge_proof(replace(make_proof(), targets=())).headline == "Nothing was checked"


def test_a_weak_adapter_is_not_praised() -> None:
    weak = make_behaviour(loss=0.01, effect=1e-6)
    assert weak.problems == ()
    proof = make_proof(make_target(behaviour=weak))
    assert "says little about it" in judge_proof(proof).sentence
    assert "no measurable share of the adapter's effect kept" in render_proof_text(proof)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100"), (0.0, "0"), (-0.5, "0"), (0.5, "50.0"), (0.9973, "99.73"),
        (0.99999, "99.9990"), (0.99999999, "99.9999"), (0.0004, "< 0.1"), (0.129, "12.9"),
    ],
)  # fmt: skip
def test_shares(share: float, text: str) -> None:
    assert describe_share(share).replace("\u00a0", " ") == f"{text} %"


@given(st.floats(0, 1, exclude_max=True))
def test_a_share_is_never_rounded_up_to_all(share: float) -> None:
    text = describe_share(share)
    assert not text.startswith("100")
    if not text.startswith("<"):
        assert float(text.rstrip("\u00a0%")) / 100 <= share + 1e-12


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (3.7696, "3.77"), (0.00617, "0.00617"), (1.94e-4, "1.9·10⁻⁴"),
        (1.63e-11, "1.6·10⁻¹¹"), (123456.0, "1.2·10⁵"), (1000.0, "1000"), (-0.5, "-0.500"),
        (float("nan"), "not finite"), (float("inf"), "not finite"), (0.99999, "1.000"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert describe_number(value) == text


def test_sizes_and_counts() -> None:
    assert [describe_bytes(n) for n in (0, 999, 1000, 99_960, 999_600, 2_690_000_000)] == [
        "0 B", "999 B", "1.0 kB", "100 kB", "1.0 MB", "2.7 GB",
    ]  # fmt: skip
    assert describe_count(1, "file") == "1 file"
    assert describe_count(12345, "file") == "12\u202f345 files"
    assert describe_small_share(0.0123) == "1.23\u00a0%"


@given(st.text())
def test_printable_can_be_written_and_does_nothing(text: str) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in shown)
    assert printable(shown) == shown
