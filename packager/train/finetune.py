"""A small, repeatable LoRA fine-tuning run: base and conversations in, locked adapter out."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.base import BaseRef
from packager.errors import InputError, OutputError
from packager.filekind import is_tokenizer_file
from packager.lock import write_lock
from packager.train.dataset import Example

if TYPE_CHECKING:
    import torch

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama-shaped transformer block."""

_IGNORED = -100
"""Label of a token that is not learnt. Source: torch, nn.CrossEntropyLoss, ignore_index."""

OnStep = Callable[[int, int, float], None]
"""Called with the step (from 1), the number of steps, and the loss in nats per token."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        rank: Of every LoRA pair.
        alpha: Numerator of the scale; PEFT applies alpha / rank.
        target_modules: Names of the linear layers that get a pair.
        epochs: Passes over the examples.
        learning_rate: Of AdamW; falls linearly to zero.
        max_tokens: Longest conversation, in tokens; a longer one is an error.
        seed: Of the initial weights and the order of examples.
    """

    rank: int = 8
    alpha: int = 16
    target_modules: tuple[str, ...] = PROJECTIONS
    epochs: int = 8
    learning_rate: float = 2e-3
    max_tokens: int = 1024
    seed: int = 0


def train(
    base: BaseRef,
    examples: Sequence[Example],
    out: Path,
    settings: TrainSettings = TrainSettings(),
    *,
    on_step: OnStep | None = None,
) -> Path:
    """Trains a LoRA adapter in float32 and stamps it with `base.lock.json`.

    The same base, examples, settings, thread count and library versions give the same bytes.
    The adapter gets the base's tokenizer files as they are, byte for byte.

    Args:
        base: The exact base; its files are only read.
        examples: Conversations; only the last answer of each is learnt.
        out: The adapter directory to make.
        settings: How to train.
        on_step: Progress.

    Returns:
        `out`.

    Raises:
        InputError: No example, or one that is longer than `settings.max_tokens`.
        OutputError: `out` exists or cannot be written.
    """
    if out.exists():
        raise OutputError(
            "the adapter folder exists already",
            where=str(out),
            hint="name another folder, or remove this one",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.mkdir()
    try:
        _train_into(aside, base, examples, settings, on_step)
        for entry in base.files:
            if is_tokenizer_file(entry.path):
                (aside / entry.path).parent.mkdir(exist_ok=True)
                shutil.copyfile(base.directory / entry.path, aside / entry.path)
        write_lock(aside, base)
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return out


def _train_into(
    aside: Path,
    base: BaseRef,
    examples: Sequence[Example],
    settings: TrainSettings,
    on_step: OnStep | None,
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.directory, local_files_only=True)
    encoded = [_encode(example, tokenizer, settings.max_tokens) for example in examples]
    if not encoded:
        raise InputError(
            "there is no example to train on",
            expected="at least one conversation",
            hint="give a file with --data that holds some",
        )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = AutoModelForCausalLM.from_pretrained(
            base.directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=list(settings.target_modules),
            task_type="CAUSAL_LM",
            base_model_name_or_path=base.repo or str(base.directory),
            revision=base.commit,
        )
        with warnings.catch_warnings():
            # PEFT 0.21 asks by a name that transformers 5.23 has deprecated.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            tuned = get_peft_model(model, config)
        # get_peft_model puts the path that the model was loaded from in its place.
        config.base_model_name_or_path = base.repo or str(base.directory)
        _run_steps(tuned, encoded, settings, on_step)
    tuned.save_pretrained(aside, save_embedding_layers=False)
    # safetensors 0.8 writes mode 0600 whatever the umask: the weights get the mode of the rest.
    mode = (aside / "adapter_config.json").stat().st_mode
    (aside / "adapter_model.safetensors").chmod(mode)
    # PEFT writes a card of blanks to be filled in; a release writes a real one.
    (aside / "README.md").unlink(missing_ok=True)


def _encode(example: Example, tokenizer: Any, max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns token ids and labels, both int64 [1, tokens]; only the answer has labels."""
    import torch

    chat = example.to_chat()
    prompt = tokenizer.apply_chat_template(
        chat[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    if whole[: len(prompt)] != prompt:
        raise InputError(
            "the chat template writes the question differently once it is answered",
            where="the base's tokenizer",
            hint="use a base whose template keeps the conversation as it was",
        )
    if len(whole) > max_tokens:
        raise InputError(
            "an example is too long",
            where=repr(chat[0]["content"])[:80],
            expected=f"at most {max_tokens} tokens",
            found=f"{len(whole)} tokens",
            hint="shorten it, or allow more tokens",
        )
    labels = [_IGNORED] * len(prompt) + whole[len(prompt) :]
    return torch.tensor([whole]), torch.tensor([labels])


def _run_steps(
    model: Any,
    encoded: Sequence[tuple[torch.Tensor, torch.Tensor]],
    settings: TrainSettings,
    on_step: OnStep | None,
) -> None:
    """Trains `model` in place, one example a step."""
    import torch

    steps = settings.epochs * len(encoded)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps
    )
    order = [int(i) for _ in range(settings.epochs) for i in torch.randperm(len(encoded))]
    model.train()
    for step, chosen in enumerate(order, start=1):
        ids, labels = encoded[chosen]
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(step, steps, float(loss.detach()))
    model.eval()
