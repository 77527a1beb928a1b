"""A `tokenizer.json` as the `tokenizers` library understands it, read in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import packager
from packager.errors import InputError, ProcessError
from packager.gguf.pretokenizer import CHECK_TEXT
from packager.gguf.tokenizerfile import TokenizerFiles, added_tokens, token_text
from packager.process import run_program

_SECONDS = 120.0
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from packager.gguf.tokenizerworker import main; main()"
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class OpenedTokenizer:
    """What is known of an opened tokenizer.

    Attributes:
        texts: Id → token, added ones included.
        base: Number of tokens without the added ones.
        added: Id of an added token → its text as it comes back from its ids, and whether it is
            special.
        inner: Ids of `CHECK_TEXT`, without special tokens.
        whole: The same, with the special tokens of the post-processor.
    """

    texts: Mapping[int, str]
    base: int
    added: Mapping[int, tuple[str, bool]]
    inner: tuple[int, ...]
    whole: tuple[int, ...]


def open_tokenizer(files: TokenizerFiles) -> OpenedTokenizer:
    """Opens `tokenizer.json`, with the tokens of its configuration.

    Source: transformers 5.x, tokenization_utils_tokenizers.py: added tokens of the configuration,
    and special tokens that it names, join those of the file.

    Raises:
        InputError: There is no such file, or the library does not take it.
    """
    if files.document_bytes is None or files.document is None:
        raise InputError(
            "the tokenizer has no tokenizer.json",
            where=", ".join(files.paths) or "the tokenizer's files",
            expected="tokenizer.json",
            hint="load it with transformers and save it again with save_pretrained",
        )
    tokens = [
        {"content": token["content"]}
        | {name: token[name] for name in _FLAGS if isinstance(token.get(name), bool)}
        for _, token in sorted(added_tokens(files).items())
    ]
    request = {"tokens": tokens, "special": special_texts(files), "text": CHECK_TEXT}
    root = str(Path(packager.__file__).parent.parent)
    try:
        printed = run_program(
            [sys.executable, "-P", "-c", _START, root],
            seconds=_SECONDS,
            given=json.dumps(request).encode() + b"\n" + files.document_bytes,
            environment={**os.environ, "RUST_BACKTRACE": "0"},
        )
    except ProcessError as problem:
        raise files.error(
            "tokenizer.json", "a file that the tokenizers library opens", problem.found
        ) from problem
    return _parse(json.loads(printed))


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


def check_encodings(tokenizer: OpenedTokenizer, files: TokenizerFiles) -> Iterator[list[int]]:
    """Yields token ids of `CHECK_TEXT`: as transformers gives them, then with other ends.

    A tokenizer that was saved with or without a first token splits text as before.

    Source: transformers 5.x, tokenization_utils_tokenizers.py, `update_post_processor`.
    """
    config = files.config or {}
    first, last = (_end_ids(tokenizer, config, name) for name in ("bos", "eos"))
    if "add_bos_token" in config or "add_eos_token" in config:
        before = first if config.get("add_bos_token") is True else []
        after = last if config.get("add_eos_token") is True else []
        yield [*before, *tokenizer.inner, *after]
    yield list(tokenizer.whole)
    yield list(tokenizer.inner)
    yield [*first, *tokenizer.inner]


def _end_ids(tokenizer: OpenedTokenizer, config: dict[str, Any], name: str) -> list[int]:
    text = token_text(config.get(f"{name}_token"))
    return [index for index, token in tokenizer.texts.items() if token == text][:1]


def _parse(answer: dict[str, Any]) -> OpenedTokenizer:
    return OpenedTokenizer(
        texts={index: text for text, index in answer["texts"].items()},
        base=answer["base"],
        added={int(index): (text, special) for index, (text, special) in answer["added"].items()},
        inner=tuple(answer["inner"]),
        whole=tuple(answer["whole"]),
    )
