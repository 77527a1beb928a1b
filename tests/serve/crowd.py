"""Clients of a served bundle, good ones and bad ones, each of which looks at what it is told."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
from lorapack_gate.expected import Question
from lorapack_gate.judge import divergence
from lorapack_gate.probe import parse_answer

from tests.serve.running import Running

MOST_CLIENTS = 16
DEEDS = ("ask 200", "echo 200", "talk 200", "leave 200", "overload 413", "stammer 400",
         "intrude 401", "mistake 404")  # fmt: skip
"""What all of them together have seen after a while."""

SETTLED_SECONDS = 2.0
"""How long before the end a request has to have been sent to count as in flight at it."""
PROMPTS = (
    "The old lighthouse keeper opened the door and said",
    "To make a good cup of tea, you first",
    "import numpy as np\n\ndef mean(values):",
    "The largest planet of the solar system is",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 2, 3, 4, 5,",
)


@dataclass
class Seen:
    """What all clients together have seen."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stopping: float = float("inf")
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)
        self.over.set()


@dataclass
class Client:
    """One client with a secret of its own.

    Attributes:
        number: Of the client.
        running: The server.
        models: That it asks for.
        truth: (model, prompt) → what that model answers when asked alone.
        seen: Where it tells what it has seen.
    """

    number: int
    running: Running
    models: Sequence[str]
    truth: dict[tuple[str, str], Question]
    seen: Seen

    def __post_init__(self) -> None:
        self.chance = random.Random(self.number)
        self.secret = f"{self.chance.randrange(16**8):08X}"
        self.web = httpx.Client(base_url=self.running.root, timeout=120)

    def run(self) -> None:
        actions = (
            (self.ask, 10), (self.echo, 3), (self.talk, 3), (self.leave, 3), (self.overload, 1),
            (self.stammer, 1), (self.intrude, 1), (self.mistake, 1),
        )  # fmt: skip
        kinds, weights = zip(*actions, strict=True)
        while not self.seen.over.is_set():
            begun = time.monotonic()
            action = self.chance.choices(kinds, weights)[0]
            try:
                action()
            except (httpx.HTTPError, openai.APIConnectionError) as problem:
                self._broke(action.__name__, begun, problem)
            except openai.APIStatusError as problem:
                self._refused(action.__name__, begun, problem.status_code)

    def _broke(self, what: str, begun: float, problem: Exception) -> None:
        if begun < self.seen.stopping - SETTLED_SECONDS:
            self.seen.fail(f"{what}: {problem!r} before the end")
        self.seen.count("connection lost at the end")
        self.seen.over.wait(0.2)

    def _refused(self, what: str, begun: float, status: int) -> None:
        ending = status == 503 and begun > self.seen.stopping - SETTLED_SECONDS
        if status != 429 and not ending:
            self.seen.fail(f"{what}: status {status}")
        self.seen.count(f"{what} {status}")

    def post(self, payload: Any, *, key: str | None = None) -> httpx.Response:
        """Sends JSON, or bytes as they are, to the completions."""
        headers = {
            "authorization": f"Bearer {self.running.key if key is None else key}",
            "content-type": "application/json",
        }
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        return self.web.post("/v1/completions", content=content, headers=headers)

    def expect(self, what: str, begun: float, answer: httpx.Response, status: int) -> bool:
        if answer.status_code != status:
            self._refused(what, begun, answer.status_code)
            return False
        self.seen.count(f"{what} {status}")
        return True

    def ask(self) -> None:
        """The distribution of the next token has to be this model's, and no other's."""
        begun = time.monotonic()
        model, prompt = self.chance.choice(self.models), self.chance.choice(PROMPTS)
        answer = self.post(question(model, prompt))
        if not self.expect("ask", begun, answer, 200):
            return
        found = parse_answer(answer.content)
        far = {name: divergence(self.truth[name, prompt], found) for name in self.models}
        if min(far, key=lambda name: far[name]) != model or far[model] > 0.1:
            self.seen.fail(f"{model} answered {prompt!r} as another: {far}")
        if answer.json()["model"] != model:
            self.seen.fail(f"{model} is called {answer.json()['model']}")

    def echo(self) -> None:
        """What comes back, prompt and all, holds this client's secret and nobody else's."""
        begun = time.monotonic()
        prompt = f"code {self.secret}, code {self.secret}, code"
        answer = self.post(
            {
                "model": self.chance.choice(self.models),
                "prompt": prompt,
                "max_tokens": 12,
                "echo": True,
            }
        )
        if self.expect("echo", begun, answer, 200):
            text = answer.json()["choices"][0]["text"]
            if not text.startswith(prompt):
                self.seen.fail(f"not this client's prompt: {text!r}")
            self.check_secrets(text)

    def check_secrets(self, text: str) -> None:
        others = (f"{random.Random(n).randrange(16**8):08X}" for n in range(MOST_CLIENTS))
        leaked = [secret for secret in others if secret != self.secret and secret in text]
        if leaked:
            self.seen.fail(f"another client's text: {text!r}")

    def talk(self) -> None:
        """A conversation that streams to its end."""
        client = openai.OpenAI(
            base_url=self.running.url, api_key=self.running.key, max_retries=0, http_client=None
        )
        with client:
            parts = client.chat.completions.create(
                model=self.chance.choice(self.models), max_tokens=16, stream=True,
                messages=[{"role": "user", "content": f"Repeat: {self.secret}"}],
            )  # fmt: skip
            text, reason = "", None
            for part in parts:
                for choice in part.choices:
                    text += choice.delta.content or ""
                    reason = choice.finish_reason or reason
        if reason not in ("stop", "length"):
            self.seen.fail(f"a stream that ended by {reason!r} after {text!r}")
        self.check_secrets(text)
        self.seen.count("talk 200")

    def leave(self) -> None:
        """Disconnects in the middle of a stream."""
        payload = {
            "model": self.chance.choice(self.models), "prompt": self.secret, "max_tokens": 200,
            "stream": True, "ignore_eos": True,
        }  # fmt: skip
        headers = {"authorization": f"Bearer {self.running.key}"}
        with self.web.stream("POST", "/v1/completions", json=payload, headers=headers) as answer:
            if answer.status_code == 200:
                next(answer.iter_raw())
            self.seen.count(f"leave {answer.status_code}")

    def overload(self) -> None:
        begun = time.monotonic()
        body = json.dumps({"model": self.models[0], "prompt": "x" * (5 << 20)}).encode()
        self.expect("overload", begun, self.post(body), 413)

    def stammer(self) -> None:
        begun = time.monotonic()
        body = self.chance.choice((b"", b"{", b"\xff", b"[]", b'{"model": 1', b"[" * 100_000))
        self.expect("stammer", begun, self.post(body), 400)

    def intrude(self) -> None:
        begun = time.monotonic()
        answer = self.post(question(self.models[0], PROMPTS[0]), key="wrong" * 8)
        self.expect("intrude", begun, answer, 401)

    def mistake(self) -> None:
        begun = time.monotonic()
        answer = self.post(question("nobody", PROMPTS[0]))
        if self.expect("mistake", begun, answer, 404):
            assert ", ".join(self.models) in answer.json()["error"]["message"]


def question(model: str, prompt: str) -> dict[str, Any]:
    return {
        "model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20,
        "return_tokens_as_token_ids": True,
    }  # fmt: skip


def ask_alone(running: Running, models: Sequence[str]) -> dict[tuple[str, str], Question]:
    """Returns what each model answers to each prompt while nobody else asks."""
    client = Client(MOST_CLIENTS, running, models, {}, Seen())
    truth = {}
    for model in models:
        for prompt in PROMPTS:
            answer = client.post(question(model, prompt))
            assert answer.status_code == 200, answer.text
            told = sorted(parse_answer(answer.content).items(), key=lambda pair: -pair[1])
            truth[model, prompt] = Question((0,), tuple(told[:8]))
    return truth


@contextmanager
def crowd(running: Running, models: Sequence[str], clients: int) -> Iterator[Seen]:
    """Clients that ask until the context is left, or one of them has seen what must not be.

    Yields:
        What they have seen; whole once the context has been left.
    """
    seen = Seen()
    truth = ask_alone(running, models)
    each = (Client(number, running, models, truth, seen) for number in range(clients))
    threads = [threading.Thread(target=client.run) for client in each]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        seen.over.set()
        for thread in threads:
            thread.join(60)
