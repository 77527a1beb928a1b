"""The tokens of a `tokenizer.json`, with their types."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packager.errors import InputError
from packager.gguf.tokenizerdocument import OpenedTokenizer, special_texts
from packager.gguf.tokenizerfile import TokenizerFiles

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens. Source: llama.cpp 0c1e57098, gguf-py/gguf/constants.py, `TokenType`."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Source: llama.cpp 0c1e57098, conversion/base.py, `does_token_look_special`.
_LOOK_SPECIAL = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id.

    Attributes:
        tokens: Their texts.
        types: Their types.
        scores: Where they have any.
    """

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()


def looks_special(token: str) -> bool:
    """Tells whether a token that is not marked as a control token is one all the same."""
    return (
        token in _LOOK_SPECIAL
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def read_bpe(tokenizer: OpenedTokenizer, rows: int, where: str) -> Vocabulary:
    """Returns the tokens of a byte-level BPE tokenizer, one for each row of the embedding.

    Source: llama.cpp 0c1e57098, conversion/base.py, `get_vocab_base`.

    Args:
        tokenizer: As `open_tokenizer` gives it.
        rows: Rows of the embedding.
        where: The file, for errors.

    Raises:
        InputError: A token has no row.
    """
    _check_rows(tokenizer, rows, where)
    tokens, types = [], []
    for index in range(rows):
        text = tokenizer.texts.get(index)
        kind = NORMAL
        if text is None:
            text, kind = f"[PAD{index}]", UNUSED
        elif index in tokenizer.added:
            text, kind = _added(*tokenizer.added[index])
        tokens.append(text)
        types.append(kind)
    return Vocabulary(tuple(tokens), tuple(types))


def is_llama_document(files: TokenizerFiles) -> bool:
    """Tells whether a `tokenizer.json` was made from a SentencePiece model, as Llama 2's.

    Source: llama.cpp 0c1e57098, gguf-py/gguf/vocab.py, `LlamaHfVocab`.
    """
    document = files.document or {}
    model, decoder = document.get("model"), document.get("decoder")
    return (
        isinstance(model, dict)
        and isinstance(decoder, dict)
        and model.get("type") == "BPE"
        and model.get("byte_fallback") is True
        and decoder.get("type") == "Sequence"
    )


def read_llama_document(tokenizer: OpenedTokenizer, files: TokenizerFiles, rows: int) -> Vocabulary:
    """Returns the tokens of such a file; their scores are lost, so all have the same.

    Rows without a token are filled up: llama.cpp takes no embedding that is longer.

    Source: llama.cpp 0c1e57098, gguf-py/gguf/vocab.py, `LlamaHfVocab`.

    Raises:
        InputError: A token has no row.
    """
    _check_rows(tokenizer, rows, files.where("tokenizer.json"))
    special = set(special_texts(files))
    tokens, types = [], []
    for index in range(rows):
        text = tokenizer.texts.get(index)
        tokens.append(f"[PAD{index}]" if text is None else text)
        if text is None:
            types.append(UNUSED)
        elif index < tokenizer.base and _BYTE.fullmatch(text):
            types.append(BYTE)
        elif text in special:
            types.append(CONTROL)
        else:
            types.append(NORMAL if index < tokenizer.base else USER_DEFINED)
    return Vocabulary(tuple(tokens), tuple(types), (-1000.0,) * rows)


def too_large(where: str, rows: int, found: str) -> InputError:
    """Returns the error for tokens without a row in the embedding."""
    return InputError(
        "the vocabulary is larger than the embedding",
        where=where,
        expected=f"token ids below {rows}, the rows of the embedding",
        found=found,
        hint="train with resized embeddings, or remove the tokens that were added",
    )


def _check_rows(tokenizer: OpenedTokenizer, rows: int, where: str) -> None:
    beyond = min((index for index in tokenizer.texts if index >= rows), default=None)
    if beyond is not None:
        raise too_large(where, rows, f"{tokenizer.texts[beyond]!r} with id {beyond}"[:200])


def _added(text: str, special: bool) -> tuple[str, int]:
    if special or looks_special(text):
        return text, CONTROL
    return text.replace("▁", " "), USER_DEFINED
