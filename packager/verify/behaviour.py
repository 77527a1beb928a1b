"""Level `behaviour`: does an artefact predict what base + adapter predict, token by token?

The truth is base + adapter as PEFT runs them, in float32. It reads sixteen fixed prompts and
writes a short greedy answer to each, so that the text is one on which the adapter shows what it
learned. Then every model is fed this same text (teacher forcing) and gives a distribution over
the vocabulary at each position. Compared are these distributions, never generated text: near-ties
flip under rounding and the texts part for no reason.

A merged model is reloaded from disk with its weights as stored and runs in float32 too, so the
figures are those of the artefact alone: what merging and rounding its weights changed, and not
what a processor that computes in bfloat16 adds for every model alike.

Any artefact that gives logits or log-probabilities for the truth's token ids can be compared:
`compare` is the seam, used by `check_merged` here and for GGUF files by `variant`.

Models that do not write text are read as `reading` says: a classifier's classes are compared like
the next token's; the vectors of a backbone are compared in `embedding`, from the same stored rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig

from packager.base import read_base
from packager.errors import AdapterError, OutputError, ProofError
from packager.quantisation.training import TrainingQuantisation
from packager.verify.divergence import measure_divergence, squared_distances
from packager.verify.judge import MERGED_BOUNDS, Bounds, gguf_bounds, judge
from packager.verify.model import (
    LoadedModel,
    attach_adapter,
    list_names,
    load_artefact,
    load_base,
    load_tokenizer,
    quiet,
    stored_dtype,
)
from packager.verify.prompt import PROMPT_SET, PROMPTS, Prompt, cut_prompt, encode_prompt
from packager.verify.proof import BehaviourCheck
from packager.verify.reading import CAUSAL, Passage, Reading

OnStep = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""

MAX_CONTINUATION_TOKENS = 24
_FOUR_BITS = "Q4"
_MEMORY_BYTES = 64 << 20


@dataclass(frozen=True)
class Truth:
    """What base + adapter predict. A context manager: leaving it frees the stored logits.

    Attributes:
        prompt_set: Name and version of the prompts.
        passages: Token ids of each prompt, of a language model with its continuation, at least
            two per passage.
        vocabulary: Width of the logits.
        base_kl: KL(truth ‖ base without the adapter) of every compared row, in nats; of vectors,
            their squared distance over the squared length of the truth's.
        unexpected: Tensors of the base's files that its architecture does not use.
        ended: Token ids of the prompts whose answer came to an end by itself.
        end: Token id that ends an answer, or None without a tokenizer.
        reading: How models of its task are read.
        answers: What a decoder says to each passage, of models that have one.
        counts: Rows of each passage's answer.
    """

    prompt_set: str
    passages: tuple[tuple[int, ...], ...]
    vocabulary: int
    base_kl: tuple[float, ...]
    unexpected: tuple[str, ...]
    ended: tuple[tuple[int, ...], ...]
    end: int | None
    _store: IO[bytes]
    reading: Reading = CAUSAL
    answers: tuple[tuple[int, ...], ...] = ()
    counts: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.close()

    @property
    def tokens(self) -> int:
        """Number of rows that are compared, such as next-token distributions."""
        return len(self.base_kl)

    @property
    def texts(self) -> tuple[Passage, ...]:
        """The passages with their answers."""
        answers = self.answers or ((),) * len(self.passages)
        return tuple(Passage(*pair) for pair in zip(self.passages, answers, strict=True))

    def read_logits(self) -> Iterator[Tensor]:
        """Yields the truth's logits, one passage at a time.

        Yields:
            Shape (rows of the passage, vocabulary), float32: of a language model, row i
            predicts token i + 1.
        """
        offset = 0
        for count in self.counts:
            # Two readers may take turns: each seeks its own place.
            self._store.seek(offset)
            raw = bytearray(self._store.read(count * self.vocabulary * 4))
            offset += len(raw)
            yield torch.frombuffer(raw, dtype=torch.float32).view(-1, self.vocabulary)


def measure_truth(
    base_dir: Path,
    adapter_dir: Path,
    tokenizer_dir: Path | None,
    prompts: Sequence[Prompt] = PROMPTS,
    *,
    reading: Reading = CAUSAL,
    labels: int | None = None,
    training: TrainingQuantisation | None = None,
    progress: OnStep | None = None,
) -> Truth:
    """Runs base + adapter (PEFT, float32), and the base without it, over the prompt set.

    Logits beyond 64 MiB lie in an unnamed temporary file; nothing is left when the process dies.

    Args:
        base_dir: The base in safetensors. What the adapter calls its base is not looked at.
        adapter_dir: The adapter as trained.
        tokenizer_dir: The tokenizer with the users' chat template; None feeds UTF-8 bytes.
        prompts: The prompt set.
        reading: How models of the adapter's task are read.
        labels: Classes of the adapter's own head, or None.
        training: How bitsandbytes held the base in training, or None for as it is stored.
        progress: Told about every passage.

    Raises:
        BaseError: The base cannot be loaded.
        AdapterError: PEFT cannot load the adapter, tensors of it are missing or left over, or
            base + adapter predict NaN or infinity.
        InputError: The tokenizer cannot be loaded.
        OutputError: The temporary file cannot be written.
    """
    tokenizer = load_tokenizer(tokenizer_dir) if tokenizer_dir is not None else None
    base = load_base(base_dir, reading.task, labels=labels, training=training)
    loaded = attach_adapter(base, adapter_dir)
    report = progress or _silent
    with quiet(), torch.inference_mode():
        texts, ended, end = _texts(loaded, tokenizer, prompts, reading, report)
    store = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115
    try:
        with quiet(), torch.inference_mode():
            width, base_kl, counts = _measure(loaded.model, texts, reading, store, report)
    except OSError as problem:
        store.close()
        raise OutputError(
            "the logits cannot be kept in a temporary file",
            where=tempfile.gettempdir(),
            found=problem.strerror or "an I/O error",
            hint="make room there, or set TMPDIR to another folder",
        ) from problem
    except BaseException:
        store.close()
        raise
    name = PROMPT_SET if tokenizer is not None else f"{PROMPT_SET} (bytes)"
    return Truth(
        prompt_set=name,
        passages=tuple(text.ids for text in texts),
        vocabulary=width,
        base_kl=base_kl,
        unexpected=loaded.unexpected,
        ended=ended,
        end=end,
        _store=store,
        reading=reading,
        answers=tuple(text.answer for text in texts if text.answer),
        counts=counts,
    )


def check_merged(
    truth: Truth, merged_dir: Path, *, progress: OnStep | None = None
) -> BehaviourCheck:
    """Compares a merged model, reloaded from disk, with the truth.

    The bounds are those of the coarsest type that its tensors are stored in (`MERGED_BOUNDS`), or
    of GGUF's four bits where bitsandbytes' are: both hold blocks of sixteen steps.
    Weights that are missing in the files, and tensors in them that neither this model nor the
    base uses, are problems too.

    Raises:
        ProofError: The model cannot be loaded, or has another vocabulary than the truth.
    """
    bounds = merged_bounds(merged_dir)
    loaded = load_artefact(merged_dir, truth.reading.task)
    logits = artefact_rows(loaded, truth, progress or _silent)
    return compare(truth, logits, bounds=bounds, problems=loading_problems(loaded, truth))


def merged_bounds(merged_dir: Path) -> Bounds:
    """Returns what the number format of a merged model may change.

    Raises:
        LorapackError: The folder is no checkpoint.
    """
    index = read_base(merged_dir)
    if index.quantised_count:
        return gguf_bounds(_FOUR_BITS, index.parameter_count)
    return MERGED_BOUNDS[stored_dtype(merged_dir)]


def loading_problems(loaded: LoadedModel, truth: Truth) -> tuple[str, ...]:
    """Returns what is wrong with an artefact before it says a word: weights that do not fit."""
    problems = []
    optional = truth.reading.task.optional
    missing = tuple(name for name in loaded.missing if name.partition(".")[0] not in optional)
    if missing:
        problems.append(f"weights are missing in the files: {list_names(missing)}")
    leftover = tuple(sorted(set(loaded.unexpected) - set(truth.unexpected)))
    if leftover:
        problems.append(f"the model does not use these tensors: {list_names(leftover)}")
    return tuple(problems)


def compare(
    truth: Truth, artefact: Iterable[Tensor], *, bounds: Bounds, problems: Sequence[str] = ()
) -> BehaviourCheck:
    """Compares an artefact's predictions with the truth.

    Args:
        truth: From `measure_truth`.
        artefact: For each passage of the truth, in order, the artefact's logits or
            log-probabilities, shape (rows of the passage, vocabulary), float32; they are
            normalised here in float64.
        bounds: What the artefact's number format may change.
        problems: Found before; they go in front.

    Raises:
        ProofError: The artefact gives other shapes than the truth.
    """
    kl: list[float] = []
    agreeing = 0
    surprise = 0.0
    rows = zip(truth.texts, truth.read_logits(), artefact, strict=True)
    with torch.inference_mode():
        for text, expected, found in rows:
            check_shape(expected, found)
            follows = truth.reading.follows(text, expected)
            divergence = measure_divergence(expected, found, (0, *follows))
            kl += divergence.kl
            agreeing += divergence.agreeing
            surprise += divergence.surprise
    return judge(
        prompt_set=truth.prompt_set,
        prompts=len(truth.passages),
        kl=tuple(kl),
        base_kl=truth.base_kl,
        agreement=agreeing / truth.tokens,
        surprise=surprise / truth.tokens,
        bounds=bounds,
        problems=tuple(problems),
        measure=truth.reading.measure,
    )


def check_shape(expected: Tensor, found: Tensor) -> None:
    """Refuses an answer of another shape than the truth's.

    Raises:
        ProofError: It has.
    """
    if found.shape != expected.shape:
        raise ProofError(
            "the artefact predicts over another vocabulary",
            expected=f"{expected.shape[1]} tokens at {expected.shape[0]} positions",
            found=f"{found.shape[1]} tokens at {found.shape[0]} positions",
            hint="vocab_size in config.json and the embedding must be those of the base",
        )


def _texts(
    loaded: LoadedModel,
    tokenizer: Any | None,
    prompts: Sequence[Prompt],
    reading: Reading,
    report: OnStep,
) -> tuple[tuple[Passage, ...], tuple[tuple[int, ...], ...], int | None]:
    """Returns the passages, the prompts whose answers ended by themselves, and what ends them."""
    starts = _starts(loaded, tokenizer, prompts)
    end = getattr(tokenizer, "eos_token_id", None)
    if not reading.continues:
        return tuple(map(Passage, starts)), (), end
    report("continue the prompts", 0, 1)
    answers = tuple(_continue(loaded, starts, end))
    report("continue the prompts", 1, 1)
    pairs = tuple(zip(starts, answers, strict=True))
    ended = tuple(start for start, answer in pairs if answer[-1:] == (end,))
    if loaded.model.config.is_encoder_decoder:
        return tuple(Passage(*pair) for pair in pairs), ended, end
    return tuple(Passage((*start, *answer)) for start, answer in pairs), ended, end


def _starts(
    loaded: LoadedModel, tokenizer: Any | None, prompts: Sequence[Prompt]
) -> tuple[tuple[int, ...], ...]:
    most = max(1, loaded.max_tokens - _answer_room(loaded))
    return tuple(
        cut_prompt(encode_prompt(prompt, tokenizer, vocabulary=loaded.vocabulary), most)
        for prompt in prompts
    )


def _answer_room(loaded: LoadedModel) -> int:
    return min(MAX_CONTINUATION_TOKENS, loaded.max_tokens // 2)


def _continue(
    loaded: LoadedModel, starts: Sequence[tuple[int, ...]], eos: int | None
) -> Iterator[tuple[int, ...]]:
    """Yields the truth's greedy answers, the end-of-text token included.

    All prompts run in one batch with padding on the left. Padding can move the choice between
    near-ties, which is harmless: whatever text comes out, all models are then compared on it
    one passage at a time, without padding.
    """
    # Without this, generate() takes repetition penalties and the like from the base's folder.
    loaded.model.generation_config = GenerationConfig()
    longest = max(map(len, starts))
    pad = eos if eos is not None else 0
    ids = torch.tensor([(pad,) * (longest - len(start)) + start for start in starts])
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in starts])
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=_answer_room(loaded),
        eos_token_id=eos,
        pad_token_id=pad,
    )
    decodes = loaded.model.config.is_encoder_decoder
    if decodes:
        config.decoder_start_token_id = loaded.model.config.decoder_start_token_id
    output = loaded.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    for row in output[:, 1 if decodes else longest :].tolist():
        yield tuple(row[: row.index(eos) + 1] if eos in row else row)


def _measure(
    model: Any, texts: Sequence[Passage], reading: Reading, store: IO[bytes], report: OnStep
) -> tuple[int, tuple[float, ...], tuple[int, ...]]:
    """Writes the truth's rows to `store`; returns their width, the base's distances and counts."""
    distances: list[float] = []
    counts: list[int] = []
    width = 0
    for number, text in enumerate(texts):
        report("base + adapter", number, len(texts))
        rows = reading.rows(model, text)
        width = rows.shape[1]
        counts.append(len(rows))
        if not bool(torch.isfinite(rows).all()):
            raise AdapterError(
                "base and adapter together predict NaN or infinity",
                expected="finite logits in float32",
                hint="the training diverged; use an earlier checkpoint",
            )
        store.write(rows.numpy().tobytes())
        with model.disable_adapter():
            distances += _distances(rows, reading.rows(model, text), text, reading)
    report("base + adapter", len(texts), len(texts))
    return width, tuple(distances), tuple(counts)


def _distances(
    truth: Tensor, other: Tensor, text: Passage, reading: Reading
) -> tuple[float, ...] | list[float]:
    """How far another answer lies off at each row."""
    if reading.measure == "embedding":
        return squared_distances(truth, other)
    return measure_divergence(truth, other, (0, *reading.follows(text, truth))).kl


def artefact_rows(loaded: LoadedModel, truth: Truth, report: OnStep) -> Iterator[Tensor]:
    """Yields a merged model's answer to each passage of the truth, shape (rows, width).

    Raises:
        ProofError: It has fewer tokens than the truth.
    """
    for number, text in enumerate(truth.texts):
        report("merged model", number, len(truth.passages))
        largest = max((*text.ids, *text.answer))
        if largest >= loaded.vocabulary:
            raise ProofError(
                "the artefact has fewer tokens than the truth",
                expected=f"more than {largest}",
                found=f"{loaded.vocabulary} rows of the embedding",
                hint="release again; a tokenizer of another model was put beside the weights",
            )
        with quiet(), torch.inference_mode():
            rows = truth.reading.rows(loaded.model, text)
        # Outside: a reader that gives up half-way would leave these modes on behind it.
        yield rows
    report("merged model", len(truth.passages), len(truth.passages))


def _silent(_what: str, _done: int, _total: int) -> None:
    """Reports nothing."""
