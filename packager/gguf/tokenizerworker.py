"""The process in which a stranger's `tokenizer.json` is opened.

The `tokenizers` library answers some damaged files by ending the process that it runs in, and
some patterns by searching without an end. This module is started by `tokenizerdocument`; it reads
one line of JSON and then the document from standard input:

    {"tokens": [{"content", …flags}, …], "special": [text, …], "text": text}

and writes one JSON object, whose fields are those of `OpenedTokenizer`. For a document that it
does not open it fails; what the library says stands in the last line of standard error.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Answers the request on standard input."""
    request = json.loads(sys.stdin.buffer.readline())
    answer = _describe(sys.stdin.buffer.read(), request)
    sys.stdout.write(json.dumps(answer))


def _describe(document: bytes, request: dict[str, Any]) -> dict[str, Any]:
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_buffer(document)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for token in request["tokens"]:
        tokenizer.add_tokens([AddedToken(**token)])
    for text in request["special"]:
        if tokenizer.token_to_id(text) is None:
            tokenizer.add_tokens([AddedToken(text, special=True, normalized=False)])
    added = tokenizer.get_added_tokens_decoder()
    return {
        "texts": tokenizer.get_vocab(with_added_tokens=True),
        "base": tokenizer.get_vocab_size(with_added_tokens=False),
        "added": {index: _added(tokenizer, token) for index, token in added.items()},
        "inner": tokenizer.encode(request["text"], add_special_tokens=False).ids,
        "whole": tokenizer.encode(request["text"]).ids,
    }


def _added(tokenizer: Any, token: Any) -> tuple[str, bool]:
    if token.normalized:
        return token.content, token.special
    ids = tokenizer.encode(token.content, add_special_tokens=False).ids
    return tokenizer.decode(ids, skip_special_tokens=False), token.special
