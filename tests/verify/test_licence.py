"""A licence that the user had to name goes into the release, and the release still verifies."""

from __future__ import annotations

import json
from pathlib import Path

from gguf import GGUFReader

from packager.frontmatter import parse_front_matter
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from packager.verify.bundle import verify_bundle
from tests import models
from tests.gguf.cases import CASES, write_model, write_pieces

NAMED = {"license": "other", "license_name": "license-of-the-base", "license_link": "LICENSE"}


def test_terms_without_a_name_travel_as_other(tmp_path: Path) -> None:
    base = write_model(CASES["llama-2"], tmp_path / "base", write_pieces(tmp_path / "pieces"))
    (base / "LICENSE").write_text("Our own terms.", encoding="utf-8")
    adapter = models.make_adapter(base, tmp_path / "pirate")
    options = ReleaseOptions(targets=("merged", "ollama"), license="other", quants=("Q8_0",))
    request = ReleaseRequest(
        ((None, adapter),), tmp_path / "out", base=str(base), options=options,
        behaviour=False, threads=1,
    )  # fmt: skip
    bundle = release(request, Silent()).bundle
    for folder in (bundle / "merged/pirate", bundle / "ollama/pirate"):
        card = (folder / "README.md").read_text(encoding="utf-8")
        metadata = parse_front_matter(card, where="README.md")
        assert {key: metadata.get(key) for key in NAMED} == NAMED
        assert (folder / "LICENSE").read_text(encoding="utf-8") == "Our own terms."
    fields = GGUFReader(bundle / "ollama/pirate/pirate-Q8_0.gguf").fields
    assert fields["general.license"].contents() == "other"
    assert fields["general.license.link"].contents() == "LICENSE"
    manifest = json.loads((bundle / "lorapack.json").read_text(encoding="utf-8"))
    assert manifest["base"]["license"] == "other"
    proof = verify_bundle(bundle, level="weights", base=str(base), progress=Silent())
    assert [target.problems for target in proof.targets] == [(), ()]
