"""The tokens of a `tokenizer.json`, with their types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packager.errors import InputError
from packager.gguf.pretokenizer import CHECK_TEXT
from packager.gguf.tokenizerfile import TokenizerFiles, added_tokens, token_text

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens. Source: llama.cpp 0c1e57098, gguf-py/gguf/constants.py, `TokenType`."""

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
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


def open_tokenizer(files: TokenizerFiles) -> Any:
    """Opens `tokenizer.json` with the `tokenizers` library, with the tokens of its configuration.

    Source: transformers 5.x, tokenization_utils_tokenizers.py: added tokens of the configuration,
    and special tokens that it names, join those of the file.

    Raises:
        InputError: There is no such file, or the library does not take it.
    """
    from tokenizers import AddedToken, Tokenizer

    if files.document_bytes is None or files.document is None:
        raise InputError(
            "the tokenizer has no tokenizer.json",
            where=", ".join(files.paths) or "the tokenizer's files",
            expected="tokenizer.json",
            hint="load it with transformers and save it again with save_pretrained",
        )
    try:
        tokenizer = Tokenizer.from_buffer(files.document_bytes)
    except Exception as problem:  # The library raises no class of its own.
        raise files.error(
            "tokenizer.json", "a file that the tokenizers library opens", str(problem)
        ) from problem
    tokenizer.no_truncation()
    tokenizer.no_padding()
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for _, token in sorted(added_tokens(files).items()):
        stated = {name: token[name] for name in flags if isinstance(token.get(name), bool)}
        tokenizer.add_tokens([AddedToken(token["content"], **stated)])
    for text in special_texts(files):
        if tokenizer.token_to_id(text) is None:
            tokenizer.add_tokens([AddedToken(text, special=True, normalized=False)])
    return tokenizer


def special_texts(files: TokenizerFiles) -> list[str]:
    """Returns the special tokens that the configuration names, in its order of kinds."""
    config = files.config or {}
    entries = [config.get(f"{name}_token") for name in _NAMED]
    for name in ("extra_special_tokens", "additional_special_tokens"):
        listed = config.get(name)
        if isinstance(listed, dict):
            listed = list(listed.values())
        entries += listed if isinstance(listed, list) else []
    texts = (token_text(entry) for entry in entries)
    return list(dict.fromkeys(text for text in texts if text))


def check_encodings(tokenizer: Any, files: TokenizerFiles) -> Iterator[list[int]]:
    """Yields token ids of `CHECK_TEXT`: as transformers gives them, then with other ends.

    A tokenizer that was saved with or without a first token splits text as before.

    Source: transformers 5.x, tokenization_utils_tokenizers.py, `update_post_processor`.
    """
    config = files.config or {}
    inner = list(tokenizer.encode(CHECK_TEXT, add_special_tokens=False).ids)
    whole = list(tokenizer.encode(CHECK_TEXT).ids)
    first, last = (_end_ids(tokenizer, config, name) for name in ("bos", "eos"))
    if "add_bos_token" in config or "add_eos_token" in config:
        before = first if config.get("add_bos_token") is True else []
        after = last if config.get("add_eos_token") is True else []
        yield [*before, *inner, *after]
    yield whole
    yield inner
    yield [*first, *inner]


def read_bpe(tokenizer: Any, rows: int, where: str) -> Vocabulary:
    """Returns the tokens of a byte-level BPE tokenizer, one for each row of the embedding.

    Source: llama.cpp 0c1e57098, conversion/base.py, `get_vocab_base`.

    Args:
        tokenizer: As `open_tokenizer` gives it.
        rows: Rows of the embedding.
        where: The file, for errors.

    Raises:
        InputError: A token has no row.
    """
    texts = _texts(tokenizer, rows, where)
    added = tokenizer.get_added_tokens_decoder()
    tokens, types = [], []
    for index in range(rows):
        text = texts.get(index)
        kind = NORMAL
        if text is None:
            text, kind = f"[PAD{index}]", UNUSED
        elif index in added:
            text, kind = _added(tokenizer, added[index], text)
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


def read_llama_document(tokenizer: Any, files: TokenizerFiles, rows: int) -> Vocabulary:
    """Returns the tokens of such a file; their scores are lost, so all have the same.

    Rows without a token are filled up: llama.cpp takes no embedding that is longer.

    Source: llama.cpp 0c1e57098, gguf-py/gguf/vocab.py, `LlamaHfVocab`.

    Raises:
        InputError: A token has no row.
    """
    texts = _texts(tokenizer, rows, files.where("tokenizer.json"))
    special = set(special_texts(files))
    base = tokenizer.get_vocab_size(with_added_tokens=False)
    tokens, types = [], []
    for index in range(rows):
        text = texts.get(index)
        tokens.append(f"[PAD{index}]" if text is None else text)
        if text is None:
            types.append(UNUSED)
        elif index < base and _BYTE.fullmatch(text):
            types.append(BYTE)
        elif text in special:
            types.append(CONTROL)
        else:
            types.append(NORMAL if index < base else USER_DEFINED)
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


def _texts(tokenizer: Any, rows: int, where: str) -> dict[int, str]:
    texts = {index: text for text, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    if texts and max(texts) >= rows:
        beyond = min(index for index in texts if index >= rows)
        raise too_large(where, rows, f"{texts[beyond]!r} with id {beyond}"[:200])
    return texts


def _added(tokenizer: Any, token: Any, text: str) -> tuple[str, int]:
    if not token.normalized:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        text = tokenizer.decode(ids, skip_special_tokens=False)
    if token.special or looks_special(text):
        return text, CONTROL
    return text.replace("▁", " "), USER_DEFINED


def _end_ids(tokenizer: Any, config: dict[str, Any], name: str) -> list[int]:
    text = token_text(config.get(f"{name}_token"))
    index = tokenizer.token_to_id(text) if text else None
    return [] if index is None else [index]
