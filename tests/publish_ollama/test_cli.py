"""`lorapack publish` with Ollama: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from packager.cli.main import lorapack as group
from tests.publish_ollama.bundle import NAME, gguf_of
from tests.publish_ollama.server import LoopbackOllama


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, list(map(str, arguments)))


def test_a_store_is_written_and_said(bundle: Path, tmp_path: Path) -> None:
    store = tmp_path / "models"
    done = run("publish", bundle, "--ollama-store", store)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pirate Q4_K_M → pirate:Q4_K_M (")
    assert lines[1] == "  wrote 26.7 kB in 8 blobs"
    assert lines[5] == "  wrote 0 B in 0 blobs, 8 were there already"
    document = json.loads(run("publish", bundle, "--ollama-store", store, "--json").stdout)
    assert document["schema_version"] == 1
    assert document["dry_run"] is False
    assert document["repositories"] == document["created"] == []
    assert [model["name"] for model in document["stored"]] == [
        "pirate:Q4_K_M", "pirate:Q8_0", "pirate:latest",
    ]  # fmt: skip
    first = document["stored"][0]
    assert first["state"] == "there"
    assert Path(first["manifest"]) == store / "manifests/registry.ollama.ai/library/pirate/Q4_K_M"
    assert first["id"][:12] in lines[0]
    assert first["blobs"][0] == {
        "media_type": "application/vnd.ollama.image.model",
        "digest": json.loads(Path(first["manifest"]).read_text())["layers"][0]["digest"],
        "size": gguf_of(bundle).stat().st_size,
        "state": "there",
    }


def test_a_replaced_model_is_said(bundle: Path, tmp_path: Path) -> None:
    store = tmp_path / "models"
    run("publish", bundle, "--ollama-store", store, "--ollama-name", "x:Q8_0")
    done = run("publish", bundle, "--ollama-store", store, "--ollama-name", "x:q8_0", "--dry-run")
    assert "would write 0 B" in done.stdout
    assert "replace" not in done.stdout
    (store / "manifests/registry.ollama.ai/library/x/Q8_0").write_text("{}")
    done = run("publish", bundle, "--ollama-store", store, "--ollama-name", "x:q8_0", "--dry-run")
    assert "  would replace the model of that name" in done.stdout.splitlines()


def test_a_running_ollama_gets_the_models(bundle: Path, ollama: LoopbackOllama) -> None:
    draft = run("publish", bundle, "--ollama", "ann/ahoy:v1", "--dry-run")
    assert draft.stdout.splitlines() == [
        f"pirate Q4_K_M → ann/ahoy:v1 in Ollama 0.33.0 at {ollama.host}",
        "  would send 26.1 kB in 1 files",
        "  would push to https://ollama.com/ann/ahoy:v1",
    ]
    done = run("publish", bundle, "--ollama", "ann/ahoy:v1", "--json")
    (made,) = json.loads(done.stdout)["created"]
    assert made["name"] == "ann/ahoy:v1"
    assert made["answer"] == {
        "question": "Hello! Who are you?", "text": "Arr.", "done_reason": "stop",
    }  # fmt: skip
    assert made["files"][0]["state"] == "new"
    again = run("publish", bundle, "--ollama", "ann/ahoy:v1")
    assert again.stdout.splitlines()[1:] == [
        "  sent 0 B in 0 files, 1 were there already",
        "  asked 'Hello! Who are you?', it says 'Arr.'",
        "  pushed to https://ollama.com/ann/ahoy:v1",
    ]
    assert ollama.pushed == ["ann/ahoy:v1", "ann/ahoy:v1"]


def test_store_and_server_in_one_call(bundle: Path, ollama: LoopbackOllama, tmp_path: Path) -> None:
    done = run("publish", bundle, "--ollama", "a", "--ollama-store", tmp_path / "s", "--json")
    document = json.loads(done.stdout)
    assert [len(document[key]) for key in ("stored", "created", "repositories")] == [3, 3, 0]
    assert [model["name"] for model in document["stored"]][2] == f"{NAME}:latest"


def test_what_a_model_says_cannot_act_on_the_terminal(bundle: Path, ollama: LoopbackOllama) -> None:
    ollama.reply = {"message": {"role": "assistant", "content": "\x1b[2J"}, "done_reason": "stop"}
    done = run("publish", bundle, "--ollama", "a:v1")
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [[], ["--ollama-name", "x"], ["--ollama", "x", "--ollama-name", "y"]],
)
def test_wrong_usage(bundle: Path, arguments: list[str]) -> None:
    done = run("publish", bundle, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: lorapack publish")


def test_no_server_is_a_known_failure(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    done = run("publish", bundle, "--ollama", "x")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "error: no Ollama answers, in http://127.0.0.1:1, expected one that was started with "
        "`ollama serve`",
        "",
        "hint: start it: ollama serve; or do without one: --ollama-store DIR",
    ]
