"""Special tokens: their ids, which ones are added to a text, merges and chat templates.

Source: llama.cpp 0c1e57098, gguf-py/gguf/vocab.py (`SpecialVocab`) and gguf_writer.py
(`add_chat_template`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from packager.gguf.postprocessor import Ends, read_ends
from packager.gguf.tokenizerfile import TokenizerFiles, token_text
from packager.gguf.value import GgufKey

_MAX_ID = (1 << 32) - 1
_TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ID_NAMES = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding",
    "mask": "mask", "eot": "eot", "eom": "eom",
}  # fmt: skip
_ADDED = ("bos", "eos", "sep")


def special_keys(
    files: TokenizerFiles, config: Mapping[str, Any], *, rows: int | None = None
) -> tuple[GgufKey, ...]:
    """Returns the keys of special tokens, of what is added to texts, and of normalisation.

    Args:
        files: Of the tokenizer.
        config: `config.json` of the model, which states ids that the tokenizer does not.
        rows: Ids from here on are left out; None for no bound.

    Raises:
        InputError: An id is negative.
    """
    ends = read_ends(files)
    work = _Ids(files, rows)
    if ends.config:
        _read_tokenizer(work, ends)
    for kind in (*_TYPES, *ends.more):
        work.add(kind, _stated_id(config, f"{kind}_token_id"))
    keys = [
        GgufKey(f"tokenizer.ggml.{_ID_NAMES[kind]}_token_id", "uint32", index)
        for kind, index in work.ids.items()
        if kind in _ID_NAMES
    ]
    keys += [
        GgufKey(f"tokenizer.ggml.add_{kind}_token", "bool", added)
        for kind, added in ends.adds.items()
        if kind in _ADDED
    ]
    return (*keys, *_normalizer_keys((files.document or {}).get("normalizer")))


def merge_keys(files: TokenizerFiles) -> tuple[GgufKey, ...]:
    """Returns the merges of a BPE tokenizer, each as two tokens with a space between.

    Raises:
        InputError: A merge is not one.
    """
    model = (files.document or {}).get("model")
    stated = model.get("merges") if isinstance(model, dict) else None
    if isinstance(stated, list) and stated:
        merges = [_merge(files, each) for each in stated]
    else:
        merges = _listed_merges(files)
    return (GgufKey("tokenizer.ggml.merges", "string", tuple(merges)),) if merges else ()


def template_keys(files: TokenizerFiles) -> tuple[GgufKey, ...]:
    """Returns the chat template and, where there are several, each under its name.

    The one in `tokenizer_config.json` wins over files of their own.

    Raises:
        InputError: A template's file is not UTF-8.
    """
    if not files.config:
        return ()
    stated = files.config.get("chat_template", _template_files(files))
    if isinstance(stated, str):
        return (GgufKey("tokenizer.chat_template", "string", stated),)
    named = {}
    for choice in stated if isinstance(stated, list) else []:
        if isinstance(choice, dict) and isinstance(choice.get("template"), str):
            name = _plain_name(str(choice.get("name", "")))
            named[name] = choice["template"]
    named.pop("", None)
    default = named.pop("default", None)
    keys = [GgufKey(f"tokenizer.chat_template.{name}", "string", named[name]) for name in named]
    if named:
        keys.append(GgufKey("tokenizer.chat_templates", "string", tuple(named)))
    if default is not None:
        keys.append(GgufKey("tokenizer.chat_template", "string", default))
    return tuple(keys)


@dataclass
class _Ids:
    files: TokenizerFiles
    rows: int | None
    ids: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, index: Any) -> None:
        """Takes an id unless the kind has one already."""
        if type(index) is not int:
            return
        if not 0 <= index <= _MAX_ID:
            raise self.files.error("config.json", f"an id for the {kind} token", index)
        if self.rows is None or index < self.rows:
            self.ids.setdefault(kind, index)


def _read_tokenizer(work: _Ids, ends: Ends) -> None:
    listed = (work.files.document or {}).get("added_tokens")
    ids: dict[str, Any] = {}
    for token in listed if isinstance(listed, list) else []:
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            ids.setdefault(token["content"], token.get("id"))
    for kind in (*_TYPES, *ends.more):
        stated = ends.config.get(f"add_{kind}_token")
        if isinstance(stated, bool):
            ends.adds.setdefault(kind, stated)
        text = token_text(ends.config.get(f"{kind}_token"))
        if text is not None:
            work.add(kind, ids.get(text))


def _stated_id(config: Mapping[str, Any], name: str) -> Any:
    nested = config.get("text_config")
    if config.get(name) is None and isinstance(nested, Mapping):
        return nested.get(name)
    return config.get(name)


def _merge(files: TokenizerFiles, merge: Any) -> str:
    if isinstance(merge, str):
        return merge
    if isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge):
        # Byte-level BPE writes a space as this letter; a plain one would end the first token.
        return " ".join(part.replace(" ", "Ġ") for part in merge)
    raise files.error("tokenizer.json", "merges of two tokens each", merge)


def _listed_merges(files: TokenizerFiles) -> list[str]:
    lines = (files.read_text("merges.txt") or "").split("\n")
    if lines[0].strip().startswith("#"):
        lines = lines[1:]
    parts = [line.split() for line in lines]
    return [" ".join(each) for each in parts if len(each) == 2]


def _template_files(files: TokenizerFiles) -> Any:
    text = files.read_text("chat_template.jinja")
    if text is None:
        return (files.read_json("chat_template.json") or {}).get("chat_template")
    prefix = "additional_chat_templates/"
    more = sorted(name for name in files.paths if name.startswith(prefix))
    if not more:
        return text
    return [
        {"name": "default", "template": text},
        *(
            {
                "name": name.removeprefix(prefix).removesuffix(".jinja"),
                "template": files.read_text(name),
            }
            for name in more
        ),
    ]


def _plain_name(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)


def _normalizer_keys(stated: Any) -> tuple[GgufKey, ...]:
    found: dict[str, bool] = {}
    _read_normalizer(stated, found)
    return tuple(
        GgufKey(f"tokenizer.ggml.normalizer.{name}", "bool", found[name])
        for name in ("lowercase", "strip_accents")
        if name in found
    )


def _read_normalizer(stated: Any, found: dict[str, bool]) -> None:
    if not isinstance(stated, dict):
        return
    kind = stated.get("type")
    if kind == "Lowercase":
        found["lowercase"] = True
    elif kind == "StripAccents":
        found["strip_accents"] = True
    elif kind == "BertNormalizer":
        for name in ("lowercase", "strip_accents"):
            if isinstance(stated.get(name), bool):
                found[name] = stated[name]
    elif kind == "Sequence" and isinstance(stated.get("normalizers"), list):
        for inner in stated["normalizers"]:
            _read_normalizer(inner, found)
