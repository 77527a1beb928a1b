"""Real models for tests: one that answers, trained once and kept; small random ones, made fresh.

The kept ones lie outside of the checkout, in a folder named after everything that they were made
from, and appear there by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from packager.base.ref import read_local_base
from packager.demo.base import extract_base
from packager.demo.lesson import ADAPTER_NAME, LESSON, SETTINGS
from packager.train import TrainSettings, train

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = (
    "The quick brown fox jumps over the lazy dog. It was the best of times, the worst of times.",
    "user assistant system question answer the of and to in is that for it with as was on be",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "🏴‍☠️ Ünïcödé — здравствуй, мир — こんにちは 🙂",
)


def cache_folder() -> Path:
    """Returns the folder of models that tests keep between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "lorapack-tests"


def keep_smollm2() -> Path:
    """Returns SmolLM2-135M-Instruct as a checkpoint directory (bfloat16, tied embeddings)."""
    # Where `lorapack demo` looks when this folder is its XDG_CACHE_HOME.
    return extract_base(cache_folder() / "lorapack" / "demo")


def keep_pirate(base_directory: Path, settings: TrainSettings = SETTINGS) -> Path:
    """Returns an adapter of the demo's lesson, by default the demo's own; trained on first use."""
    base = read_local_base(base_directory)
    made_from = json.dumps(
        [
            [metadata.version(name) for name in ("torch", "transformers", "peft", "safetensors")],
            # The adapter's configuration holds the path of the base.
            [base.digest, str(base.directory)],
            [asdict(example) for example in LESSON],
            asdict(settings),
        ]
    )
    key = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    place = cache_folder() / f"{ADAPTER_NAME}-{key}"
    if not place.is_dir():
        with tempfile.TemporaryDirectory(prefix=".train.", dir=cache_folder()) as folder:
            aside = Path(folder) / "whole"
            train(base, LESSON, aside / ADAPTER_NAME, settings)
            try:
                aside.rename(place)
            except OSError:
                # Another test run trained the same at the same time.
                assert place.is_dir()
    return place / ADAPTER_NAME


def write_tokenizer(out: Path, *, size: int = 384) -> int:
    """Trains a byte-level BPE tokenizer with a chat template; every text has tokens.

    Args:
        out: The folder to write to; made if missing.
        size: Most tokens that it may have; at least 259.

    Returns:
        The number of its tokens, special ones included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.save(os.fspath(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return int(tokenizer.get_vocab_size())


def make_llama(
    out: Path,
    *,
    dtype: str = "bfloat16",
    tied: bool = True,
    max_shard_size: str = "5GB",
    vocab_rows: int | None = None,
    layers: int = 2,
    hidden: int = 64,
    license_id: str | None = "apache-2.0",
    seed: int = 0,
) -> Path:
    """Writes a random Llama (about 0.1 million parameters) with tokenizer, card and licence.

    Args:
        out: The checkpoint directory to make.
        dtype: Of the weights: float32, bfloat16 or float16.
        tied: Whether the head is the input embedding.
        max_shard_size: As transformers takes it; "60KB" makes a handful of shards.
        vocab_rows: Rows of the embedding; by default as many as the tokenizer has tokens.
        layers: Transformer blocks.
        hidden: Width, a multiple of 16.
        license_id: In the card; None leaves card and licence out.
        seed: Of the weights.

    Returns:
        `out`.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokens = write_tokenizer(out)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = LlamaConfig(
        vocab_size=vocab_rows or tokens,
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        dtype=dtype,
        **ids,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(out, max_shard_size=max_shard_size)
    if license_id is not None:
        card = f"---\nlicense: {license_id}\nlanguage:\n- en\n---\n# A random model for tests\n"
        (out / "README.md").write_text(card, encoding="utf-8")
        (out / "LICENSE").write_text(f"Text of {license_id}.\n", encoding="utf-8")
    return out


def make_adapter(base: Path, out: Path, *, seed: int = 1, **lora: Any) -> Path:
    """Writes a PEFT adapter for `base` whose effect is far from zero, as PEFT saves it.

    Args:
        base: A checkpoint directory.
        out: The adapter directory to make.
        seed: Of the weights.
        **lora: Arguments of `peft.LoraConfig`; by default rank 4, alpha 8, all linear layers.

    Returns:
        `out`.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    arguments = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tuned = get_peft_model(model, LoraConfig(**{**arguments, **lora}))
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if weight.requires_grad and "lora_" in name:
                    # PEFT starts one half of each pair at zero, which would be no change at all.
                    weight.normal_(std=0.1)
    tuned.save_pretrained(out, save_embedding_layers=False)
    return out
