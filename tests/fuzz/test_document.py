"""Every document of a model folder, an adapter and a bundle, damaged as JSON and as bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.adapter import read_adapter
from packager.cli.inspect import _render, inspect_document
from packager.cli.message import render_error
from packager.cli.plan import render_plan_text
from packager.errors import LorapackError
from packager.lock import parse_lock, read_lock, render_lock
from packager.manifest import parse_manifest, render_manifest
from packager.plan.document import parse_plan, render_plan
from packager.preparation import ReleaseRequest, plan_request
from packager.progress import Silent
from packager.release import release
from packager.verify.bundle import verify_bundle
from tests.fuzz.conftest import Sources
from tests.fuzz.mutation import damaged_bytes, damaged_documents, fuzz

PLANNED = [
    ("base/config.json", 120),
    ("base/model.safetensors.index.json", 80),
    ("base/tokenizer.json", 60),
    ("base/tokenizer_config.json", 40),
    ("adapter/adapter_config.json", 200),
]


def _attempt(work: Callable[[], str]) -> str | None:
    """Runs work that may fail as a known failure, which has to be sayable; returns its text."""
    try:
        text = work()
    except LorapackError as problem:
        said = render_error(problem)
        assert said.startswith("error: ")
        assert "\nhint: " in said, said
        said.encode("utf-8")
        json.dumps(problem.to_json(), ensure_ascii=False).encode("utf-8")
        return None
    text.encode("utf-8")
    return text


def _plan(sources: Sources) -> str:
    spec = read_adapter(sources.adapter)
    shown = _render(inspect_document(spec, read_lock(sources.adapter), None))
    request = ReleaseRequest(((None, sources.adapter),), Path("out"), base=str(sources.base))
    plan = plan_request(request, Silent()).plan
    text = render_plan(plan)
    assert parse_plan(text, where="here") == plan
    return shown + text + render_plan_text(plan)


def _release(sources: Sources) -> str:
    request = ReleaseRequest(
        ((None, sources.adapter),), sources.root / "out", base=str(sources.base), behaviour=False
    )
    try:
        made = release(request, Silent())
        verify_bundle(made.bundle, level="weights", base=str(sources.base), progress=Silent())
        return render_manifest(made.manifest)
    finally:
        left = {path.name for path in sources.root.iterdir()}
        assert left - {"out"} == {"base", "adapter", "bundle"}


@pytest.mark.parametrize(("name", "examples"), PLANNED)
def test_damaged_document_never_breaks_a_plan(copies: Sources, name: str, examples: int) -> None:
    path = copies.root / name
    whole = path.read_bytes()
    documents = damaged_documents(json.loads(whole)) | damaged_bytes(whole)

    @fuzz(examples)
    @given(documents)
    def check(data: bytes) -> None:
        path.write_bytes(data)
        _attempt(lambda: _plan(copies))

    check()


@pytest.mark.parametrize(
    "name",
    ["base/config.json", "base/tokenizer_config.json", "adapter/adapter_config.json",
     "base/README.md", "base/LICENSE", "adapter/README.md", "base/chat_template.jinja"],
)  # fmt: skip
def test_damaged_document_never_breaks_a_release(copies: Sources, name: str) -> None:
    """What a plan lets pass goes through card, report and proof too."""
    path = copies.root / name
    whole = path.read_bytes() if path.exists() else b"---\nlicense: mit\ntags: [a]\n---\n# Card\n"
    documents = damaged_bytes(whole)
    if name.endswith(".json"):
        documents = damaged_documents(json.loads(whole))

    @fuzz(12)
    @given(documents)
    def check(data: bytes) -> None:
        path.write_bytes(data)
        _attempt(lambda: _release(copies))
        shutil.rmtree(copies.root / "out", ignore_errors=True)

    check()


def test_damaged_lock_is_refused_or_the_same(originals: Sources) -> None:
    whole = (originals.adapter / "base.lock.json").read_bytes()

    @fuzz(300)
    @given(damaged_documents(json.loads(whole)) | damaged_bytes(whole))
    def check(data: bytes) -> None:
        text = _attempt(lambda: render_lock(parse_lock(data, where="here")))
        if text is not None:
            assert parse_lock(text, where="here") == parse_lock(data, where="here")

    check()


def test_damaged_manifest_is_refused_or_the_same(copies: Sources) -> None:
    path = copies.bundle / "lorapack.json"
    whole = path.read_bytes()

    @fuzz(300)
    @given(damaged_documents(json.loads(whole)) | damaged_bytes(whole))
    def check(data: bytes) -> None:
        text = _attempt(lambda: render_manifest(parse_manifest(data, where="here")))
        if text is not None:
            assert parse_manifest(text, where="here") == parse_manifest(data, where="here")
            path.write_bytes(data)
            _attempt(lambda: _verify(copies))

    check()


def _verify(sources: Sources) -> str:
    proof = verify_bundle(
        sources.bundle, level="weights", base=str(sources.base), progress=Silent()
    )
    return str(proof)


@fuzz(300)
@given(
    st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_are_a_document_or_an_error(data: bytes) -> None:
    for parse in (parse_lock, parse_manifest, parse_plan):
        _attempt(lambda parse=parse: str(parse(data, where="here")))
