"""The process in which llama.cpp runs: `python -m packager.verify.llamaworker`.

It reads a request from standard input as JSON:

    {"library", "model", "adapter", "scale", "threads", "passages", "prompts", "most",
     "end"}

and writes to standard output lines of JSON: one that describes the model; one for each passage,
with the number of bytes that follow it, which are the logits of every position but the last as
float32; one that says how the answers to the prompts ended. A line with `error` takes the place
of any of them and is the last. What llama.cpp itself prints never gets there. The process leaves
without C++'s good-byes, in which xllamacpp may hang.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from packager.verify.llamalibrary import Library, LlamaError, Model


def serve(request: dict[str, Any], out: BinaryIO) -> None:
    """Answers one request.

    Raises:
        LlamaError: llama.cpp refuses.
        OSError: Nobody reads any more.
    """
    passages, prompts, most = request["passages"], request["prompts"], request["most"]
    lengths = [len(ids) for ids in passages] + [len(ids) + most for ids in prompts]
    library = Library(Path(request["library"]))
    model = Model(
        library,
        request["model"],
        adapter=request["adapter"],
        scale=request["scale"],
        tokens=max(lengths),
        threads=request["threads"],
    )
    # llama.cpp looks up rows of the embedding without a bound.
    greatest = max(max(ids) for ids in (*passages, *prompts, [request["end"] or 0]))
    if greatest >= model.vocabulary:
        raise LlamaError(f"the model has {model.vocabulary} tokens, and token {greatest} is asked")
    facts = {
        "vocabulary": model.vocabulary,
        "version": library.version,
        "exact_cache": model.is_exact,
        "knows_end": request["end"] is not None and model.ends(request["end"]),
    }
    _write_line(out, facts)
    for ids in passages:
        rows = model.predict(ids)
        _write_line(out, {"bytes": (len(ids) - 1) * model.vocabulary * 4})
        out.writelines(rows)
        out.flush()
    answers = [model.continue_greedily(ids, most) for ids in prompts]
    _write_line(out, {"answers": [{"ids": ids, "ended": ended} for ids, ended in answers]})


def _write_line(out: BinaryIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value).encode() + b"\n")
    out.flush()


def main() -> int:
    """Serves the request on standard input; returns the exit code."""
    # llama.cpp prints where it likes; the results have a descriptor of their own.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        try:
            serve(json.load(sys.stdin), out)
        except LlamaError as problem:
            _write_line(out, {"error": str(problem)})
        except OSError:
            return 1
    return 0


if __name__ == "__main__":
    code = 1
    with suppress(BrokenPipeError):
        code = main()
    os._exit(code)
