"""From compared predictions to a verdict: the figures of a behaviour check and their bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from packager.verify.proof import BehaviourCheck, Measure

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

_GGUF_BOUNDS: tuple[tuple[str, Bounds], ...] = (
    ("F32", MERGED_BOUNDS["F32"]),
    ("F16", MERGED_BOUNDS["F16"]),
    ("BF16", Bounds(noise=1e-2, share=1e-2, negligible=1e-3)),
    ("Q8", Bounds(noise=0.05, share=0.02, negligible=0.05)),
    ("Q6", Bounds(noise=0.15, share=0.02, negligible=0.15)),
    ("Q5", Bounds(noise=1.2, share=0.05, negligible=1.2)),
    ("Q4", Bounds(noise=1.5, share=0.05, negligible=1.5)),
    ("IQ4", Bounds(noise=1.5, share=0.05, negligible=1.5)),
    ("Q3", Bounds(noise=2.0, share=0.1, negligible=2.0)),
    ("Q2", Bounds(noise=3.0, share=0.1, negligible=3.0)),
)
"""Bounds of a GGUF file by what its quantisation's name begins with, for `_MEASURED_SIZE`.

Blocks of b bits move a weight by up to half a step, 2^-b of the block's width: their noise does
not depend on the adapter, and so the noise is what is allowed. An effect below it cannot be told
from it by KL; that such an adapter is in the file is shown by its blocks, which are recomputed.
llama.cpp on a processor also rounds activations, to eight bits before a quantised matrix and to
the matrix's own type before F16 and BF16; that is in the figures.

Measured on SmolLM2-135M-Instruct merged in float32 (1215 tokens, llama.cpp 0.6.0-dev, mean KL in
nats, in parentheses the share of equal most likely tokens), with the demo's adapter (effect 1.9)
and one of 4 steps (effect 0.24); and for comparison what llama.cpp's authors measured on Llama 3
8B against its F16 (Source: llama.cpp 0c1e57098, tools/perplexity/README.md):

    quant    demo            4 steps   8B
    F32      1.7e-11 (1.000) 1.4e-11
    F16      5.0e-6  (1.000) 4.2e-6    5.5e-4
    BF16     3.4e-4  (0.993) 1.5e-3
    Q8_0     0.010   (0.958) 0.008     0.0014
    Q6_K     0.030   (0.924) 0.019     0.0055
    Q5_K_M   0.54    (0.717) 0.17      0.011
    Q5_K_S   0.55    (0.705)           0.017
    Q4_K_M   0.15    (0.839) 0.08      0.031
    Q4_K_S   0.25    (0.773)           0.043
    Q4_0     0.76    (0.571)           0.072
    IQ4_XS   0.46    (0.688)
    Q3_K_M   0.43    (0.722)           0.10

With llama.cpp's usual cache of keys and values, in float16 with flash attention, the demo's F32 is
at 1.6e-6, Q8_0 at 0.011 and Q4_K_M at 0.15: what users have is what is measured, but for F32.

SmolLM2 is the hard case twice: it is small, and its rows of 576 values do not fill blocks of 256,
so that K-quants fall back to coarser types. Its weights were once quantised to 4 bits, whose steps
Q4_K meets better than Q5_1 does, which is why 5 bits do worse than 4 here. `noise` is five times
the worst that was measured from 6 bits up, twice below.
"""

_MEASURED_SIZE = 134_515_008

_MOST_LOST = 0.75
"""Share of a weak adapter's effect that rounding may take; beyond it, a finer type is needed."""

_PEAK = 100.0
"""Largest KL of a token over the mean: measured up to 45; the tail is heavy."""

_PEAK_SHARE = 0.1
"""Share of the adapter's largest effect on a token that a single token may be off by."""


def gguf_bounds(quant: str, parameters: int) -> Bounds:
    """Returns the bounds of a GGUF file.

    Noise falls with the size of the model: from 135 million to 8 billion parameters by a factor of
    5 to 50 in what was measured. The cube root of the sizes' ratio, 3.9, is the cautious side.

    Args:
        quant: Such as `Q4_K_M`.
        parameters: Of the model.
    """
    bounds = next(bounds for start, bounds in _GGUF_BOUNDS if quant.startswith(start))
    if quant in MERGED_BOUNDS:
        return bounds
    scale = min(1.0, _MEASURED_SIZE / parameters) ** (1 / 3)
    return Bounds(bounds.noise * scale, bounds.share, bounds.negligible * scale)


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
    measure: Measure = "next token",
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
        measure: What a row is that was compared.
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
        measure=measure,
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
