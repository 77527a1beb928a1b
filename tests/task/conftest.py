"""Small bases as the Hub holds them, adapters that were trained for a task, and their releases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import Release, release
from tests.models import write_tokenizer

LABELS = 3
_WIDTH = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.15, "max_position_embeddings": 256,
}  # fmt: skip
_ENCODER = {**_WIDTH, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Trained:
    """One way to train an adapter for a task.

    Attributes:
        base: Class that the base was saved from.
        config: Class of its configuration.
        settings: Of the configuration.
        task: PEFT's task type.
        auto: The Auto class that the adapter was trained through.
        architecture: Class of the merged model.
        targets: Adapted layers.
        dropped: What the names of the base's tensors begin with that stay behind.
        prefix: Taken from the names that transformers saves, since the Hub lacks it.
        lora: Further settings of PEFT.
    """

    base: str
    config: str
    settings: dict[str, Any]
    task: str
    auto: str
    architecture: str
    targets: tuple[str, ...] = ("query", "value")
    dropped: tuple[str, ...] = ()
    prefix: str = ""
    lora: dict[str, Any] = field(default_factory=dict)


def _bert(base: str, task: str, auto: str, architecture: str, **more: Any) -> Trained:
    return Trained(base, "BertConfig", _ENCODER, task, auto, architecture, **more)


def _llama(task: str, auto: str, architecture: str, **more: Any) -> Trained:
    settings = {
        **_WIDTH, "num_key_value_heads": 2, "tie_word_embeddings": False, "pad_token_id": 0,
    }  # fmt: skip
    targets = ("q_proj", "down_proj")
    return Trained(
        "LlamaForCausalLM", "LlamaConfig", settings, task, auto, architecture, targets, **more
    )


_CLASSES = "AutoModelForSequenceClassification"
_TOKENS = "AutoModelForTokenClassification"
_ANSWERS = "AutoModelForQuestionAnswering"

TRAINED: dict[str, Trained] = {
    "llama-classes": _llama(
        "SEQ_CLS", _CLASSES, "LlamaForSequenceClassification", dropped=("lm_head.",)
    ),
    "llama-vectors": _llama("FEATURE_EXTRACTION", "AutoModel", "LlamaModel", dropped=("lm_head.",)),
    "bert-classes": _bert(
        "BertForPreTraining", "SEQ_CLS", _CLASSES, "BertForSequenceClassification",
        dropped=("cls.",),
    ),
    "bare-bert-classes": _bert(
        "BertModel", "SEQ_CLS", _CLASSES, "BertForSequenceClassification"
    ),
    "bert-labels": _bert(
        "BertForPreTraining", "TOKEN_CLS", _TOKENS, "BertForTokenClassification",
        dropped=("cls.", "bert.pooler."),
    ),
    "bert-spans": _bert(
        "BertForPreTraining", "QUESTION_ANS", _ANSWERS, "BertForQuestionAnswering",
        dropped=("cls.", "bert.pooler."), lora={"modules_to_save": ["qa_outputs"]},
    ),
    "bert-vectors": _bert(
        "BertForPreTraining", "FEATURE_EXTRACTION", "AutoModel", "BertModel", dropped=("cls.",)
    ),
    "bare-bert-vectors": _bert("BertModel", "FEATURE_EXTRACTION", "AutoModel", "BertModel"),
    "roberta-classes": Trained(
        "RobertaForMaskedLM", "RobertaConfig", {**_ENCODER, "pad_token_id": 1}, "SEQ_CLS",
        _CLASSES, "RobertaForSequenceClassification", dropped=("lm_head.",),
    ),
    "bare-roberta-classes": Trained(
        "RobertaModel", "RobertaConfig", {**_ENCODER, "pad_token_id": 1}, "SEQ_CLS",
        _CLASSES, "RobertaForSequenceClassification", dropped=("pooler.",),
    ),
    "distilbert-classes": Trained(
        "DistilBertForMaskedLM", "DistilBertConfig",
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "initializer_range": 0.15,
         "max_position_embeddings": 256, "dropout": 0.0, "attention_dropout": 0.0,
         "seq_classif_dropout": 0.0},
        "SEQ_CLS", _CLASSES, "DistilBertForSequenceClassification", ("q_lin", "v_lin"),
        dropped=("vocab_",),
    ),
    "modernbert-labels": Trained(
        "ModernBertForMaskedLM", "ModernBertConfig",
        {**_WIDTH, "global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0},
        "TOKEN_CLS", _TOKENS, "ModernBertForTokenClassification", ("Wqkv", "Wo"),
        dropped=("decoder.",),
    ),
    "gpt2-classes": Trained(
        "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "pad_token_id": 0},
        "SEQ_CLS", _CLASSES, "GPT2ForSequenceClassification", ("c_attn",), prefix="transformer.",
    ),
    "gpt2-text": Trained(
        "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "pad_token_id": 0},
        "CAUSAL_LM", "AutoModelForCausalLM", "GPT2LMHeadModel", ("c_attn",),
        prefix="transformer.",
    ),
    "t5-text": Trained(
        "T5ForConditionalGeneration", "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
         "dropout_rate": 0.0, "decoder_start_token_id": 0},
        "SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", "T5ForConditionalGeneration", ("q", "v", "wi"),
    ),
}  # fmt: skip
"""By a name that tells base and task."""


@dataclass(frozen=True)
class Case:
    """A base, an adapter, and what a release made of them."""

    trained: Trained
    base: Path
    adapter: Path
    made: Release

    @property
    def merged(self) -> Path:
        """The merged model's folder."""
        return self.made.bundle / "merged" / "it"

    def load_base(self) -> Any:
        """Loads the base for the task; a head that it lacks is always the same."""
        return load_base(self.trained, self.base)

    def load_peft(self) -> Any:
        """Loads base and adapter with PEFT: the oracle."""
        return peft.PeftModel.from_pretrained(self.load_base(), self.adapter).eval()


def load_base(trained: Trained, folder: Path) -> Any:
    given = {"num_labels": LABELS} if trained.task in ("SEQ_CLS", "TOKEN_CLS") else {}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        auto = getattr(transformers, trained.auto)
        return auto.from_pretrained(folder, dtype=torch.float32, **given).eval()


def write_base(trained: Trained, out: Path) -> Path:
    """Writes a random base with a tokenizer."""
    tokens = write_tokenizer(out)
    settings = {"eos_token_id": 2, **trained.settings, "vocab_size": tokens}
    config = getattr(transformers, trained.config)(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        getattr(transformers, trained.base)(config).save_pretrained(out)
    if trained.prefix:
        tensors = load_file(out / "model.safetensors")
        renamed = {name.removeprefix(trained.prefix): item for name, item in tensors.items()}
        save_file(renamed, out / "model.safetensors", metadata={"format": "pt"})
    (out / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    return out


def train(trained: Trained, base: Path, out: Path, **more: Any) -> Path:
    """Trains an adapter for a few steps at a high rate, so that its effect is large."""
    settings = {
        "r": 3, "lora_alpha": 7, "target_modules": list(trained.targets), **trained.lora, **more,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = peft.LoraConfig(task_type=trained.task, **settings)
        tuned = peft.get_peft_model(load_base(trained, base), config)
        weights = [item for item in tuned.parameters() if item.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=3e-2)
        for _ in range(3):
            _loss(tuned, trained).backward()
            optimiser.step()
            optimiser.zero_grad()
    tuned.save_pretrained(out)
    return out


def _loss(tuned: Any, trained: Trained) -> Any:
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(1))
    if trained.task == "FEATURE_EXTRACTION":
        states = tuned(input_ids=ids).last_hidden_state
        wanted = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
        return (states - wanted).square().mean()
    if trained.task == "QUESTION_ANS":
        ends = {"start_positions": torch.tensor([1, 4]), "end_positions": torch.tensor([3, 7])}
        return tuned(input_ids=ids, **ends).loss
    labels = {"SEQ_CLS": torch.tensor([0, 2]), "TOKEN_CLS": ids % LABELS}.get(trained.task, ids)
    return tuned(input_ids=ids, labels=labels).loss


def release_it(base: Path, adapter: Path, out: Path, **options: Any) -> Release:
    """Makes a merged model and proves all of it."""
    wanted = {"targets": ("merged",), **options}
    request = ReleaseRequest(
        adapters=(("it", adapter),),
        out=out,
        base=str(base),
        options=ReleaseOptions(**wanted),
    )
    return release(request, Silent())


@pytest.fixture(scope="package", autouse=True)
def _one_quiet_thread() -> Iterator[None]:
    """Models this small run faster on one thread; their progress bars say nothing."""
    threads, bars = torch.get_num_threads(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    if bars:
        logging.enable_progress_bar()


@pytest.fixture(scope="package")
def make_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Trains and releases once for each name."""
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in made:
            folder, trained = tmp_path_factory.mktemp(name), TRAINED[name]
            base = write_base(trained, folder / "base")
            adapter = train(trained, base, folder / "adapter")
            made[name] = Case(trained, base, adapter, release_it(base, adapter, folder / "out"))
        return made[name]

    return make
