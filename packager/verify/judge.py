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
    """

    noise: float
    share: float


MERGED_BOUNDS: dict[str, Bounds] = {
    "F32": Bounds(noise=1e-7, share=1e-6),
    "F16": Bounds(noise=1e-4, share=1e-3),
    "BF16": Bounds(noise=2e-3, share=1e-2),
}
"""Bounds of a merged model by the coarsest type of its tensors.

Rounding a weight moves it by at most u times its size: u = 2^-8 for BF16 (8 significant bits),
2^-11 for F16, 2^-24 for F32. KL is quadratic in what the logits move, so it goes with u²: F16
must lie 64 times below BF16. Measured on SmolLM2-135M-Instruct (30 layers, 1133 tokens), PEFT's
own float32 merge rounded to each type, an adapter with an effect of 3.8 nats: 1.9e-4 (BF16),
2.7e-6 (F16; 71 times less), 1.6e-11 (F32: only the order of additions is left). A small model
is the hard case, since more redundant ones average rounding out. `noise` is about ten times what
was measured, a little more for F16, whose small weights fall below its normal range, and for F32,
where models of more layers add up more. `share` allows for adapters that make a model more
sensitive: for BF16 an artefact must keep 99 % of the effect, and one that lost the adapter has
kept nothing.
"""

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

    An effect below the format's noise counts as that noise: an adapter that changes next to
    nothing then neither divides by zero nor fails for what rounding does to any model. The share
    of equal most likely tokens has no bound of its own: between near-ties it says nothing, and
    whatever else moves it moves the KL.

    Args:
        prompt_set: Name and version of the prompts.
        prompts: How many there are.
        kl: KL(truth ‖ artefact) of every token, in nats.
        base_kl: KL(truth ‖ base without the adapter) of every token, in nats.
        agreement: Share of tokens with the same most likely next token.
        surprise: Mean of log p(truth) − log p(artefact) over the text, in nats.
        bounds: Of the artefact's number format.
        problems: Found before; they go in front.
    """
    effect = math.fsum(base_kl) / len(base_kl)
    kl_mean = math.fsum(kl) / len(kl)
    kl_bound = bounds.noise + bounds.share * effect
    # A text's log-probability moves by no more than its root mean square, which is √(2 KL) for
    # small differences.
    ratio_bound = math.exp(math.sqrt(2 * kl_bound))
    ratio = math.exp(max(-700.0, min(700.0, surprise)))
    figures = {
        "kl_mean": (kl_mean, kl_bound),
        "kl_max": (max(kl), _PEAK * bounds.noise + _PEAK_SHARE * max(base_kl)),
        "effect_lost": (
            kl_mean / max(effect, bounds.noise),
            kl_bound / max(effect, bounds.noise),
        ),
        "perplexity_ratio": (max(ratio, 1 / ratio), ratio_bound),
    }
    beyond = tuple(
        f"{name} is {value:.3g}, more than {bound:.3g}"
        for name, (value, bound) in figures.items()
        if value > bound
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
        effect_lost=figures["effect_lost"][0],
        kl_per_token=kl[:_MAX_LISTED],
        base_kl_per_token=base_kl[:_MAX_LISTED],
        thresholds={name: bound for name, (_, bound) in figures.items()},
        problems=problems + beyond,
    )
