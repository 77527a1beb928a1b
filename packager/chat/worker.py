"""The process in which a stranger's chat template runs: bounded in time and memory.

Started by `packager.chat.apart`; it answers one request on standard input with JSON on standard
output.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packager.chat.choice import choose, render_all
from packager.errors import InputError, LorapackError

MAX_BYTES = 4 << 30
"""Of memory: a large tokenizer takes about one eighth."""


def main() -> None:
    """Reads a request, does it, and prints the answer or the error."""
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = json.load(sys.stdin)
    try:
        answer: Mapping[str, Any] = _answer(request)
    except LorapackError as problem:
        answer = {"error": problem.to_json()}
    except (MemoryError, RecursionError) as problem:
        answer = {"error": {"what": "the chat template takes too much memory",
                            "found": type(problem).__name__}}  # fmt: skip
    json.dump(answer, sys.stdout)


def _answer(request: Mapping[str, Any]) -> Mapping[str, Any]:
    tokenizer = _load_tokenizer(Path(request["folder"]))
    if request["task"] == "render":
        renderings, refused = render_all(tokenizer)
        return {"renderings": [asdict(item) for item in renderings], "refused": refused}
    return asdict(choose(tokenizer, request["end_ids"], adds_bos=request["adds_bos"]))


def _load_tokenizer(folder: Path) -> Any:
    # A tokenizer needs no torch, and whoever imports it waits for seconds: None stands for a
    # library that is not installed.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (
        ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError,
        TypeError, ValueError,
    ) as problem:  # fmt: skip
        raise InputError(
            "the tokenizer cannot be loaded",
            where=str(folder),
            found=" ".join(str(problem).split())[:200],
            hint="copy the tokenizer files of the base model",
        ) from problem


if __name__ == "__main__":
    main()
