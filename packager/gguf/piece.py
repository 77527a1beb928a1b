"""The tokens of a SentencePiece model, with scores and types."""

from __future__ import annotations

from typing import Any

from packager.gguf.tokenizerfile import TokenizerFiles, added_tokens
from packager.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    looks_special,
    too_large,
)

_ADDED_SCORE = -1000.0
_PADDING_SCORE = -10000.0


def read_pieces(files: TokenizerFiles, rows: int) -> Vocabulary:
    """Returns the tokens of `tokenizer.model` and those that were added, one for each row.

    Added tokens beyond the embedding are left out, since models are published with them.

    Source: llama.cpp 0c1e57098, conversion/base.py, `_create_vocab_sentencepiece`.

    Raises:
        InputError: The model or a list of added tokens is damaged, or is larger than `rows`.
    """
    table = _Table(files, rows)
    table.add_listed()
    for index, token in added_tokens(files).items():
        special = bool(token.get("special")) or looks_special(token["content"])
        text = token["content"] if special else token["content"].replace("▁", " ")
        table.add(index, text, CONTROL if special else USER_DEFINED)
    return table.vocabulary()


def read_phi_pieces(files: TokenizerFiles, rows: int) -> Vocabulary:
    """Returns the tokens as Phi's tokenizer has them: those added to `tokenizer.json` count last.

    Source: llama.cpp 0c1e57098, conversion/phi.py, `Phi3MiniModel.set_vocab`.

    Raises:
        InputError: As `read_pieces`.
    """
    table = _Table(files, rows)
    table.add_listed()
    for index, token in added_tokens(files).items():
        table.add(index, token["content"], CONTROL if token.get("special") else USER_DEFINED)
    listed = (files.document or {}).get("added_tokens") or []
    for token in listed if isinstance(listed, list) else []:
        index, text = _listed_token(files, token)
        table.add(index, text, CONTROL if token.get("special") else USER_DEFINED)
    return table.vocabulary()


class _Table:
    """Tokens by id while they are put together."""

    def __init__(self, files: TokenizerFiles, rows: int) -> None:
        self.files = files
        model = _open(files)
        count = model.vocab_size()
        if count > rows:
            raise too_large(files.where("tokenizer.model"), rows, f"{count} pieces")
        try:
            self.tokens = [model.IdToPiece(index) for index in range(count)]
        except UnicodeDecodeError as problem:
            raise files.error("tokenizer.model", "pieces in UTF-8", str(problem)) from problem
        self.scores = [float(model.GetScore(index)) for index in range(count)]
        self.types = [_type(model, index) for index in range(count)]
        self.tokens += [f"[PAD{index}]" for index in range(count, rows)]
        self.scores += [_PADDING_SCORE] * (rows - count)
        self.types += [UNUSED] * (rows - count)

    def add(self, index: int, text: str, kind: int) -> None:
        if index < len(self.tokens):
            self.tokens[index], self.types[index] = text, kind
            self.scores[index] = _ADDED_SCORE

    def add_listed(self) -> None:
        for text, index in (self.files.read_json("added_tokens.json") or {}).items():
            if type(index) is not int or index < 0:
                raise self.files.error("added_tokens.json", "token ids", index)
            self.add(index, text, USER_DEFINED)

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(tuple(self.tokens), tuple(self.types), tuple(self.scores))


def _listed_token(files: TokenizerFiles, token: Any) -> tuple[int, str]:
    if isinstance(token, dict):
        index, text = token.get("id"), token.get("content")
        if type(index) is int and index >= 0 and isinstance(text, str):
            return index, text
    raise files.error("tokenizer.json", "added tokens with id and content", token)


def _open(files: TokenizerFiles) -> Any:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor()
    try:
        loaded = bool(files.pieces) and model.LoadFromSerializedProto(files.pieces or b"")
    except (RuntimeError, OSError, UnicodeDecodeError) as problem:
        raise files.error("tokenizer.model", "a SentencePiece model", str(problem)) from problem
    if not loaded:
        raise files.error("tokenizer.model", "a SentencePiece model", "nothing")
    return model


def _type(model: Any, index: int) -> int:
    if model.IsUnknown(index):
        return UNKNOWN
    if model.IsControl(index):
        return CONTROL
    if model.IsUnused(index):
        return UNUSED
    return BYTE if model.IsByte(index) else NORMAL
