"""llama.cpp as the engine: its own server for each model, behind the gate, in one process."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from packager.serve.source import GgufSource
from packager.serving.answer import EXPECTED_NAME, Expected, render_expected
from packager.serving.document import (
    GATE_NAME,
    GATE_SCHEMA_VERSION,
    GateConfig,
    GateModel,
    render_gate,
)

REQUEST_NAME = "llama.json"

_WORKER = "packager.serve.llamaworker"


def prepare_llama(
    sources: Sequence[GgufSource], expected: Expected | None, home: Path, host: str, port: int
) -> tuple[tuple[str, ...], GateConfig]:
    """Writes what the process is told, and returns its command and what its gate goes by.

    Args:
        sources: The models.
        expected: What they have to answer, or None where that is not known.
        home: The private folder that it runs in.
        host: Address to listen on.
        port: Likewise.
    """
    models = tuple(GateModel(source.name, "merged", None, (), True) for source in sources)
    answers = None if expected is None else EXPECTED_NAME
    gate = GateConfig(GATE_SCHEMA_VERSION, "llama.cpp", "", answers, models)
    if expected is not None:
        (home / EXPECTED_NAME).write_text(render_expected(expected), encoding="utf-8")
    (home / GATE_NAME).write_text(render_gate(gate), encoding="utf-8")
    request = {
        "host": host,
        "port": port,
        "models": {source.name: str(source.path.absolute()) for source in sources},
    }
    (home / REQUEST_NAME).write_text(json.dumps(request), encoding="utf-8")
    return (sys.executable, "-P", "-m", _WORKER), gate
