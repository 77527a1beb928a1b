"""What the proof of a GGUF target says, in words that a newcomer understands."""

from __future__ import annotations

from packager.verify.figure import (
    describe_count,
    describe_number,
    describe_share,
    describe_small_share,
)
from packager.verify.proof import BehaviourCheck, BlocksCheck, TargetProof


def blocks_lines(target: TargetProof) -> tuple[str, ...]:
    """Returns what level `weights` found in the files; nothing when it was not run."""
    found = [(it.quant, it.weights) for it in target.variants if it.weights is not None]
    if not found:
        return ()
    done, total = (
        describe_count(sum(getattr(check, name) for _, check in found))
        for name in ("checked", "total")
    )
    line = f"{done} of {total} tensors of {describe_count(len(found), 'file')} made again from "
    line += "base and adapter; "
    shares = [check.equal_blocks for _, check in found if check.equal_blocks is not None]
    if shares:
        same = describe_share(min(shares))
        line += f"quantised again, at least {same} of the blocks are the same to the bit"
    else:
        line += "the importance matrix is not at hand, so blocks were compared by their values only"
    lines = [line]
    gains = [f"{quant} {_gain(check)}" for quant, check in found if check.error_from_16bit]
    if gains:
        lines.append(
            "quantised straight from float32; error of changed weights, in parentheses by way of "
            f"{found[0][1].rounded_to}: {', '.join(gains)}"
        )
    return tuple(lines)


def blocks_problems(target: TargetProof) -> tuple[str, ...]:
    """Returns the problems of level `weights`, with the quantisation in front."""
    return tuple(
        f"{variant.quant}: {line}"
        for variant in target.variants
        if variant.weights is not None
        for line in variant.weights.problems
    )


def models_lines(target: TargetProof) -> tuple[str, ...]:
    """Returns what level `behaviour` found; nothing when it was not run."""
    lines = [
        f"{variant.quant}: {_behaviour_line(variant.behaviour)}"
        for variant in target.variants
        if variant.behaviour is not None
    ]
    chat = target.chat
    if chat is not None:
        lines.append(
            f"chat template: {describe_count(chat.equal)} of "
            f"{describe_count(chat.conversations, 'conversation')} give llama.cpp the same tokens"
        )
    endings = [variant.ending for variant in target.variants if variant.ending is not None]
    if endings:
        ended, answers = (sum(getattr(it, name) for it in endings) for name in ("ended", "answers"))
        lines.append(
            f"{describe_count(ended)} of {describe_count(answers, 'answer')} ended by themselves "
            f"within {endings[0].most} tokens"
        )
    return tuple(lines)


def models_problems(target: TargetProof) -> tuple[str, ...]:
    """Returns the problems of level `behaviour`, with the quantisation in front."""
    found = [
        f"{variant.quant}: {line}"
        for variant in target.variants
        for check in (variant.behaviour, variant.ending)
        if check is not None
        for line in check.problems
    ]
    return (*found, *(target.chat.problems if target.chat is not None else ()))


def describe_variant_kept(check: BehaviourCheck) -> str:
    """Returns the share of the adapter's effect that was kept, or that noise hides it.

    Below the noise of a quantisation, no share can be told: `effect_lost` has no bound then.
    """
    if "effect_lost" not in check.thresholds:
        return "below its noise"
    return describe_share(max(0.0, 1.0 - check.effect_lost))


def _gain(check: BlocksCheck) -> str:
    return f"{_per_cent(check.error)} ({_per_cent(check.error_from_16bit)})"


def _per_cent(share: float) -> str:
    """Returns a share with the digits that tell it from another way's."""
    percent = share * 100
    return f"{percent:.4g}\u00a0%" if percent >= 1e-3 else describe_small_share(share)


def _behaviour_line(check: BehaviourCheck) -> str:
    kept = describe_variant_kept(check)
    share = f"{kept} of the adapter's effect kept" if "%" in kept else "effect below its noise"
    return (
        f"{share}, mean KL {describe_number(check.kl_mean)} nats, same next token at "
        f"{describe_share(check.top1_agreement)}"
    )
