"""The truth of an adapter is measured once, on the tokenizer of the release, and let go."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.gather import gather
from packager.progress import Silent
from packager.verify.reference import References, tokenizer_folder
from tests.models import make_adapter, make_llama, write_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, an adapter, and an adapter with a tokenizer of its own."""
    root = tmp_path_factory.mktemp("reference")
    base = make_llama(root / "base", layers=1)
    first, second = (make_adapter(base, root / name, seed=n) for n, name in enumerate("ab", 1))
    write_tokenizer(second)
    (second / "chat_template.jinja").write_text("{{ messages[0].content }}!", encoding="utf-8")
    return base, first, second


def test_is_measured_once_and_closed_with_the_next_adapter(
    folders: tuple[Path, Path, Path],
) -> None:
    base, first, second = folders
    gathered = gather((("a", first), ("b", second)), base=str(base), progress=Silent())
    one, other = gathered.adapters
    steps: list[tuple[str, int, int]] = []
    with References(gathered, lambda *step: steps.append(step)) as references:
        truth, folder = references.find(one)
        count = len(steps)
        again, _ = references.find(one)
        assert again is truth
        assert len(steps) == count > len(truth.passages)
        assert folder is not None
        assert next(iter(truth.read_logits())).shape[1] == truth.vocabulary
        another, other_folder = references.find(other)
        assert len(steps) == 2 * count
        assert another.passages != truth.passages
        assert not folder.exists()
        with pytest.raises(ValueError, match="closed file"):
            next(iter(truth.read_logits()))
    assert other_folder is not None
    assert not other_folder.exists()


def test_the_tokenizer_is_the_adapters_own_or_the_bases(
    folders: tuple[Path, Path, Path],
) -> None:
    base, first, second = folders
    gathered = gather((("a", first), ("b", second)), base=str(base), progress=Silent())
    for source, origin in zip(gathered.adapters, (base, second), strict=True):
        with tokenizer_folder(source, gathered) as folder:
            assert folder is not None
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                assert (folder / name).read_bytes() == (origin / name).read_bytes()
            assert (folder / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_without_a_tokenizer_there_is_no_folder(small_base: Path, small_adapter: Path) -> None:
    gathered = gather(
        (("a", small_adapter),), base=str(small_base), license_id="mit", progress=Silent()
    )
    with tokenizer_folder(gathered.adapters[0], gathered) as folder:
        assert folder is None
