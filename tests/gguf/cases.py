"""Small random models of every family, as transformers saves them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import models

_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip
_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "beta_fast": 16.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0,
    "short_factor": [1.0 + number / 10 for number in range(8)],
    "long_factor": [1.5 + number / 3 for number in range(8)],
}  # fmt: skip
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}  # fmt: skip
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64}


@dataclass(frozen=True)
class Case:
    """A model of one class.

    Attributes:
        name: Of the class, without `ForCausalLM`.
        settings: What differs from the usual sizes.
        pieces: Whether it has a SentencePiece vocabulary.
        rows: Rows of the embedding beyond the tokens.
        stated: Settings to write into `config.json` afterwards.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    pieces: bool = False
    rows: int = 0
    stated: dict[str, Any] = field(default_factory=dict)
    model_class: str = ""


CASES = {
    "llama": Case("Llama", {"rope_parameters": _LLAMA3_ROPE, "attention_bias": True}, rows=5),
    "llama-tied": Case("Llama", {"tie_word_embeddings": True, "head_dim": 32}),
    "llama-linear": Case("Llama", {"rope_parameters": {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "llama-2": Case("Llama", pieces=True, rows=7),
    "mistral": Case("Mistral", {"sliding_window": 64, "rope_parameters": _YARN}, pieces=True),
    "mixtral": Case("Mixtral", _EXPERTS, pieces=True),
    "smollm3": Case("SmolLM3"),
    "granite": Case("Granite", {
        "embedding_multiplier": 12.0, "attention_multiplier": 0.015625, "logits_scaling": 8.0,
        "residual_multiplier": 0.0}),
    "qwen2": Case("Qwen2", {"rope_parameters": _YARN}, rows=13),
    "qwen3": Case("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2-moe": Case("Qwen2Moe", _QWEN_EXPERTS),
    "qwen3-moe": Case("Qwen3Moe", {**_QWEN_EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
    "gemma2": Case("Gemma2", _GEMMA, pieces=True),
    "gemma3": Case("Gemma3", _GEMMA, pieces=True),
    "gemma3-untied": Case("Gemma3", {
        **_GEMMA, "tie_word_embeddings": False,
        "final_logit_softcapping": 20.0}, pieces=True),
    "phi2": Case("Phi", {"num_key_value_heads": 4}),
    "phi3": Case("Phi3", pieces=True, settings={"sliding_window": 128}),
    "phi3-long": Case("Phi3", {
        "rope_parameters": _LONGROPE, "original_max_position_embeddings": 64}, pieces=True),
    "gpt2": Case("GPT2", stated={"n_ctx": 512}, model_class="GPT2LMHeadModel"),
    "stablelm": Case("StableLm"),
    "olmo2": Case("Olmo2"),
    "starcoder2": Case("Starcoder2"),
    "cohere": Case("Cohere", {"use_qk_norm": False}),
}  # fmt: skip


def write_model(case: Case, out: Path, pieces: Path) -> Path:
    """Writes a random model in float32 with its tokenizer.

    Args:
        case: Which.
        out: The checkpoint directory to make.
        pieces: A folder with the files of a SentencePiece tokenizer.

    Returns:
        `out`.
    """
    import torch
    import transformers

    tokens = _copy_pieces(pieces, out) if case.pieces else models.write_tokenizer(out)
    name = "Gemma3Text" if case.name == "Gemma3" else case.name
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=tokens + case.rows, **{**sizes(case), **ids, **case.settings}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, case.model_class or f"{case.name}ForCausalLM")(config)
        for parameter in model.parameters():
            # Norms and biases start as ones and zeros, which would hide a wrong transform.
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.generation_config = transformers.GenerationConfig(
        **ids, do_sample=True, temperature=0.6, top_p=0.9, top_k=40, repetition_penalty=1.1
    )
    model.save_pretrained(out)
    path = out / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **case.stated}))
    return out


def write_pieces(out: Path) -> Path:
    """Trains a SentencePiece model as Llama 2's (BPE, byte fallback) and writes its files."""
    import sentencepiece

    out.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in models._CORPUS for _ in range(3)]),
        model_prefix=str(out / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        hard_vocab_limit=False,
        pad_id=3,
        user_defined_symbols=["<unused0>", "<start_of_turn>"],
        control_symbols=["<mask>"],
        minloglevel=2,
    )
    (out / "tokenizer.vocab").unlink()
    added = {"content": "<|im_end|>", "lstrip": False, "normalized": False, "rstrip": False,
             "single_word": False, "special": True}  # fmt: skip
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "chat_template": models.CHAT_TEMPLATE,
        "added_tokens_decoder": {
            "1": {**added, "content": "<s>"},
            str(count_pieces(out)): added,
            str(count_pieces(out) + 1): {**added, "content": "▁two▁words", "special": False},
        },
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    return out


def count_pieces(folder: Path) -> int:
    """Returns the number of pieces of `tokenizer.model`."""
    import sentencepiece

    loaded = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return int(loaded.vocab_size())


def _copy_pieces(pieces: Path, out: Path) -> int:
    shutil.copytree(pieces, out)
    return count_pieces(out) + 2


def sizes(case: Case) -> dict[str, Any]:
    """Returns the settings that every model of a test has."""
    if case.name == "GPT2":
        return {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
    return _SIZES
