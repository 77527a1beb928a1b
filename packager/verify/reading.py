"""How the model of a task reads a passage, and which of its answers are compared.

A language model answers with a distribution over the next token at each position; a classifier
with one over classes for the whole text or for each token; one that answers questions with one
over positions for the start and one for the end; a backbone without a head with a vector for each
token. All but the last are distributions, and are compared as such.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from packager.task import TASKS, Task
from packager.verify.prompt import MAX_PROMPT_TOKENS
from packager.verify.proof import Measure

_IMPOSSIBLE = -1e4
"""A logit whose probability is zero in float64, and whose logarithm is a number."""


@dataclass(frozen=True)
class Passage:
    """A text that models are compared on.

    Attributes:
        ids: Token ids that the model is given, at least one.
        answer: Token ids that a decoder is made to say; empty for models without one.
    """

    ids: tuple[int, ...]
    answer: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How models of one task are read.

    Attributes:
        task: Which.
        measure: What one row of an answer is.
        run: (model, passage) → its answer, shape (rows, width), float32.
        continues: Whether passages are continued by the truth's own answers.
    """

    task: Task
    measure: Measure
    run: Callable[[Any, Passage], Tensor]
    continues: bool = False

    def rows(self, model: Any, passage: Passage) -> Tensor:
        """Returns a model's answer to a passage, shape (rows, width), float32."""
        return self.run(model, passage).float().contiguous()

    def follows(self, passage: Passage, truth: Tensor) -> tuple[int, ...]:
        """Returns what stands at each row: the text's own token, else what the truth answers.

        Args:
            passage: The text.
            truth: The truth's answer to it, shape (rows, width).
        """
        if self.measure == "next token":
            return passage.answer or passage.ids[1:]
        return tuple(truth.argmax(-1).tolist())


def _next_tokens(model: Any, passage: Passage) -> Tensor:
    logits: Tensor = model(input_ids=_batch(passage.ids), use_cache=False).logits
    return logits[0, :-1]


def _decoded_tokens(model: Any, passage: Passage) -> Tensor:
    """Row i predicts token i of the answer: the decoder is given its start token and the rest."""
    logits: Tensor = model(input_ids=_batch(passage.ids), labels=_batch(passage.answer)).logits
    return logits[0]


def _classes(model: Any, passage: Passage) -> Tensor:
    logits: Tensor = model(input_ids=_batch(passage.ids)).logits
    return logits


def _labels(model: Any, passage: Passage) -> Tensor:
    logits: Tensor = model(input_ids=_batch(passage.ids)).logits
    return logits[0]


def _spans(model: Any, passage: Passage) -> Tensor:
    """Start and end over the positions; those beyond the text are as good as impossible."""
    output = model(input_ids=_batch(passage.ids))
    logits = torch.cat([output.start_logits, output.end_logits]).float()
    room = MAX_PROMPT_TOKENS - logits.shape[1]
    return torch.nn.functional.pad(logits, (0, room), value=_IMPOSSIBLE)


def _embeddings(model: Any, passage: Passage) -> Tensor:
    """The last hidden states; of an encoder and decoder, which needs both, the decoder's."""
    ids = _batch(passage.ids)
    given = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    states: Tensor = model(input_ids=ids, **given).last_hidden_state
    return states[0]


def _batch(ids: tuple[int, ...]) -> Tensor:
    return torch.tensor([ids])


READINGS: dict[str, Reading] = {
    "CAUSAL_LM": Reading(TASKS["CAUSAL_LM"], "next token", _next_tokens, continues=True),
    "IMAGE_TEXT": Reading(TASKS["IMAGE_TEXT"], "next token", _next_tokens, continues=True),
    "SEQ_2_SEQ_LM": Reading(TASKS["SEQ_2_SEQ_LM"], "next token", _decoded_tokens, continues=True),
    "SEQ_CLS": Reading(TASKS["SEQ_CLS"], "class", _classes),
    "TOKEN_CLS": Reading(TASKS["TOKEN_CLS"], "label", _labels),
    "QUESTION_ANS": Reading(TASKS["QUESTION_ANS"], "span", _spans),
    "FEATURE_EXTRACTION": Reading(TASKS["FEATURE_EXTRACTION"], "embedding", _embeddings),
}
"""By the task's name. A task that is not here cannot be compared."""
CAUSAL = READINGS["CAUSAL_LM"]
