"""Bundles to serve: a tiny one for llama.cpp, and a real base with two adapters for vLLM."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from packager.plan import ReleaseOptions
from packager.progress import Silent
from packager.release import ReleaseRequest, release
from tests import models

VOCABULARY = 49152
"""Of SmolLM2's tokenizer."""


@pytest.fixture(scope="session")
def tiny_bundle(smollm2_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with one adapter, merged into a GGUF file; not to be written to."""
    folder = tmp_path_factory.mktemp("tiny")
    base = models.make_llama(folder / "base", vocab_rows=VOCABULARY)
    # llama.cpp knows how this tokenizer splits text.
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).unlink(missing_ok=True)
        if (smollm2_base / name).exists():
            shutil.copyfile(smollm2_base / name, base / name)
    adapter = models.make_adapter(base, folder / "tiny")
    options = ReleaseOptions(targets=("ollama",), quants=("F16",))
    request = ReleaseRequest(
        ((None, adapter),), folder / "out", base=str(base), options=options, behaviour=False
    )
    return release(request, Silent()).bundle


@pytest.fixture(scope="session")
def other_adapter(smollm2_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter whose effect is plain and whose answers still are words."""
    out = tmp_path_factory.mktemp("other") / "other"
    return models.make_adapter(smollm2_base, out, seed=3, r=4, lora_alpha=4)


@pytest.fixture(scope="session")
def served_bundle(
    smollm2_base: Path,
    pirate_adapter: Path,
    other_adapter: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A real base with two adapters for vLLM, proven; not to be written to."""
    request = ReleaseRequest(
        (("pirate", pirate_adapter), ("other", other_adapter)),
        tmp_path_factory.mktemp("served") / "out",
        base=str(smollm2_base),
        options=ReleaseOptions(targets=("vllm",)),
    )
    return release(request, Silent()).bundle
