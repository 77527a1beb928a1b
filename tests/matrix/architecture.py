"""The rows of the matrix: small random models in the layout that their checkpoints have on the Hub.

Source: transformers 5.x, configuration classes; the layout is what save_pretrained reverts to
(per-expert weights of a mixture, `visual.` beside `model.`), and where the Hub's first checkpoints
are older than that, what they hold: openai-community/gpt2 without `transformer.`,
google-bert/bert-base-uncased with `LayerNorm.gamma` and heads for pretraining only,
google/flan-t5-small with a head of its own although transformers calls every T5 tied.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

HIDDEN = 64
TOKENS = 96
_SEQUENCE = 8
_LABELS = 3
_WEIGHTS = "model.safetensors"

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """One row.

    Attributes:
        title: On the page.
        config: Makes the configuration.
        auto: Name of the Auto class that a user loads it through.
        task: PEFT's task type.
        attention: Linear layers of attention, by last name.
        linear: All linear layers that people adapt, by last name.
        embedding: Last name of the input embedding.
        head: Name of the head's module, or None.
        experts: Parameters of fused experts, as `target_parameters` takes them.
        biased: Layers of attention that have a bias, by last name.
        convolutions: Convolutions, by the ends of their names.
        rewrite: Turns what transformers saves into what the Hub holds, or None.
        stated: What the Hub's `config.json` says besides.
        saved_class: Class that the base was saved from, where it is not the task's own.
        arguments: Of `from_pretrained`, such as the number of labels.
    """

    title: str
    config: Callable[[], Any]
    auto: str = "AutoModelForCausalLM"
    task: str = "CAUSAL_LM"
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    linear: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    embedding: str = "embed_tokens"
    head: str | None = "lm_head"
    experts: tuple[str, ...] = ()
    biased: tuple[str, ...] = ()
    convolutions: tuple[str, ...] = ()
    rewrite: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    stated: dict[str, Any] = field(default_factory=dict)
    saved_class: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def auto_class(self) -> Any:
        """The Auto class itself."""
        return getattr(transformers, self.auto)

    def load(self, folder: Path, **arguments: Any) -> Any:
        """Loads a base in float32, with the head of its task, which may be new and random."""
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return self.auto_class.from_pretrained(
                folder, dtype=torch.float32, **{**self.arguments, **arguments}
            )

    def inputs(self, *, rows: int = 2, seed: int = 11) -> Inputs:
        """Random inputs with labels, as the model takes them."""
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, TOKENS - 16, (rows, _SEQUENCE), generator=random)
        if self.task == "SEQ_CLS":
            return {"input_ids": ids, "labels": torch.arange(rows) % _LABELS}
        if self.task == "SEQ_2_SEQ_LM":
            return {"input_ids": ids, "labels": ids.flip(1)}
        if self.auto == "AutoModelForImageTextToText":
            return _image_inputs(ids, random)
        return {"input_ids": ids, "labels": ids}


def write_base(architecture: Architecture, out: Path, *, dtype: str = "float32") -> Path:
    """Writes a random base as the Hub would hold it.

    Returns:
        `out`.
    """
    config = architecture.config()
    config.dtype = dtype
    with torch.random.fork_rng():
        torch.manual_seed(7)
        name = architecture.saved_class
        model = (
            architecture.auto_class.from_config(config)
            if name is None
            else getattr(transformers, name)(config)
        )
        for parameter in model.parameters():
            if parameter.dim() == 1:
                # Biases start at zero and norms at one, where mistakes do not show.
                parameter.data += 0.1 * torch.randn(parameter.shape)
    model.to(getattr(torch, dtype)).save_pretrained(out)
    if architecture.rewrite is not None:
        tensors = architecture.rewrite(load_file(out / _WEIGHTS))
        save_file(tensors, out / _WEIGHTS, metadata={"format": "pt"})
    if architecture.stated:
        stated = {**read_config(out), **architecture.stated}
        (out / "config.json").write_text(json.dumps(stated), encoding="utf-8")
    (out / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    return out


def read_config(folder: Path) -> dict[str, Any]:
    """Reads `config.json`."""
    document: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return document


_COMMON: dict[str, Any] = {
    "vocab_size": TOKENS, "hidden_size": HIDDEN, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "initializer_range": 0.15,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def _made(name: str, **arguments: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**{**_COMMON, **arguments})


def _image_inputs(ids: Tensor, random: torch.Generator) -> Inputs:
    """A picture of 2 × 2 patches, merged to one token, at the start of each text."""
    rows = len(ids)
    ids = torch.cat([torch.tensor([[90, 91, 92]]).expand(rows, 3), ids], 1)
    return {
        "input_ids": ids,
        "labels": ids,
        "pixel_values": torch.randn(rows * 4, 3 * 2 * 4 * 4, generator=random),
        "image_grid_thw": torch.tensor([[1, 2, 2]]).expand(rows, 3).clone(),
        "mm_token_type_ids": (ids == 91).int(),
    }


def _vision() -> Any:
    return transformers.Qwen2_5_VLConfig(
        text_config={
            **_COMMON,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 1e4,
            },
        },
        vision_config={
            "depth": 2, "hidden_size": HIDDEN, "intermediate_size": 64, "num_heads": 4,
            "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": HIDDEN, "window_size": 16, "fullatt_block_indexes": [1],
            "initializer_range": 0.15,
        },
        vision_start_token_id=90, image_token_id=91, vision_end_token_id=92, video_token_id=93,
        tie_word_embeddings=False,
    )  # fmt: skip


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def _with_old_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for after, before in old.items():
            if name.endswith(after):
                new = name.removesuffix(after) + before
        renamed[new] = tensor
    return renamed


def _with_own_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(9)
    shared = tensors["shared.weight"]
    head = 0.15 * torch.randn(shared.shape, generator=random)
    return {**tensors, "lm_head.weight": head.to(shared.dtype)}


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("Llama", _made("LlamaConfig", tie_word_embeddings=False)),
    "mistral": Architecture(
        "Mistral", _made("MistralConfig", sliding_window=6, tie_word_embeddings=False)
    ),
    "qwen2": Architecture(
        "Qwen2",
        _made("Qwen2Config", tie_word_embeddings=True),
        biased=("q_proj", "k_proj", "v_proj"),
    ),
    "qwen3": Architecture("Qwen3", _made("Qwen3Config", tie_word_embeddings=True)),
    "gemma2": Architecture("Gemma 2", _made("Gemma2Config", query_pre_attn_scalar=16)),
    "gemma3": Architecture("Gemma 3", _made("Gemma3TextConfig", query_pre_attn_scalar=16)),
    "phi3": Architecture(
        "Phi-3",
        _made("Phi3Config", tie_word_embeddings=False),
        attention=("qkv_proj", "o_proj"),
        linear=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    ),
    "gpt2": Architecture(
        "GPT-2",
        lambda: transformers.GPT2Config(
            vocab_size=TOKENS, n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=64,
            initializer_range=0.15, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        attention=("c_attn", "c_proj"),
        linear=("c_attn", "c_proj", "c_fc"),
        biased=("c_attn", "c_proj"),
        embedding="wte",
        rewrite=_without_prefix,
    ),
    "mixtral": Architecture(
        "Mixtral",
        _made(
            "MixtralConfig",
            num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False,
        ),
        linear=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    ),
    "qwen3-moe": Architecture(
        "Qwen3-MoE",
        _made(
            "Qwen3MoeConfig",
            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
            tie_word_embeddings=False,
        ),
        linear=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    ),
    "gpt-oss": Architecture(
        "gpt-oss",
        _made(
            "GptOssConfig",
            num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False,
            layer_types=["sliding_attention", "full_attention"], sliding_window=6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4}, intermediate_size=64,
        ),
        linear=("q_proj", "k_proj", "v_proj", "o_proj"),
        biased=("q_proj", "k_proj", "v_proj", "o_proj"),
        experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    ),
    "bert": Architecture(
        "BERT",
        lambda: transformers.BertConfig(
            vocab_size=TOKENS, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, initializer_range=0.15,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        auto="AutoModelForSequenceClassification",
        task="SEQ_CLS",
        attention=("query", "key", "value"),
        linear=("query", "key", "value", "dense"),
        biased=("query", "key", "value"),
        embedding="word_embeddings",
        head="classifier",
        rewrite=_with_old_norms,
        saved_class="BertForPreTraining",
        arguments={"num_labels": _LABELS},
    ),
    "t5": Architecture(
        "T5",
        lambda: transformers.T5Config(
            vocab_size=TOKENS, d_model=HIDDEN, d_kv=16, d_ff=64, num_layers=2, num_heads=4,
            dropout_rate=0.0, feed_forward_proj="gated-gelu",
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        ),
        auto="AutoModelForSeq2SeqLM",
        task="SEQ_2_SEQ_LM",
        attention=("q", "v"),
        linear=("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
        embedding="shared",
        rewrite=_with_own_head,
        stated={"tie_word_embeddings": False},
    ),
    "qwen2.5-vl": Architecture(
        "Qwen2.5-VL",
        _vision,
        auto="AutoModelForImageTextToText",
        attention=("q_proj", "k_proj", "v_proj", "o_proj", "qkv"),
        biased=("q_proj", "k_proj", "v_proj", "qkv"),
        convolutions=("patch_embed.proj",),
        linear=(
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv",
        ),
    ),
}  # fmt: skip
"""By the name that the table uses, in the order of the page."""
