"""Small random models of every family with an adapter, released into GGUF, and converted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from packager.gguf import pretokenizer
from packager.gguf.tokenizerdocument import check_encodings, open_tokenizer
from packager.gguf.tokenizerfile import list_tokenizer_files
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests import models
from tests.gguf.cases import CASES, write_model, write_pieces
from tests.llamacpp_source import Conversion, convert_all

TEST_PRE = "llama-bpe"
"""What the converter takes for the pre-tokenizer of a vocabulary that a test trained."""
# Source: llama.cpp 0c1e57098, src/models/*.cpp: what it takes for granted and no key tells it.
RUNNABLE: dict[str, dict[str, Any]] = {
    "granite": {"residual_multiplier": 0.5},
    "phi2": {"intermediate_size": 256},
    # Which of the two sets of factors counts, the two programs tell by different lengths.
    "phi3-long": {"original_max_position_embeddings": 512},
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight"]
QUANTS = ("F32", "Q8_0", "Q4_K_M")


@dataclass(frozen=True)
class Released:
    """One family's release.

    Attributes:
        base: The base.
        adapter: The adapter.
        bundle: Targets `merged` (float32) and `ollama`.
        converted: What llama.cpp's converter makes of the merged model, in float32.
    """

    base: Path
    adapter: Path
    bundle: Path
    converted: Path

    @property
    def merged(self) -> Path:
        return self.bundle / "merged/pirate"

    def gguf(self, quant: str = "F32") -> Path:
        return self.bundle / f"ollama/pirate/pirate-{quant}.gguf"


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    pieces = write_pieces(root / "pieces")
    made = {}
    for name, case in CASES.items():
        settings = {**case.settings, **RUNNABLE.get(name, {})}
        made[name] = write_model(replace(case, settings=settings), root / name, pieces)
    return made


@pytest.fixture(scope="session")
def known_tokenizer(bases: dict[str, Path]) -> Callable[[pytest.MonkeyPatch], None]:
    """Gives the tokenizer that tests train the name that the converter is told for it."""
    files = list_tokenizer_files(bases["llama"])
    ids = next(check_encodings(open_tokenizer(files), files))
    known = {**pretokenizer.NAMES, pretokenizer.hash_ids(ids): TEST_PRE}
    return lambda monkeypatch: monkeypatch.setattr(pretokenizer, "NAMES", known)


@pytest.fixture(scope="session")
def families(
    bases: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    known_tokenizer: Callable[[pytest.MonkeyPatch], None],
) -> dict[str, Released]:
    """Every family: base, adapter, release and conversion of the merged model."""
    root = tmp_path_factory.mktemp("families")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        known_tokenizer(patch)
        for name, base in bases.items():
            is_mixture = name.endswith(("moe", "mixtral"))
            adapter = models.make_adapter(
                base,
                root / name / "pirate",
                target_modules=ATTENTION if is_mixture else "all-linear",
                target_parameters=EXPERTS if is_mixture else None,
            )
            options = ReleaseOptions(
                targets=("merged", "ollama"), dtype="F32", license="mit", quants=QUANTS
            )
            request = ReleaseRequest(
                ((None, adapter),), root / name / "out", base=str(base), options=options,
                behaviour=False, threads=1,
            )  # fmt: skip
            bundle = release(request, Silent()).bundle
            made[name] = Released(base, adapter, bundle, root / name / "converted.gguf")
    convert_all(
        [Conversion(each.merged, each.converted, "f32", TEST_PRE) for each in made.values()]
    )
    return made


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small random Llama with a tokenizer that llama.cpp knows, and an adapter for it."""
    root = tmp_path_factory.mktemp("small")
    known = models.keep_smollm2()
    rows = json.loads((known / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    base = models.make_llama(root / "base", vocab_rows=rows, license_id="mit")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).unlink(missing_ok=True)
        if (known / name).exists():
            shutil.copyfile(known / name, base / name)
    return base, models.make_adapter(base, root / "pirate")
