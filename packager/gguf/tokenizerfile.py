"""The files of a tokenizer, read once and within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from packager.errors import InputError
from packager.filekind import is_tokenizer_file, list_model_files
from packager.untrusted import (
    parse_json_object,
    read_bytes,
    read_json_object,
    read_text,
    resolve_inside,
)

_MAX_TOKENIZER_BYTES = 256 << 20
_HINT = "save the tokenizer again with save_pretrained"


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer on the disk.

    Attributes:
        paths: Relative name → where it lies.
    """

    paths: Mapping[str, Path]

    @cached_property
    def document_bytes(self) -> bytes | None:
        """`tokenizer.json`, or None."""
        path = self.paths.get("tokenizer.json")
        return None if path is None else read_bytes(path, max_bytes=_MAX_TOKENIZER_BYTES)

    @cached_property
    def document(self) -> dict[str, Any] | None:
        """`tokenizer.json`, parsed, or None."""
        if self.document_bytes is None:
            return None
        return parse_json_object(self.document_bytes, where=self.where("tokenizer.json"))

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """`tokenizer_config.json`, or None."""
        return self.read_json("tokenizer_config.json")

    @cached_property
    def pieces(self) -> bytes | None:
        """`tokenizer.model`, or None."""
        path = self.paths.get("tokenizer.model")
        return None if path is None else read_bytes(path, max_bytes=_MAX_TOKENIZER_BYTES)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Returns a JSON file, or None."""
        path = self.paths.get(name)
        return None if path is None else read_json_object(path)

    def read_text(self, name: str) -> str | None:
        """Returns a text file, or None."""
        path = self.paths.get(name)
        return None if path is None else read_text(path)

    def where(self, name: str) -> str:
        """Returns how an error calls a file."""
        return str(self.paths.get(name, name))

    def error(self, name: str, expected: str, found: Any) -> InputError:
        """Returns the error for a file that does not hold what it should."""
        return InputError(
            "the tokenizer is damaged",
            where=self.where(name),
            expected=expected,
            found=repr(found)[:80],
            hint=_HINT,
        )


def list_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Returns the tokenizer's files of a model folder.

    Raises:
        InputError: The folder cannot be listed.
        UnsafeInputError: A file is a link that leads outside.
    """
    names = [name for name in list_model_files(folder) if is_tokenizer_file(name)]
    return TokenizerFiles({name: resolve_inside(folder, name, where=str(folder)) for name in names})


def added_tokens(files: TokenizerFiles) -> dict[int, dict[str, Any]]:
    """Returns `added_tokens_decoder` of the configuration: id → token, each with its `content`.

    Raises:
        InputError: An id or a token is not one.
    """
    name = "tokenizer_config.json"
    stated = (files.config or {}).get("added_tokens_decoder") or {}
    if not isinstance(stated, dict):
        raise files.error(name, "a mapping in added_tokens_decoder", stated)
    tokens = {}
    for key, token in stated.items():
        if not key.isascii() or not key.isdecimal() or len(key) > 10:
            raise files.error(name, "token ids in added_tokens_decoder", key)
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise files.error(name, "tokens with a content in added_tokens_decoder", token)
        tokens[int(key)] = token
    return tokens


def token_text(entry: Any) -> str | None:
    """Returns the text of a token, which may be stated as an object."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None
