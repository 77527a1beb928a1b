"""Level `behaviour` for GGUF: files loaded in llama.cpp against base + adapter.

The truth is the one that merged models are measured against, on the same text, and so are the
figures. The cache of keys and values is kept in float32, so that they are those of the file's
weights, and of how llama.cpp multiplies with them (see `llama`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from packager.errors import ProofError
from packager.verify.behaviour import OnStep, Truth, compare
from packager.verify.judge import Bounds, gguf_bounds
from packager.verify.llama import Answer, LlamaRun, run_llama
from packager.verify.proof import BehaviourCheck, EndingCheck

MOST_ANSWER_TOKENS = 256
_ANSWERS = 3


def check_gguf(
    truth: Truth, model: Path, quant: str, *, parameters: int, progress: OnStep | None = None
) -> tuple[BehaviourCheck, EndingCheck | None]:
    """Compares a GGUF file with the truth, and has it answer until it ends by itself.

    Args:
        truth: From `measure_truth`.
        model: The file; of a split model the first.
        quant: Its quantisation.
        parameters: Of the model; they decide the bounds together with `quant`.
        progress: Told about every passage.

    Returns:
        The comparison, and how answers ended; None where none of the truth's answers did.

    Raises:
        ProofError: llama.cpp is missing or cannot run the file, or the vocabulary is another.
    """
    prompts = truth.ended[:_ANSWERS]
    with run_llama(
        model, truth.passages, prompts=prompts, most=MOST_ANSWER_TOKENS, end=truth.end
    ) as run:
        logits = _told(run, truth, quant, progress)
        check = compare(truth, logits, bounds=_bounds(run, quant, parameters))
        answers, knows_end = run.answers, run.knows_end
    return check, _judge_endings(answers, truth, knows_end) if prompts else None


def check_gguf_adapter(
    truth: Truth,
    base: Path,
    adapter: Path,
    quant: str,
    *,
    parameters: int,
    scale: float = 1.0,
    progress: OnStep | None = None,
) -> BehaviourCheck:
    """Compares a base in GGUF with a GGUF LoRA on it with the truth.

    Args:
        truth: From `measure_truth`.
        base: The base in GGUF.
        adapter: The GGUF LoRA.
        quant: The coarser type of the two; it decides the bounds.
        parameters: Of the base.
        scale: Strength of the LoRA.
        progress: Told about every passage.

    Raises:
        ProofError: As of `check_gguf`.
    """
    with run_llama(base, truth.passages, adapter=adapter, scale=scale) as run:
        logits = _told(run, truth, "LoRA", progress)
        return compare(truth, logits, bounds=_bounds(run, quant, parameters))


def _bounds(run: LlamaRun, quant: str, parameters: int) -> Bounds:
    """A float32 file is as good as its cache, which some versions of llama.cpp keep in float16."""
    return gguf_bounds(quant if run.exact_cache or quant != "F32" else "F16", parameters)


def _told(run: LlamaRun, truth: Truth, what: str, progress: OnStep | None) -> Iterator[Tensor]:
    """Passes logits on, with as many columns as the truth has.

    A file may have more tokens than its tokenizer, or fewer where the embedding was padded: only
    the width of the embedding counts, and that has to be the truth's.
    """
    if run.vocabulary != truth.vocabulary:
        raise ProofError(
            "the GGUF file has another vocabulary than base + adapter",
            expected=f"{truth.vocabulary} tokens",
            found=str(run.vocabulary),
            hint="release again; a tokenizer of another model was put beside the weights",
        )
    count = len(truth.passages)
    for number, logits in enumerate(run.read_logits()):
        if progress is not None:
            progress(f"llama.cpp {what}", number, count)
        yield logits
    if progress is not None:
        progress(f"llama.cpp {what}", count, count)


def _judge_endings(answers: tuple[Answer, ...], truth: Truth, knows_end: bool) -> EndingCheck:
    """One answer that ends is enough: a coarse quantisation may send single ones round in rings."""
    ended = sum(answer.ended for answer in answers)
    problems = []
    if not knows_end:
        problems.append(f"llama.cpp does not end at token {truth.end}, where training ended")
    if not ended:
        problems.append(
            f"none of {len(answers)} answers ended within {MOST_ANSWER_TOKENS} tokens, where "
            "those of base + adapter did"
        )
    return EndingCheck(
        answers=len(answers),
        ended=ended,
        tokens=tuple(len(answer.ids) for answer in answers),
        most=MOST_ANSWER_TOKENS,
        problems=tuple(problems),
    )
