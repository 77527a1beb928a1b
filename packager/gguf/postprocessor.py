"""What a tokenizer puts before and after a text, told by the post-processor of its file.

Source: llama.cpp 0c1e57098, gguf-py/gguf/vocab.py, `SpecialVocab._try_load_from_tokenizer_json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from packager.gguf.tokenizerfile import TokenizerFiles


@dataclass
class Ends:
    """What is known of a text's ends.

    Attributes:
        config: `tokenizer_config.json`, with tokens that only the post-processor names.
        adds: Kind of token → whether it is added.
        more: Kinds besides the usual ones that a token was found for.
    """

    config: dict[str, Any]
    adds: dict[str, bool] = field(default_factory=dict)
    more: list[str] = field(default_factory=list)


def read_ends(files: TokenizerFiles) -> Ends:
    """Returns what the files say of a text's ends."""
    ends = Ends(dict(files.config or {}))
    if not files.document:
        return ends
    config = ends.config
    for token, other in (("bos_token", "cls_token"), ("eos_token", "sep_token")):
        if not config.get(token) and config.get(other):
            config[token] = config[other]
    outer = files.document.get("post_processor")
    if isinstance(outer, dict):
        listed = outer.get("processors", [outer])
        for processor in listed if isinstance(listed, list) else []:
            if isinstance(processor, dict):
                _read_processor(processor, ends)
    return ends


def _read_processor(processor: dict[str, Any], ends: Ends) -> None:
    kind = processor.get("type")
    if kind == "ByteLevel":
        ends.adds.setdefault("bos", False)
        ends.adds.setdefault("eos", False)
    elif kind == "RobertaProcessing":
        ends.adds.update(bos=True, eos=True, sep=True)
        for name, other in (("cls", "bos_token"), ("sep", "eos_token")):
            pair = processor.get(name)
            named = pair[0] if isinstance(pair, list) and pair else ends.config.get(other)
            if ends.config and not ends.config.get(f"{name}_token"):
                ends.config[f"{name}_token"] = named
    elif kind == "TemplateProcessing":
        single = _entries(processor.get("single"))
        first = _special(single[0]) if len(single) > 1 else None
        last = _special(single[-1]) if len(single) > 1 else None
        if first:
            _read_first(first, ends)
        if last:
            _read_last(last, ends)
        _read_pair(_entries(processor.get("pair")), first, last, ends)


def _read_first(first: str, ends: Ends) -> None:
    config = ends.config
    if not config:
        ends.adds["bos"] = True
        return
    if first not in (config.get("bos_token"), config.get("cls_token")):
        for name in ("bos_token", "cls_token"):
            if not config.get(name):
                config[name] = first
    ends.adds["bos"] = first in (config.get("bos_token"), config.get("cls_token"))


def _read_last(last: str, ends: Ends) -> None:
    config = ends.config
    if config and last != config.get("eos_token"):
        # What was called the end of a sequence until here becomes the end of a turn.
        kind = next((each for each in ("eot", "eom") if each not in ends.more), None)
        if kind is not None:
            ends.more.append(kind)
            config[f"{kind}_token"] = config.get("eos_token")
        config["eos_token"] = last
    ends.adds["eos"] = True


def _read_pair(pair: list[dict[str, Any]], first: str | None, last: str | None, ends: Ends) -> None:
    if pair and first and _special(pair[0]) == first:
        pair = pair[1:]
    if pair and last and _special(pair[-1]) == last:
        pair = pair[:-1]
    if len(pair) < 3 or (_sequence(pair[0]), _sequence(pair[-1])) != ("A", "B"):
        return
    config, between = ends.config, pair[1:-1]
    known = (config.get("sep_token"), config.get("eos_token"))
    added = _special(between[0]) in known and _special(between[0]) is not None and not last
    if len(between) == 2 and _special(between[1]) is not None:
        added = added or _special(between[1]) in known
    ends.adds["sep"] = added
    if added and config and not config.get("sep_token"):
        config["sep_token"] = config.get("eos_token")


def _entries(stated: Any) -> list[dict[str, Any]]:
    return [each for each in stated if isinstance(each, dict)] if isinstance(stated, list) else []


def _special(entry: dict[str, Any]) -> str | None:
    inner = entry.get("SpecialToken")
    name = inner.get("id") if isinstance(inner, dict) else None
    return name if isinstance(name, str) else None


def _sequence(entry: dict[str, Any]) -> Any:
    inner = entry.get("Sequence")
    return inner.get("id") if isinstance(inner, dict) else None
