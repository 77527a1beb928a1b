"""A base, an adapter on it and a merged model, served by stock vLLM from one bundle.

DoRA is what vLLM refuses: its merged model has a server of its own, behind the first one. All tests
share the two servers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from packager.plan import ReleaseOptions
from packager.progress import Silent
from packager.release import ReleaseRequest, release
from tests.models import make_adapter, make_llama
from tests.serve.running import Running, serving, wait_gone
from tests.vllm_engine import keep_vllm

NAMES = ("small-base", "plain", "dora")
PROMPTS = ("Once upon a time", "def main():", "The answer is", "What is this?")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # vLLM's attention on a processor wants heads of 32 values at least.
    return make_llama(tmp_path_factory.mktemp("base") / "small-base", hidden=128)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "plain": make_adapter(base, root / "plain", lora_alpha=16),
        "dora": make_adapter(base, root / "dora", seed=2, use_dora=True),
    }


@pytest.fixture(scope="module")
def running(
    base: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("running")
    request = ReleaseRequest(
        tuple(adapters.items()),
        folder / "out",
        base=str(base),
        options=ReleaseOptions(targets=("merged", "vllm")),
    )
    bundle = release(request, Silent()).bundle
    with serving(folder, bundle, "--vllm-python", keep_vllm()) as server:
        yield server
        family = server.family()
        # lorapack, and two servers with what vLLM starts for each.
        assert len(family) >= 5
        assert server.stop() == 0
        assert not wait_gone(family)


@pytest.fixture
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.url, api_key=running.key, max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def truths(base: Path, adapters: dict[str, Path]) -> dict[str, list[torch.Tensor]]:
    """Model → log-probabilities of the token after each prompt, by transformers in float32."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = {}
    for name in NAMES:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tuned = PeftModel.from_pretrained(model, adapters[name]) if name in adapters else model
        with torch.inference_mode():
            found[name] = [
                torch.log_softmax(tuned.eval()(ids).logits[0, -1].double(), -1)
                for ids in (torch.tensor([tokenizer(prompt).input_ids]) for prompt in PROMPTS)
            ]
    return found


def test_every_model_is_proven_at_the_start(running: Running) -> None:
    assert running.document["proven"] is True
    assert running.document["models"] == list(NAMES)
    status, _, body = running.ask("/ready", key="")
    told = json.loads(body)
    assert (status, told["ready"]) == (200, True)


def test_one_endpoint_converses_as_each(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(NAMES)
    said = {}
    for name in NAMES:
        answer = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Hello!"}], max_tokens=12,
            temperature=0,
        )  # fmt: skip
        assert answer.model == name
        said[name] = answer.choices[0].message.content
        stream = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Hello!"}], max_tokens=12,
            temperature=0, stream=True,
        )  # fmt: skip
        parts = [part.choices[0].delta.content or "" for part in stream if part.choices]
        assert "".join(parts) == said[name]
        assert len(parts) > 3
    assert len(set(said.values())) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_are_those_of_transformers(
    client: openai.OpenAI, truths: dict[str, list[torch.Tensor]], name: str
) -> None:
    told = [tell(client, name, prompt) for prompt in PROMPTS]
    gaps = {
        other: math.fsum(map(gap, told, truth)) / len(PROMPTS) for other, truth in truths.items()
    }
    assert gaps.pop(name) < 0.05, gaps
    assert min(gaps.values()) > 0.5


def tell(client: openai.OpenAI, name: str, prompt: str) -> dict[int, float]:
    """Returns the log-probabilities that a model tells of the token after a prompt."""
    answer = client.completions.create(
        model=name, prompt=prompt, max_tokens=1, temperature=0, logprobs=20,
        extra_body={"return_tokens_as_token_ids": True},
    )  # fmt: skip
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs is not None
    told = logprobs.top_logprobs[0]
    return {int(token.removeprefix("token_id:")): value for token, value in told.items()}


def gap(told: dict[int, float], truth: torch.Tensor) -> float:
    """Mean distance from the truth of what was told, in nats, weighted by its probability."""
    return math.fsum(math.exp(p) * abs(p - float(truth[token])) for token, p in told.items())
