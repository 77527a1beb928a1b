"""What a proof says, in words that a newcomer understands; for the page and the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packager.verify import ggufwording
from packager.verify.figure import (
    describe_bytes,
    describe_count,
    describe_number,
    describe_share,
    describe_small_share,
)
from packager.verify.proof import (
    BehaviourCheck,
    EmbeddingCheck,
    FilesCheck,
    Level,
    Measure,
    MergeBaseCheck,
    Proof,
    TargetProof,
)

Tone = Literal["passed", "partial", "failed"]
CHOICES: dict[Measure, tuple[str, str]] = {
    "next token": ("next token", "position"),
    "class": ("class", "text"),
    "label": ("label", "token"),
    "span": ("start or end of an answer", "choice"),
}
"""What a model chooses, and where."""


@dataclass(frozen=True)
class Verdict:
    """The answer in one headline and one sentence.

    Attributes:
        tone: Whether all that matters was checked and held.
        headline: A few words.
        sentence: What it means, for somebody who has never heard of KL.
    """

    tone: Tone
    headline: str
    sentence: str


@dataclass(frozen=True)
class LevelResult:
    """One level of one target.

    Attributes:
        level: Which.
        tone: `partial` for a level that was not run.
        lines: What was found, the most telling first.
        problems: What does not hold.
    """

    level: Level
    tone: Tone
    lines: tuple[str, ...]
    problems: tuple[str, ...]


def judge_proof(proof: Proof) -> Verdict:
    """Returns the verdict over a whole proof."""
    count = sum(len(target.problems) for target in proof.targets)
    if count:
        return Verdict(
            "failed",
            "Do not publish this release",
            f"{describe_count(count, 'problem')} found: the released files are not, or do not act "
            "like, what base and adapter make together. What differs is listed below.",
        )
    results = [(target, item) for target in proof.targets for item in level_results(target)]
    if all(item.tone == "partial" for _, item in results):
        return Verdict("partial", "Nothing was checked", "This proof says nothing yet.")
    still_open = {
        item.level
        for target, item in results
        if item.tone == "partial" and not is_truth_itself(target, item.level)
    }
    if "behaviour" in still_open:
        return Verdict(
            "partial",
            "Intact, but its behaviour was not compared",
            "Everything that was checked holds. Whether the release answers like the trained "
            "adapter was not measured; the reason stands below.",
        )
    if still_open:
        return Verdict(
            "partial", "What was checked holds", "Some checks were not run; see the reasons below."
        )
    return Verdict("passed", "This release does what the adapter learned", _praise(proof))


def is_truth_itself(target: TargetProof, level: Level) -> bool:
    """Whether a level cannot fail: an adapter kept separate is the truth others must meet."""
    return target.target == "adapter" and level == "behaviour"


def level_results(target: TargetProof) -> tuple[LevelResult, ...]:
    """Returns what each level found, from bytes to behaviour."""
    files, weights = target.files, target.weights
    compared = target.behaviour or target.embedding
    bytes_found = _result(target, "files", files.problems if files else (), files_lines(files))
    if target.variants:
        blocks, models = ggufwording.blocks_lines(target), ggufwording.models_lines(target)
        models = (*models, *merge_base_lines(target.merge_base)) if models else models
        return (
            bytes_found,
            _result(target, "weights", ggufwording.blocks_problems(target), blocks),
            _result(target, "behaviour", ggufwording.models_problems(target), models),
        )
    lines = behaviour_lines(target.behaviour) or embedding_lines(target.embedding)
    lines = (*lines, *merge_base_lines(target.merge_base)) if lines else lines
    return (
        bytes_found,
        _result(target, "weights", weights.problems if weights else (), weights_lines(target)),
        _result(target, "behaviour", compared.problems if compared else (), lines),
    )


def merge_base_lines(check: MergeBaseCheck | None) -> tuple[str, ...]:
    """Returns how far both merges are from training; nothing where there is only one base."""
    if check is None:
        return ()
    names = {"16bit": "the base in 16 bits", "dequantized": "the base as training saw it"}
    of_activations = (
        "training is taken without what LLM.int8() rounds off the activations, which goes with the "
        "machine and no weights hold; its weights in 8 bits are as they were",
    )
    return (
        f"merged onto {names[check.chosen]}: trained on a base loaded in {check.loaded_in}, from "
        f"which a merge onto {names['dequantized']} is off by "
        f"{describe_number(check.kl_dequantized)} nats, one onto {names['16bit']} by "
        f"{describe_number(check.kl_16bit)}",
        *(of_activations if check.loaded_in == "int8" else ()),
    )


def files_lines(check: FilesCheck | None) -> tuple[str, ...]:
    """Returns what level `files` found; nothing when it was not run."""
    if check is None:
        return ()
    return (
        f"{describe_count(check.count, 'file')}, {describe_bytes(check.total_bytes)}: every byte "
        "hashed and compared with the manifest",
    )


def weights_lines(target: TargetProof) -> tuple[str, ...]:
    """Returns what level `weights` found; nothing when it was not run."""
    check = target.weights
    if check is None:
        return ()
    tensors = f"{describe_count(check.checked)} of {describe_count(check.total, 'tensor')}"
    if target.target == "adapter":
        return (f"{tensors} compared with the adapter as trained",)
    if check.delta_difference is not None:
        return (
            f"{tensors} compared with the adapter as trained; it makes the same change, to "
            f"{describe_number(check.delta_difference)} of its size",
        )
    scope = "" if check.checked == check.total else ", a sample that covers every rule"
    lines = [
        f"{tensors} made again from base and adapter{scope}",
        f"{describe_count(check.adapter_tensors_used)} of "
        f"{describe_count(check.adapter_tensors_total, 'adapter tensor')} used, each once",
    ]
    if check.figures:
        ulp = max(figure.max_error_ulp for figure in check.figures)
        lost = max(figure.lost_to_rounding for figure in check.figures)
        lines.append(
            f"largest error {describe_number(ulp)} of the last stored digit; rounding took at "
            f"most {describe_small_share(lost)} of a tensor's change"
        )
    return tuple(lines)


def behaviour_lines(check: BehaviourCheck | None) -> tuple[str, ...]:
    """Returns what level `behaviour` found; nothing when it was not run."""
    if check is None:
        return ()
    choice, place = CHOICES[check.measure]
    writes = check.measure == "next token"
    surprise = f"; perplexity times {check.perplexity_ratio:.4f}" if writes else ""
    return (
        f"{describe_kept(check)} of the adapter's effect kept: mean KL "
        f"{describe_number(check.kl_mean)} nats, {describe_number(check.base_kl_mean)} without "
        "the adapter",
        f"same most likely {choice} at {describe_share(check.top1_agreement)} of "
        f"{describe_count(check.tokens, place)}{surprise}",
    )


def embedding_lines(check: EmbeddingCheck | None) -> tuple[str, ...]:
    """Returns what level `behaviour` found of vectors; nothing when it was not run."""
    if check is None:
        return ()
    kept = "no measurable share"
    if "effect_lost" in check.thresholds:
        kept = describe_share(1.0 - check.effect_lost)
    return (
        f"{kept} of the adapter's effect kept: vectors lie {describe_number(check.error_mean)} of "
        f"their length off, {describe_number(check.base_error)} without the adapter",
        f"least cosine {check.cosine_min:.6f} over {describe_count(check.tokens, 'token')}, "
        f"{check.text_cosine_min:.6f} over the means of {describe_count(check.prompts, 'prompt')}",
    )


def describe_kept(check: BehaviourCheck) -> str:
    """Returns the share of the adapter's effect that was kept, such as `99.995 %`.

    An effect too small to be told from rounding (no bound on `effect_lost`) has no share.
    """
    if "effect_lost" not in check.thresholds:
        return "no measurable share"
    return describe_share(1.0 - check.effect_lost)


def _result(
    target: TargetProof, level: Level, problems: tuple[str, ...], lines: tuple[str, ...]
) -> LevelResult:
    if not lines:
        reason = target.skipped.get(level, "no reason was recorded")
        line = reason if is_truth_itself(target, level) else f"not checked: {reason}"
        return LevelResult(level, "partial", (line,), ())
    return LevelResult(level, "failed" if problems else "passed", lines, problems)


def _praise(proof: Proof) -> str:
    single = [target.behaviour for target in proof.targets]
    several = [variant.behaviour for target in proof.targets for variant in target.variants]
    checks = [check for check in (*single, *several) if check is not None]
    vectors = [target.embedding for target in proof.targets if target.embedding is not None]
    if not checks and vectors:
        return (
            f"On {describe_count(vectors[0].prompts, 'prompt')} the released model gives the "
            "vectors that base and adapter give together."
        )
    if not checks:
        return "Every file, and every weight that was checked, is as base and adapter make it."
    worst = max(checks, key=lambda check: check.effect_lost)
    same = (
        f"On {describe_count(worst.prompts, 'prompt')} the released model predicts what base and "
        "adapter predict together"
    )
    if "effect_lost" not in worst.thresholds:
        return f"{same}. The adapter changes so little, though, that this says little about it."
    return f"{same}: {describe_kept(worst)} of what the adapter changed is in it."
