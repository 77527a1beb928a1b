"""From compared predictions to a verdict: the figures of a behaviour check and their bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from packager.verify.proof import BehaviourCheck

_MAX_LISTED = 4096


@dataclass(frozen=True)
class Bounds:
    """What a number format may change.

    Attributes:
        noise: Mean KL in nats that rounding the weights may cause, whatever the adapter does.
        share: Share of the adapter's effect that may be lost on top of it.
        negligible: An effect in nats that is lost in the format; it is not asked for.
    """

    noise: float
    share: float
    negligible: float


MERGED_BOUNDS: dict[str, Bounds] = {
    "F32": Bounds(noise=1e-7, share=1e-6, negligible=1e-7),
    "F16": Bounds(noise=2e-4, share=2e-3, negligible=1e-5),
    "BF16": Bounds(noise=2e-3, share=1e-2, negligible=1e-4),
}
"""Bounds of a merged model by the coarsest type of its tensors.

Rounding a weight moves it by at most u times its size: u = 2^-8 for BF16 (8 significant bits),
2^-11 for F16, 2^-24 for F32. KL is quadratic in what the logits move, so it goes with u²: F16
should lie 64 times below BF16. Measured on SmolLM2-135M-Instruct (30 layers, over 1100 tokens)
with PEFT's own float32 merge, rounded once to each type (mean KL in nats):

    adapter's effect    BF16      F16       F32
    3.8 (well trained)  1.9e-4    2.7e-6    1.6e-11
    1.1e-3 (4 steps)    4.0e-4    2.3e-5
    9.9e-8 (no effect)  9.8e-8    9.0e-8

F16 does worse than 64 times better on weak adapters because small weights lie below its normal
range; in F32 only the order of additions is left. A small model is the hard case, since larger
ones average rounding out. `noise` is five to ten times the worst that was measured; for F32 more,
because models of more layers add up more. `share` allows for adapters that make a model more
sensitive.

The second row shows what a format can take from a weak adapter: 37 % of its effect in BF16. The
noise that is allowed is therefore never more than `_MOST_LOST` of the effect, so that a model
that has lost the adapter (1.0) fails however weak the adapter is, unless its effect is
`negligible`: the third row, which no one could notice, and which BF16 cannot hold.
"""

_MOST_LOST = 0.75
"""Share of a weak adapter's effect that rounding may take; beyond it, a finer type is needed."""

_PEAK = 100.0
"""Largest KL of a token over the mean: measured up to 45; the tail is heavy."""

_PEAK_SHARE = 0.1
"""Share of the adapter's largest effect on a token that a single token may be off by."""


def judge(
    *,
    prompt_set: str,
    prompts: int,
    kl: tuple[float, ...],
    base_kl: tuple[float, ...],
    agreement: float,
    surprise: float,
    bounds: Bounds,
    problems: tuple[str, ...],
) -> BehaviourCheck:
    """Makes the check of the figures.

    A negligible effect counts as `bounds.negligible`: an adapter that changes next to nothing
    then neither divides by zero nor fails for what rounding does to any model. The share of
    equal most likely tokens has no bound of its own: between near-ties it says nothing, and
    whatever else moves it moves the KL.

    Args:
        prompt_set: As in `BehaviourCheck`, like `prompts`.
        prompts: Number of prompts.
        kl: KL(truth ‖ artefact) of every token, in nats.
        base_kl: The same for the base without the adapter.
        agreement: Share of tokens with the same most likely next token.
        surprise: Mean of log p(truth) − log p(artefact) over the text, in nats.
        bounds: Of the artefact's number format.
        problems: Found before; they go in front.
    """
    effect = math.fsum(base_kl) / len(base_kl)
    kl_mean = math.fsum(kl) / len(kl)
    lost = kl_mean / max(effect, bounds.negligible)
    ratio = math.exp(max(-700.0, min(700.0, surprise)))
    limits = _limits(effect, max(base_kl), bounds)
    figures = {
        "kl_mean": kl_mean,
        "kl_max": max(kl),
        "perplexity_ratio": max(ratio, 1 / ratio),
        "effect_lost": lost,
    }
    beyond = tuple(
        f"{name} is {figures[name]:.3g}, more than {limit:.3g}"
        for name, limit in limits.items()
        if figures[name] > limit
    )
    return BehaviourCheck(
        prompt_set=prompt_set,
        prompts=prompts,
        tokens=len(kl),
        kl_mean=kl_mean,
        kl_max=max(kl),
        base_kl_mean=effect,
        top1_agreement=agreement,
        perplexity_ratio=ratio,
        effect_lost=lost,
        kl_per_token=kl[:_MAX_LISTED],
        base_kl_per_token=base_kl[:_MAX_LISTED],
        thresholds=limits,
        problems=problems + beyond,
    )


def _limits(effect: float, largest_effect: float, bounds: Bounds) -> dict[str, float]:
    """Returns figure → its limit; without `effect_lost` where the effect is negligible.

    Args:
        effect: Mean KL of the base without the adapter, in nats.
        largest_effect: The largest of a token.
        bounds: Of the artefact's number format.
    """
    noticeable = effect > bounds.negligible
    noise = min(bounds.noise, _MOST_LOST * effect) if noticeable else bounds.noise
    kl_mean = noise + bounds.share * effect
    limits = {
        "kl_mean": kl_mean,
        "kl_max": _PEAK * bounds.noise + _PEAK_SHARE * largest_effect,
        # A text's log-probability moves by no more than its root mean square, which is √(2 KL)
        # for small differences. Of the ratio and its inverse, the larger one counts.
        "perplexity_ratio": math.exp(math.sqrt(2 * kl_mean)),
    }
    return {**limits, "effect_lost": kl_mean / effect} if noticeable else limits
