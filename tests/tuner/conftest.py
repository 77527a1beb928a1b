"""A base whose layers have biases, and adapters of every tuner on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tuner.base import make_qwen2
from tests.tuner.cases import Tuned, make_tuned

MakeTuned = Callable[..., Tuned]


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 in float32: biases on q, k and v."""
    return make_qwen2(tmp_path_factory.mktemp("tuner") / "base")


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, qwen2: Path) -> MakeTuned:
    """Makes each adapter once."""
    made: dict[str, Tuned] = {}

    def make(name: str, tuner: str, arguments: dict[str, Any]) -> Tuned:
        if name not in made:
            folder = tmp_path_factory.mktemp("adapter") / name.replace(" ", "-").lower()
            made[name] = make_tuned(qwen2, folder, tuner, **arguments)
        return made[name]

    return make
