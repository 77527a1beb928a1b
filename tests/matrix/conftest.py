"""Bases that all cells share, and the page that is written from what the cells did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from tests.matrix.cell import Workshop
from tests.matrix.page import PAGE, Result, render_page


@pytest.fixture(scope="package", autouse=True)
def _one_quiet_thread() -> Iterator[None]:
    """Models this small run faster on one thread; their progress bars say nothing."""
    threads, bars = torch.get_num_threads(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    if bars:
        logging.enable_progress_bar()


@pytest.fixture(scope="package")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Bases, made once."""
    return Workshop(tmp_path_factory.mktemp("matrix"))


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Result]]:
    """Collects what each cell did; with --update-support, the page is written from it."""
    found: dict[tuple[str, str], Result] = {}
    yield found
    if request.config.getoption("--update-support"):
        Path(PAGE).write_text(render_page(found), encoding="utf-8")
