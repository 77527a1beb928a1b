"""Answers one conversation with llama.cpp, in a process of its own: GGUF as argument, JSON in."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def speak(model: str, request: dict[str, Any]) -> dict[str, Any]:
    """Returns llama.cpp's chat completion, rendered by the GGUF's own Jinja."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_ctx = 512
    parameters.warmup = False
    parameters.use_jinja = True
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)
    options = request.get("options") or {}
    answer = server.handle_chat_completions(
        {
            "messages": request["messages"],
            "temperature": options.get("temperature", 0.8),
            "max_tokens": options.get("num_predict", 64),
        }
    )
    return dict(json.loads(answer) if isinstance(answer, (str, bytes)) else answer)


if __name__ == "__main__":
    answer = speak(sys.argv[1], json.load(sys.stdin))
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
    sys.stdout.flush()
    # The library's threads have been seen to hang at exit.
    os._exit(0)
