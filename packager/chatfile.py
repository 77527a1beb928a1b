"""How a model folder's files say that it is talked to: template, tokenizer, ends of an answer.

Only read, never run: what a template makes of a conversation is the server's business.

Source: transformers 5.x, tokenization_utils_base.py (where a chat template stands, and what it
may call special tokens); tokenizers 0.22, the fields of `tokenizer.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packager.chat.apart import read_end_ids
from packager.digest import hash_file
from packager.serving.value import Chat
from packager.untrusted import read_json_object, read_text, resolve_inside

_MAX_TOKENIZER_BYTES = 256 << 20
_CONFIG = "tokenizer_config.json"
_DOCUMENT = "tokenizer.json"
_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_PASSING = ("version", "truncation", "padding")
"""Parts of `tokenizer.json` that tell nothing about ids: how a trainer filled up its batches."""
_OTHER_DOCUMENTS = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json",
    "merges.txt", "vocab.txt",
)  # fmt: skip


def read_chat(folder: Path, names: Iterable[str]) -> Chat:
    """Reads what the tokenizer's files of a folder say.

    Args:
        folder: Of an adapter or a base.
        names: Its files, relative.

    Raises:
        UnsafeInputError: A file lies outside of the folder.
        InputError: A file is damaged.
    """
    files = {name: resolve_inside(folder, name, where=str(folder)) for name in names}
    config = read_json_object(files[_CONFIG]) if _CONFIG in files else {}
    document = None
    if _DOCUMENT in files:
        document = read_json_object(files[_DOCUMENT], max_bytes=_MAX_TOKENIZER_BYTES)
    specials = _read_specials(config)
    ends = (
        read_end_ids(folder / "generation_config.json") if "generation_config.json" in files else []
    )
    own = _token_id(document, specials.get("eos_token"))
    return Chat(
        template=_read_template(files, config),
        tokenizer=_digest(document, files),
        end_ids=tuple(dict.fromkeys([*ends, *([] if own is None else [own])])),
        specials=specials,
    )


def _read_template(files: Mapping[str, Path], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return read_text(files["chat_template.jinja"]) or None
    found = config.get("chat_template")
    if "chat_template.json" in files:
        found = read_json_object(files["chat_template.json"]).get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) and found else None


def _read_specials(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of special tokens; a configuration has them as text, or as a mapping with it."""
    found = {}
    for name in _SPECIALS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _token_id(document: Mapping[str, Any] | None, text: str | None) -> int | None:
    if document is None or text is None:
        return None
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found = vocabulary.get(text) if isinstance(vocabulary, dict) else None
    for token in _list(document.get("added_tokens")):
        if isinstance(token, dict) and token.get("content") == text:
            found = token.get("id")
    return found if type(found) is int else None


def _digest(document: Mapping[str, Any] | None, files: Mapping[str, Path]) -> str | None:
    """Returns `sha256:<hex>` over what decides ids; the same for a tokenizer saved again."""
    if document is not None:
        text = json.dumps(_canonical(document), ensure_ascii=True, sort_keys=True)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    others = [name for name in _OTHER_DOCUMENTS if name in files]
    if not others:
        return None
    digests = [f"{name} {hash_file(files[name])}" for name in others]
    return "sha256:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _canonical(document: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer without what versions of the library write in different ways."""
    kept = {key: value for key, value in document.items() if key not in _PASSING}
    model = kept.get("model")
    if isinstance(model, dict):
        kept["model"] = {
            key: value for key, value in model.items() if value is not None and value is not False
        }
        merges = [tuple(item.split(" ", 1)) if isinstance(item, str) else item
                  for item in _list(model.get("merges"))]  # fmt: skip
        kept["model"]["merges"] = merges
    kept["added_tokens"] = sorted(
        _list(kept.get("added_tokens")), key=lambda token: json.dumps(token, sort_keys=True)
    )
    return kept


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
