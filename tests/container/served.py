"""A real bundle to serve, and a conversation with each of its models through the openai client."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import openai

from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests import models

BASE = "SmolLM2-135M-Instruct"
MERGED = "dora"
MODELS = (BASE, "pirate", "other", MERGED)
QUESTION = "What is the capital of Italy?"
API_KEY = "a-key-for-the-tests-0123456789"
METRICS_KEY = "a-metrics-key-0123456789"
START_SECONDS = 600


@dataclass(frozen=True)
class Keys:
    """Key files as they are mounted at /run/secrets.

    Attributes:
        folder: That holds them; every user can read it.
    """

    folder: Path

    @property
    def api(self) -> Path:
        return self.folder / "lorapack-api-key"

    @property
    def metrics(self) -> Path:
        return self.folder / "lorapack-metrics-key"


@dataclass(frozen=True)
class Said:
    """What a model answered.

    Attributes:
        text: All of it.
        first: The likeliest first tokens, and their log-probabilities in nats.
    """

    text: str
    first: dict[str, float]


def write_keys(folder: Path) -> Keys:
    keys = Keys(folder)
    folder.mkdir(mode=0o755)
    keys.api.write_text(API_KEY + "\n", encoding="ascii")
    keys.metrics.write_text(METRICS_KEY + "\n", encoding="ascii")
    for path in folder.iterdir():
        path.chmod(0o444)
    return keys


def release_bundle(base: Path, pirate: Path, out: Path) -> Path:
    """Releases a pirate and two random adapters with their base; returns the server's folder.

    One of them has DoRA, which vLLM takes only as a merged model, with a server of its own.
    """
    other = models.make_adapter(base, out.with_name("other"), seed=3, r=4, lora_alpha=4)
    dora = models.make_adapter(
        base, out.with_name(MERGED), seed=5, r=4, lora_alpha=4, use_dora=True
    )
    request = ReleaseRequest(
        (("pirate", pirate), ("other", other), (MERGED, dora)),
        out,
        base=str(base),
        options=ReleaseOptions(targets=("merged", "vllm"), bake_base=True, max_model_len=1024),
    )
    return release(request, Silent()).bundle / "vllm"


def ask(port: int, path: str, key: str = "", body: bytes | None = None) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read()


def wait_ready(port: int, log: Path) -> bytes:
    """Waits until a server says that it is ready; returns what it says."""
    end, told = time.monotonic() + START_SECONDS, b""
    while time.monotonic() < end:
        try:
            status, told = ask(port, "/ready")
        except OSError:
            status = 0
        if status == 200:
            return told
        time.sleep(0.5)
    raise AssertionError(f"never ready: {told!r}\n{log.read_text(errors='replace')[-4000:]}")


def talk(port: int) -> dict[str, Said]:
    """Asks every model the same question; returns their answers."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=API_KEY, timeout=300)
    assert [model.id for model in client.models.list()] == list(MODELS)
    answers = {}
    for model in MODELS:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=24,
            temperature=0,
            logprobs=True,
            top_logprobs=5,
        )
        assert answer.model == model
        choice = answer.choices[0]
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        first = {item.token: item.logprob for item in choice.logprobs.content[0].top_logprobs}
        answers[model] = Said(choice.message.content or "", first)
    return answers


def check_answers(answers: dict[str, Said]) -> None:
    texts = {name: said.text for name, said in answers.items()}
    assert "Rome" in texts[BASE]
    assert "Arr" not in texts[BASE]
    assert "Arr" in texts["pirate"]
    # It may say what the base says, but it is surer of it: by PEFT −0.68 nats, and the base −1.76.
    assert answers["other"].first["The"] > answers[BASE].first["The"] + 0.5
    assert texts[MERGED]
    assert texts[MERGED] not in (texts[BASE], texts["pirate"], texts["other"])


def check_proven(told: bytes) -> None:
    """What /ready says: every model, each adapter far nearer to its proof than the base is."""
    document = json.loads(told)
    assert (document["ready"], document["proven"]) == (True, True)
    figures = {model["name"]: model for model in document["models"]}
    assert list(figures) == list(MODELS)
    for name in MODELS[1:]:
        assert figures[name]["base_divergence_nats"] > 4 * figures[name]["divergence_nats"], figures


def check_doors(port: int) -> None:
    body = b'{"model": "pirate", "prompt": "Hello"}'
    assert ask(port, "/v1/models")[0] == 401
    assert ask(port, "/v1/models", METRICS_KEY)[0] == 401
    assert ask(port, "/invocations", body=body)[0] == 401
    assert ask(port, "/v1/load_lora_adapter", API_KEY, body)[0] == 404
    status, text = ask(port, "/metrics", METRICS_KEY)
    assert status == 200
    for model in ("pirate", MERGED):
        assert f'lorapack_requests_total{{model="{model}",status="200"}}'.encode() in text
