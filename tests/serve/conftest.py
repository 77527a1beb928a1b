"""Bundles to serve: a tiny one for llama.cpp, a real base with two adapters, and two servers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests import models

VOCABULARY = 49152
"""Of SmolLM2's tokenizer."""


@pytest.fixture(scope="session")
def tiny_base(smollm2_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer that llama.cpp knows; not to be written to."""
    base = models.make_llama(tmp_path_factory.mktemp("tiny") / "base", vocab_rows=VOCABULARY)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).unlink(missing_ok=True)
        if (smollm2_base / name).exists():
            shutil.copyfile(smollm2_base / name, base / name)
    return base


@pytest.fixture(scope="session")
def tiny_bundle(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with one adapter, merged into a GGUF file; not to be written to."""
    folder = tmp_path_factory.mktemp("tiny-bundle")
    adapter = models.make_adapter(tiny_base, folder / "tiny")
    options = ReleaseOptions(targets=("ollama",), quants=("F16",))
    request = ReleaseRequest(
        ((None, adapter),), folder / "out", base=str(tiny_base), options=options, behaviour=False
    )
    return release(request, Silent()).bundle


@pytest.fixture(scope="session")
def twin_bundle(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters as GGUF files and for vLLM, proven; not to be written to."""
    folder = tmp_path_factory.mktemp("twin-bundle")
    base = sharpen(tiny_base, folder / "base")
    adapters = (
        ("first", models.make_adapter(base, folder / "first")),
        ("second", models.make_adapter(base, folder / "second", seed=2)),
    )
    options = ReleaseOptions(targets=("ollama", "vllm"), quants=("Q8_0",))
    request = ReleaseRequest(adapters, folder / "out", base=str(base), options=options)
    return release(request, Silent()).bundle


def sharpen(base: Path, out: Path) -> Path:
    """Copies a random model and makes it sure of itself.

    Among 49,152 tokens it would find none much likelier than another, and an adapter could not
    show in the few likeliest, which are what a server is asked about.
    """
    shutil.copytree(base, out)
    tensors = load_file(out / "model.safetensors")
    tensors["model.norm.weight"] *= 8
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


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


@pytest.fixture(scope="session")
def mixed_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random base; not to be written to."""
    # vLLM's attention on a processor has heads of 32 values at least.
    return models.make_llama(tmp_path_factory.mktemp("base") / "small-base", hidden=128)


@pytest.fixture(scope="session")
def mixed_adapters(mixed_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters that vLLM serves on `mixed_base`, and one that it takes only merged."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "plain": models.make_adapter(mixed_base, root / "plain", lora_alpha=16),
        "other": models.make_adapter(mixed_base, root / "other", seed=3, lora_alpha=16),
        "dora": models.make_adapter(mixed_base, root / "dora", seed=2, use_dora=True),
    }


@pytest.fixture(scope="session")
def mixed_bundle(
    mixed_base: Path, mixed_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of two servers for vLLM, proven; not to be written to."""
    request = ReleaseRequest(
        tuple(mixed_adapters.items()),
        tmp_path_factory.mktemp("mixed") / "out",
        base=str(mixed_base),
        options=ReleaseOptions(targets=("merged", "vllm")),
    )
    return release(request, Silent()).bundle
