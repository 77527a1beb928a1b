"""Models of every kind that a mixture tells apart, small, with the keys that llama.cpp asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from packager.gguf.value import GgufKey, GgufModel, GgufTensor


@dataclass(frozen=True)
class Geometry:
    """Sizes of a model.

    Attributes:
        architecture: As llama.cpp names it.
        layers: Blocks.
        hidden: Width.
        inner: Width of the feed-forward layer.
        heads: Query heads.
        key_heads: Key heads.
        experts: In a block; 0 for a dense model.
        tied: Whether the head is the embedding.
        vocabulary: Tokens.
    """

    architecture: str = "llama"
    layers: int = 9
    hidden: int = 64
    inner: int = 128
    heads: int = 4
    key_heads: int = 4
    experts: int = 0
    tied: bool = False
    vocabulary: int = 96

    @property
    def model(self) -> GgufModel:
        """The model as a value; its tensors come from base tensors of the same names."""
        return GgufModel(
            architecture=self.architecture,
            keys=self._keys(),
            tensors=tuple(
                GgufTensor(name, shape, (name,)) for name, shape in self._shapes().items()
            ),
            dropped=(),
            layers=self.layers,
            experts=self.experts,
            grouped_heads=self.heads // self.key_heads,
        )

    def _keys(self) -> tuple[GgufKey, ...]:
        numbers = {
            "block_count": self.layers,
            "context_length": 128,
            "embedding_length": self.hidden,
            "feed_forward_length": self.inner,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.key_heads,
            "attention.sliding_window": 64,
            "rope.dimension_count": self.hidden // self.heads,
            "vocab_size": self.vocabulary,
        }
        if self.experts:
            numbers |= {
                "expert_count": self.experts,
                "expert_used_count": 2,
                "expert_feed_forward_length": self.inner,
            }
        prefix = f"{self.architecture}."
        return (
            GgufKey("general.architecture", "string", self.architecture),
            GgufKey("general.name", "string", ""),
            GgufKey("general.tags", "string", ("näme", "", "日本")),
            *(GgufKey(prefix + name, "uint32", value) for name, value in numbers.items()),
            GgufKey(prefix + "attention.layer_norm_rms_epsilon", "float32", 1e-5),
            GgufKey(prefix + "attention.layer_norm_epsilon", "float32", 1e-5),
        )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (self.vocabulary, self.hidden),
            "output_norm.weight": (self.hidden,),
        }
        if self.architecture == "gpt2":
            shapes["position_embd.weight"] = (128, self.hidden)
        if not self.tied:
            shapes["output.weight"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            for name, shape in {**self._attention(), **self._feed_forward()}.items():
                shapes[f"blk.{layer}.{name}"] = shape
        return shapes

    def _attention(self) -> dict[str, tuple[int, ...]]:
        keys = self.hidden // self.heads * self.key_heads
        common: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (self.hidden,),
            "attn_output.weight": (self.hidden, self.hidden),
        }
        if self.architecture in {"gpt2", "phi3", "falcon"}:
            rows = self.hidden + 2 * keys
            return common | {
                "attn_qkv.weight": (rows, self.hidden), "attn_qkv.bias": (rows,),
            }  # fmt: skip
        return common | {
            "attn_q.weight": (self.hidden, self.hidden),
            "attn_k.weight": (keys, self.hidden),
            "attn_v.weight": (keys, self.hidden),
            "attn_q_norm.weight": (self.hidden // self.heads,),
        }

    def _feed_forward(self) -> dict[str, tuple[int, ...]]:
        into, out = (self.inner, self.hidden), (self.hidden, self.inner)
        if self.experts:
            return {
                "ffn_norm.weight": (self.hidden,),
                "ffn_gate_inp.weight": (self.experts, self.hidden),
                "ffn_gate_exps.weight": (self.experts, *into),
                "ffn_up_exps.weight": (self.experts, *into),
                "ffn_down_exps.weight": (self.experts, *out),
                **self._shared(),
            }
        gate = {} if self.architecture in {"gpt2", "falcon"} else {"ffn_gate.weight": into}
        return {"ffn_norm.weight": (self.hidden,), "ffn_up.weight": into, "ffn_down.weight": out,
                **gate}  # fmt: skip

    def _shared(self) -> dict[str, tuple[int, ...]]:
        """An expert for every token beside the others, so that a block has two ways down."""
        if self.architecture != "qwen2moe":
            return {}
        return {
            "ffn_gate_inp_shexp.weight": (1, self.hidden),
            "ffn_up_shexp.weight": (self.inner, self.hidden),
            "ffn_down_shexp.weight": (self.hidden, self.inner),
        }


_DENSE = Geometry()

GEOMETRIES: dict[str, Geometry] = {
    "llama": replace(_DENSE, hidden=256, inner=256),
    "llama tied": replace(_DENSE, hidden=256, inner=512, layers=17, tied=True),
    "llama grouped": replace(_DENSE, hidden=256, inner=256, layers=32, key_heads=1),
    "llama of uneven rows": replace(_DENSE, hidden=288, inner=320, heads=9, key_heads=3),
    "llama of odd rows": replace(_DENSE, hidden=72, inner=144, tied=True),
    "llama of one layer": replace(_DENSE, layers=1, hidden=256, inner=256),
    "llama 70B": replace(_DENSE, layers=80, key_heads=2),
    "llama 65B": replace(_DENSE, layers=80),
    "mixtral": replace(_DENSE, experts=8, key_heads=1, hidden=256, inner=256),
    "mixtral of 80 layers": replace(_DENSE, layers=80, experts=8, key_heads=1),
    "four experts": replace(_DENSE, layers=16, experts=4, key_heads=2, hidden=256, inner=256),
    "qwen2 72B": replace(_DENSE, architecture="qwen2", layers=80, tied=True),
    "qwen3moe": replace(_DENSE, architecture="qwen3moe", experts=16, key_heads=1, layers=12),
    "qwen2moe": replace(_DENSE, architecture="qwen2moe", experts=4, key_heads=1, layers=24),
    "gemma2": replace(_DENSE, architecture="gemma2", layers=26, key_heads=2, tied=True),
    "phi3": replace(_DENSE, architecture="phi3", layers=32, hidden=256, inner=256),
    "gpt2": replace(_DENSE, architecture="gpt2", layers=12, hidden=256, inner=1024, tied=True),
    "falcon": replace(_DENSE, architecture="falcon", layers=32, hidden=256, inner=256),
}
"""Every kind of model → its sizes, chosen so that no two rules give the same answers."""
