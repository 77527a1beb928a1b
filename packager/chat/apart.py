"""Chat templates of strangers, run apart: in a process of its own, bounded in time and memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import packager
from packager.chat.choice import ChatChoice
from packager.chat.rendering import Rendering
from packager.errors import InputError, ProcessError
from packager.process import run_program
from packager.record import build_record
from packager.untrusted import read_json_object

MAX_SECONDS = 120.0
"""For loading a tokenizer and rendering every conversation; usual are five."""

_MAX_END_IDS = 64
# Without -P, the folder that a user works in would come first on the path of modules.
_START = "import sys; sys.path.append(sys.argv[1]); from packager.chat.worker import main; main()"


def choose_chat(
    folder: Path,
    *,
    generation_config: Path | None = None,
    adds_bos: bool | None = None,
    seconds: float = MAX_SECONDS,
) -> ChatChoice:
    """Reads a model's chat template and chooses how its chat reaches Ollama.

    Args:
        folder: Tokenizer files, chat template among them.
        generation_config: A `generation_config.json`; by default that of `folder`, if it is there.
        adds_bos: The GGUF's `tokenizer.ggml.add_bos_token`; by default what the tokenizer does
            with plain text.
        seconds: Time limit.

    Raises:
        InputError: The tokenizer or the configuration cannot be read; the chat template does not
            parse, takes no conversation, or takes too long.
    """
    end_ids = read_end_ids(generation_config or folder / "generation_config.json")
    request = {"task": "choose", "end_ids": end_ids, "adds_bos": adds_bos}
    return build_record(ChatChoice, _ask(folder, request, seconds))


def render_chat(
    folder: Path, *, seconds: float = MAX_SECONDS
) -> tuple[tuple[Rendering, ...], tuple[str, ...]]:
    """Returns the fixed conversations through a model's own chat template, to text and token ids.

    Returns:
        The renderings, and the names of the conversations that the template refuses.

    Raises:
        InputError: As `choose_chat`.
    """
    answer = _ask(folder, {"task": "render"}, seconds)
    renderings = tuple(build_record(Rendering, item) for item in answer["renderings"])
    return renderings, tuple(answer["refused"])


def read_end_ids(path: Path) -> list[int]:
    """Returns `eos_token_id` of a generation configuration: none, one or several.

    Raises:
        InputError: The file cannot be read, or the ids are none.
    """
    if not path.exists():
        return []
    value = read_json_object(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if all(type(number) is int for number in ids) and len(ids) <= _MAX_END_IDS:
        return ids
    raise InputError(
        "the end of a sequence is no token id",
        where=f"{path}, eos_token_id",
        expected=f"a whole number, or at most {_MAX_END_IDS} of them",
        found=repr(value)[:200],
        hint="take the generation_config.json of the base model",
    )


def _ask(folder: Path, request: dict[str, Any], seconds: float) -> dict[str, Any]:
    root = str(Path(packager.__file__).parent.parent)
    command = [sys.executable, "-P", "-c", _START, root]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    given = json.dumps({"folder": str(folder.absolute()), **request}).encode()
    try:
        printed = run_program(command, seconds=seconds, given=given, environment=environment)
    except ProcessError as problem:
        raise InputError(
            "the chat template takes too much time or memory",
            where=str(folder),
            expected=problem.expected,
            found=problem.found,
            hint="take the chat template of the base model",
        ) from problem
    answer: dict[str, Any] = json.loads(printed)
    if "error" in answer:
        fields = {name: answer["error"].get(name, "") for name in ("what", "found")}
        raise InputError(
            where=", ".join(filter(None, (str(folder), answer["error"].get("where", "")))),
            expected=answer["error"].get("expected", ""),
            hint=answer["error"].get("hint", ""),
            **fields,
        )
    return answer
