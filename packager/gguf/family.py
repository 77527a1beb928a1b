"""What a family of architectures is made of: names, transforms, keys and vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from packager.gguf.key import USUAL, KeyRule
from packager.gguf.setting import Settings
from packager.gguf.value import GgufKey, GgufTensor

Vocabulary = Literal["sentencepiece", "sentencepiece-or-gpt2", "llama-hf", "bpe"]
"""How the tokens of a model are stored:

- `sentencepiece`: `tokenizer.model`.
- `sentencepiece-or-gpt2`: the same, overlaid by `tokenizer.json`, unless the tokenizer says that
  it is GPT-2's (Phi).
- `llama-hf`: a `tokenizer.json` that was made from a SentencePiece model.
- `bpe`: a `tokenizer.json` with byte-level BPE.
"""

SpacePrefix = Literal["unsaid", "stated", "never"]
"""Of the key `tokenizer.ggml.add_space_prefix`: left out, as the tokenizer's configuration states,
false with SentencePiece."""


def no_keys(_architecture: str, _settings: Settings) -> tuple[GgufKey, ...]:
    """Returns nothing: the family has no keys of its own."""
    return ()


def no_factors(_settings: Settings) -> tuple[GgufTensor, ...]:
    """Returns nothing: the family has no tensors that follow from its configuration."""
    return ()


@dataclass(frozen=True)
class Stack:
    """Numbered tensors of a block that become one along a new first axis, such as experts.

    Attributes:
        prefix: Of their names within the block, up to the number.
        members: What follows the number, without `.weight` → name in the GGUF file; in the order
            in which the file gets them.
        count: Settings that say how many there are.
    """

    prefix: str
    members: Mapping[str, str]
    count: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Everything that sets one family apart.

    Attributes:
        architecture: As llama.cpp names it.
        classes: Model classes of transformers, as `architectures` of a configuration has them.
        defaults: Settings that a configuration may leave out; see `read_settings`.
        outer: Module outside of the blocks → name in the GGUF file.
        block: What stands before a block's number.
        inner: Module within a block → name in the GGUF file.
        stacks: Tensors that are put together.
        permuted: Names in the GGUF file whose rows get llama.cpp's rotary order.
        transposed: Names in the GGUF file whose weights are stored the other way round.
        shifts_norms: Whether norms are stored around zero.
        optional_prefix: Stands before all names in some checkpoints.
        foreign: Starts of names of another modality, which a language model does not need.
        reads_head: Whether llama.cpp reads an output head; otherwise it takes the embedding.
        needs_head: Whether llama.cpp does not load a model without an output head of its own.
        rules: Keys that hold a setting.
        usual: Whether the keys of RoPE are among them.
        own_keys: The keys that need more than a rule.
        factors: The tensors that follow from the configuration.
        vocabularies: Ways to read the tokens; the first one whose files are there counts.
        space_prefix: Whether text gets a leading space.
        tokenizer_defaults: Keys of a tokenizer that its files may overrule.
    """

    architecture: str
    classes: tuple[str, ...]
    defaults: Mapping[str, Any]
    outer: Mapping[str, str]
    inner: Mapping[str, str]
    block: str = "model.layers."
    stacks: tuple[Stack, ...] = ()
    permuted: frozenset[str] = frozenset()
    transposed: frozenset[str] = frozenset()
    shifts_norms: bool = False
    optional_prefix: str = ""
    foreign: tuple[str, ...] = ()
    reads_head: bool = True
    needs_head: bool = False
    rules: tuple[KeyRule, ...] = USUAL
    usual: bool = True
    own_keys: Callable[[str, Settings], tuple[GgufKey, ...]] = no_keys
    factors: Callable[[Settings], tuple[GgufTensor, ...]] = no_factors
    vocabularies: tuple[Vocabulary, ...] = ("bpe",)
    space_prefix: SpacePrefix = "unsaid"
    tokenizer_defaults: tuple[GgufKey, ...] = ()


def table(**names: Any) -> Mapping[str, Any]:
    """Returns a mapping that nobody can change."""
    return MappingProxyType(names)
