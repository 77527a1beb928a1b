"""What a GGUF of a released model holds besides weights: its tokenizer and its chat, from disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from packager.chat import ChatChoice, choose_chat
from packager.errors import InputError, LorapackError, output_error
from packager.filekind import CONFIG_PATTERNS
from packager.gguf.general import GeneralFacts, sampling_keys
from packager.gguf.tokenizer import read_tokenizer_keys
from packager.gguf.value import GgufKey, key_value
from packager.plan import AdapterSource, BaseSource, GgufSource
from packager.plan.layout import tokenizer_files
from packager.plan.rule import count_embedding_rows
from packager.untrusted import read_json_object, resolve_inside

_BOS = "tokenizer.ggml.add_bos_token"
_TEMPLATE = "tokenizer.chat_template"
_ENDS = (
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
)


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer as GGUF has it, and how its chat reaches Ollama.

    Attributes:
        source: For the plan.
        chat: None where the tokenizer cannot be written.
    """

    source: GgufSource
    chat: ChatChoice | None = None


def read_vocabulary(
    source: AdapterSource, base: BaseSource, facts: GeneralFacts, *, another: bool = False
) -> Vocabulary:
    """Reads the tokenizer that a release of an adapter has; what is wrong with it is a value.

    Args:
        source: The adapter.
        base: Its base.
        facts: Where the model comes from.
        another: Whether another converter may be used; the chat is then read whatever happens.
    """
    rows = count_embedding_rows(source, base.index) or 0
    unmapped: list[LorapackError] = []
    keys: tuple[GgufKey, ...] = ()
    try:
        files = _find_files(source, base)
        sampling = _sampling_keys(files.get("generation_config.json"))
        try:
            keys = read_tokenizer_keys(files, base.index.config, rows)
        except LorapackError as problem:
            unmapped.append(problem)
            if not another:
                return Vocabulary(GgufSource(facts, unmapped=(problem,)))
        chat = _choose_chat(files, keys)
    except LorapackError as problem:
        return Vocabulary(GgufSource(facts, problems=(problem,), unmapped=tuple(unmapped)))
    whole = (*sampling, *with_chat(keys, chat))
    return Vocabulary(GgufSource(facts, whole, unmapped=tuple(unmapped)), chat)


def _sampling_keys(path: Path | None) -> tuple[GgufKey, ...]:
    return () if path is None else sampling_keys(read_json_object(path))


def _find_files(source: AdapterSource, base: BaseSource) -> dict[str, Path]:
    """The files of the merged model's folder, by name, where they lie now."""
    roots = {"adapter": source.spec.directory, "base": base.index.directory}
    found = {
        file.path: resolve_inside(roots[file.origin], file.path, where=str(roots[file.origin]))
        for file in tokenizer_files(source, base)
    }
    for name in CONFIG_PATTERNS:
        if name in base.files:
            found[name] = resolve_inside(roots["base"], name, where=str(roots["base"]))
    return found


def _choose_chat(files: Mapping[str, Path], keys: Iterable[GgufKey]) -> ChatChoice:
    """Gives the chat its own folder: a template of one and tokens of another belong together."""
    adds_bos = key_value(tuple(keys), _BOS)
    with tempfile.TemporaryDirectory(prefix="lorapack.") as folder:
        try:
            for name, path in files.items():
                place = Path(folder, name)
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, place)
        except OSError as problem:
            raise output_error(problem, Path(folder)) from problem
        try:
            return choose_chat(
                Path(folder), adds_bos=adds_bos if isinstance(adds_bos, bool) else None
            )
        except InputError as problem:
            raise _placed(problem, folder, files) from problem


def _placed(problem: InputError, folder: str, files: Mapping[str, Path]) -> InputError:
    """Names the tokenizer's own folder instead of the copy's."""
    own = next((path.parent for name, path in files.items() if "token" in name), Path())
    return type(problem)(
        problem.what,
        where=problem.where.replace(folder, str(own)),
        expected=problem.expected,
        found=problem.found.replace(folder, str(own)),
        hint=problem.hint,
    )


def with_chat(keys: tuple[GgufKey, ...], chat: ChatChoice) -> tuple[GgufKey, ...]:
    """Returns the keys with what the chat asks for: its template, its beginning and its end."""
    changed = []
    for key in keys:
        if key.name == _TEMPLATE and chat.jinja:
            changed.append(replace(key, value=chat.jinja))
        elif key.name == _BOS:
            changed.append(replace(key, value=chat.adds_bos))
        else:
            changed.append(key)
    return (*changed, *_end_keys(changed, chat.end_ids))


def _end_keys(keys: list[GgufKey], end_ids: tuple[int, ...]) -> list[GgufKey]:
    """Names ends that llama.cpp would not know: further ones than the end of a sequence.

    Source: llama.cpp 0c1e57098, src/llama-vocab.cpp: besides these three keys it knows some ends
    by their texts, for which a key changes nothing.
    """
    known = {key_value(keys, name) for name in _ENDS}
    free = [name for name in _ENDS if key_value(keys, name) is None]
    missing = [number for number in end_ids if number not in known]
    return [GgufKey(name, "uint32", number) for name, number in zip(free, missing, strict=False)]
