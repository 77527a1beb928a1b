"""Level `behaviour` of a model without a head: its vectors against those of base + adapter.

Vectors are no distributions, so there is no KL. What counts for a search or a clustering is the
angle between vectors, and what counts for a layer put on top of them is how far they lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from packager.verify.behaviour import (
    OnStep,
    Truth,
    artefact_rows,
    check_shape,
    loading_problems,
)
from packager.verify.divergence import squared_distances
from packager.verify.model import load_artefact, stored_dtype
from packager.verify.proof import EmbeddingCheck


@dataclass(frozen=True)
class VectorBounds:
    """What a number format may change.

    Attributes:
        noise: Mean relative error that rounding the weights may cause, whatever the adapter does.
        share: Share of the adapter's effect that may be lost on top of it.
        negligible: An effect that is lost in the format; it is not asked for.
    """

    noise: float
    share: float
    negligible: float


VECTOR_BOUNDS: dict[str, VectorBounds] = {
    "F32": VectorBounds(noise=2e-5, share=1e-5, negligible=2e-5),
    "F16": VectorBounds(noise=1e-2, share=5e-3, negligible=2e-3),
    "BF16": VectorBounds(noise=8e-2, share=4e-2, negligible=1.5e-2),
}
"""Bounds by the coarsest type of the model's tensors.

Rounding moves a weight by at most u times its size (2^-24, 2^-11, 2^-8) and a vector by a small
multiple of u, since the errors of a layer's many weights average out while those of its layers add
up. `noise` is about twenty times u: what thirty layers were measured to add, and as much again.
"""

_MOST_LOST = 0.75
_PEAK = 20.0
"""Largest error of a vector over the mean."""


def check_embedding(
    truth: Truth, merged_dir: Path, *, progress: OnStep | None = None
) -> EmbeddingCheck:
    """Compares the vectors of a merged model, reloaded from disk, with the truth's.

    Raises:
        ProofError: The model cannot be loaded, or its vectors have another width.
    """
    bounds = VECTOR_BOUNDS[stored_dtype(merged_dir)]
    loaded = load_artefact(merged_dir, truth.reading.task)
    rows = artefact_rows(loaded, truth, progress or _silent)
    return compare_vectors(truth, rows, bounds=bounds, problems=loading_problems(loaded, truth))


def compare_vectors(
    truth: Truth,
    artefact: Iterable[Tensor],
    *,
    bounds: VectorBounds,
    problems: tuple[str, ...] = (),
) -> EmbeddingCheck:
    """Compares vectors with the truth's.

    Args:
        truth: From `measure_truth`, of a model without a head.
        artefact: For each passage of the truth, the vectors, shape (tokens, width), float32.
        bounds: What the artefact's number format may change.
        problems: Found before; they go in front.

    Raises:
        ProofError: The artefact gives other shapes than the truth.
    """
    squares: list[float] = []
    cosines: list[float] = []
    texts: list[float] = []
    with torch.inference_mode():
        for expected, found in zip(truth.read_logits(), artefact, strict=True):
            check_shape(expected, found)
            squares += squared_distances(expected, found)
            cosines.append(_least_cosine(expected, found))
            texts.append(_least_cosine(expected.mean(0)[None], found.mean(0)[None]))
    effect = math.sqrt(math.fsum(truth.base_kl) / truth.tokens)
    error = math.sqrt(math.fsum(squares) / len(squares))
    limits = _limits(effect, bounds)
    figures = {
        "error_mean": error,
        "error_max": math.sqrt(max(squares)),
        "effect_lost": error / max(effect, bounds.negligible),
    }
    beyond = tuple(
        f"{name} is {figures[name]:.3g}, more than {limit:.3g}"
        for name, limit in limits.items()
        if not figures[name] <= limit
    )
    return EmbeddingCheck(
        prompt_set=truth.prompt_set,
        prompts=len(truth.passages),
        tokens=truth.tokens,
        cosine_min=min(cosines),
        text_cosine_min=min(texts),
        base_error=effect,
        thresholds=limits,
        problems=(*problems, *beyond),
        **figures,
    )


def _least_cosine(truth: Tensor, other: Tensor) -> float:
    cosines = torch.cosine_similarity(truth.double(), other.double(), dim=-1)
    return float(cosines.nan_to_num(nan=-1.0).clamp(-1.0, 1.0).min())


def _limits(effect: float, bounds: VectorBounds) -> dict[str, float]:
    noticeable = effect > bounds.negligible
    noise = min(bounds.noise, _MOST_LOST * effect) if noticeable else bounds.noise
    mean = noise + bounds.share * effect
    limits = {"error_mean": mean, "error_max": _PEAK * mean}
    return {**limits, "effect_lost": mean / effect} if noticeable else limits


def _silent(_what: str, _done: int, _total: int) -> None:
    """Reports nothing."""
