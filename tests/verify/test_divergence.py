"""KL against torch's own, on distributions from flat to extreme."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.verify.divergence import KL_CEILING, measure_divergence

IDS = (0, 3, 1, 4, 2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0, 60), apart=st.floats(0, 30))
def test_agrees_with_torch(seed: int, scale: float, apart: float) -> None:
    torch.manual_seed(seed)
    truth = torch.randn(4, 11) * scale
    other = truth + torch.randn(4, 11) * apart
    found = measure_divergence(truth, other, IDS)
    log_p = torch.log_softmax(truth.double(), -1)
    log_q = torch.log_softmax(other.double(), -1)
    wanted = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    assert found.kl == pytest.approx(wanted.tolist(), rel=1e-9, abs=1e-12)
    assert min(found.kl) >= 0
    labels = torch.tensor(IDS[1:])
    nll = torch.nn.functional.nll_loss
    surprise = nll(log_q, labels, reduction="sum") - nll(log_p, labels, reduction="sum")
    assert found.surprise == pytest.approx(surprise.item(), rel=1e-9, abs=1e-9)
    assert found.agreeing == int((truth.argmax(-1) == other.argmax(-1)).sum())


def test_resolves_what_float32_would_lose() -> None:
    """Two distributions 1e-7 apart differ by about 1e-15; float32 gives noise of 1e-7."""
    truth = torch.tensor([[10.0, 9.0, 8.0]])
    other = torch.tensor([[10.0, 9.0, 8.0 + 1e-6]])
    (kl,) = measure_divergence(truth, other, (0, 1)).kl
    assert 0 < kl < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf")])
def test_what_is_not_finite_counts_as_the_ceiling(bad: float) -> None:
    truth = torch.zeros(2, 3)
    other = torch.zeros(2, 3)
    other[1, 2] = bad
    found = measure_divergence(truth, other, (0, 1, 2))
    assert found.kl == (0.0, KL_CEILING)
    assert found.surprise == KL_CEILING


def test_more_rows_than_are_worked_on_at_once() -> None:
    torch.manual_seed(0)
    truth, other = torch.randn(2, 101, 7)
    ids = (0, *torch.randint(7, (101,)).tolist())
    whole = measure_divergence(truth, other, ids)
    assert len(whole.kl) == 101
    rows = [
        measure_divergence(truth[i : i + 1], other[i : i + 1], ids[i : i + 2]) for i in range(101)
    ]
    assert whole.kl == pytest.approx([row.kl[0] for row in rows])
    assert whole.surprise == pytest.approx(sum(row.surprise for row in rows))
    assert whole.agreeing == sum(row.agreeing for row in rows)
