"""Options and fixtures that several rooms share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import models

# OpenMP's threads spin while they wait, by default; where two test runs share the cores, that
# makes torch tens of times slower. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens",
        action="store_true",
        help="write the texts under tests/goldens anew; read the difference before committing it",
    )
    parser.addoption(
        "--update-support",
        action="store_true",
        help="write docs/support.md anew from what the whole matrix did; run it in one process",
    )


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with `tests/goldens/<name>`, or writes it with --update-goldens."""
    update: bool = request.config.getoption("--update-goldens")

    def check(name: str, text: str) -> None:
        path = GOLDENS / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
        assert path.read_bytes().decode("utf-8") == text

    return check


@pytest.fixture(scope="session")
def smollm2_base() -> Path:
    """SmolLM2-135M-Instruct as a checkpoint directory; not to be written to."""
    return models.keep_smollm2()


@pytest.fixture(scope="session")
def pirate_adapter(smollm2_base: Path) -> Path:
    """A really trained adapter for `smollm2_base`, locked; not to be written to."""
    return models.keep_pirate(smollm2_base)
