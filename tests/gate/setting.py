"""Folders and settings of a gate, for tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lorapack_gate import Gate
from lorapack_gate.setting import read_setting

from tests.gate.asgi import KEY, METRICS_KEY, OTHER_KEY
from tests.gate.engine import Engine

BASE = [0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
PIRATE = [3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
POET = [0.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
TABLES = {"tiny": BASE, "pirate": PIRATE, "poet": POET}
"""Served name → logits; the truth that the proof below tells."""


def log_probabilities(logits: list[float]) -> list[float]:
    total = math.log(math.fsum(map(math.exp, logits)))
    return [value - total for value in logits]


def question(logits: list[float], prompt: list[int], told: int = 8) -> dict[str, Any]:
    best = sorted(enumerate(log_probabilities(logits)), key=lambda pair: -pair[1])
    return {"prompt": prompt, "top": best[:told]}


def expected_document() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "models": [
            {
                "name": name,
                "kind": "base" if name == "tiny" else "adapter",
                "kl_bound": 0.05,
                "questions": [question(logits, [1, 2, 3]), question(logits, [4, 5])],
            }
            for name, logits in TABLES.items()
        ],
    }


def gate_document() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "vllm_version": "0.32.0",
        "base": "tiny",
        "expected": "expected.json",
        "models": [
            model("tiny", "base"),
            model("pirate", chat_template="templates/pirate.jinja", stop_token_ids=[7]),
            model("poet", chat=False),
        ],
    }


def model(name: str, kind: str = "adapter", **fields: Any) -> dict[str, Any]:
    plain = {"chat_template": None, "stop_token_ids": [], "chat": True}
    return {"name": name, "kind": kind, **plain, **fields}


def write_home(
    folder: Path, *, gate: dict[str, Any] | None = None, expected: Any = None
) -> dict[str, str]:
    """Writes what a gate reads; returns the environment that names the keys."""
    (folder / "templates").mkdir(parents=True)
    (folder / "templates" / "pirate.jinja").write_text("{{ 'Arr' }}", encoding="utf-8")
    (folder / "gate.json").write_text(json.dumps(gate or gate_document()), encoding="utf-8")
    text = json.dumps(expected or expected_document())
    (folder / "expected.json").write_text(text, encoding="utf-8")
    (folder / "keys").write_text(f"{KEY}\n\n{OTHER_KEY}\n", encoding="utf-8")
    (folder / "metrics-key").write_text(f"{METRICS_KEY}\n", encoding="utf-8")
    return {
        "LORAPACK_API_KEY_FILE": str(folder / "keys"),
        "LORAPACK_METRICS_KEY_FILE": str(folder / "metrics-key"),
    }


async def started_gate(
    folder: Path, engine: Engine | None = None, *, probed: bool = True, **environment: str
) -> Gate:
    """Returns a gate before an engine, its start told, and its probe done if `probed`."""
    given = write_home(folder) | environment
    gate = Gate(engine or Engine(TABLES), read_setting(given, folder))
    await start(gate)
    if probed:
        await settle(gate)
    return gate


async def start(gate: Gate) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        assert message["type"] == "lifespan.startup.complete"

    await gate({"type": "lifespan", "app": None}, receive, send)


async def settle(gate: Gate) -> None:
    """Waits for the probe."""
    assert gate._probing is not None
    await gate._probing
