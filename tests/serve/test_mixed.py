"""A base, an adapter on it and a merged model, served by stock vLLM from one bundle.

DoRA is what vLLM refuses: its merged model has a server of its own, behind the first one. All tests
share the two servers.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serve.crowd import DEEDS, crowd
from tests.serve.running import Running, serving, wait_gone
from tests.vllm_engine import keep_vllm

NAMES = ("small-base", "plain", "other", "dora")
PROMPTS = ("Once upon a time", "def main():", "The answer is", "What is this?")


@pytest.fixture(scope="module")
def running(mixed_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("running")
    with serving(folder, mixed_bundle, "--vllm-python", keep_vllm()) as server:
        yield server
        family = server.family()
        # lorapack, and two servers of three processes each.
        assert len(family) >= 7
        assert server.stop() == 0
        assert not wait_gone(family)


@pytest.fixture
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.url, api_key=running.key, max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def truths(mixed_base: Path, mixed_adapters: dict[str, Path]) -> dict[str, list[torch.Tensor]]:
    """Model → log-probabilities of the token after each prompt, by transformers in float32."""
    tokenizer = AutoTokenizer.from_pretrained(mixed_base)
    found = {}
    for name in NAMES:
        model = AutoModelForCausalLM.from_pretrained(mixed_base, dtype=torch.float32)
        adapter = mixed_adapters.get(name)
        tuned = model if adapter is None else PeftModel.from_pretrained(model, adapter)
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


def test_crowd_gets_the_right_answers_from_both_servers(running: Running) -> None:
    """For as long as it takes until everything has happened; for minutes in test_load."""
    with crowd(running, NAMES, 6) as seen:
        latest = time.monotonic() + 60
        while not all(seen.counts[deed] for deed in DEEDS) and time.monotonic() < latest:
            if seen.over.wait(0.5):
                break
    assert not seen.wrong, seen.wrong[:5]
    assert all(seen.counts[deed] for deed in DEEDS), seen.counts
    metrics = running.ask("/metrics")[2].decode()
    handed_on = re.search(
        r'^lorapack_requests_total\{model="dora",status="200"\} (\d+)$', metrics, re.MULTILINE
    )
    assert handed_on is not None
    assert int(handed_on[1]) > len(PROMPTS)
    assert 'lorapack_neighbour_ready{neighbour="dora"} 1' in metrics
