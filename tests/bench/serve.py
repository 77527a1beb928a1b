"""`just bench-serve`: plain vLLM and a bundle's endpoint, side by side on this machine.

Both serve the same base and adapters with the same options; the bundle's has the gate before it.
Eight clients stream, over base and adapters in turn. What is compared comes in pairs, one after
the other, so that a busy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from packager.resource import resource_folder
from packager.serving.document import parse_gate, parse_serve_yaml
from tests import models
from tests.bench.apart import apart
from tests.vllm_engine import keep_vllm

CLIENTS = 8
TOKENS = 32
START_SECONDS = 900
QUESTIONS = (
    "What is the capital of Italy?",
    "Name three colours and say what each reminds you of.",
    "Tell me a story about a lighthouse.",
    "How do I boil an egg?",
)


@dataclass(frozen=True)
class Endpoint:
    """A running server: where it is, its key, its models, and how long it took to start."""

    url: str
    key: str
    models: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Answered:
    """One streamed answer: seconds to its first token, and how many tokens it had."""

    first: float
    tokens: int


def main() -> None:
    """Measures what was asked for and prints Markdown."""
    parser = argparse.ArgumentParser(prog="just bench-serve")
    parser.add_argument("--bundle", type=Path, help="a bundle with vllm/; by default one is made")
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds of throughput")
    parser.add_argument("--requests", type=int, default=6, help="requests of a client in a round")
    parser.add_argument("--singles", type=int, default=60, help="paired requests of one client")
    parser.add_argument("--starts", type=int, default=3, help="paired starts")
    options = parser.parse_args()
    print(f"machine: {apart('packager.verify.check', 'describe_machine')}\n")
    with tempfile.TemporaryDirectory(prefix="lorapack-bench-serve-") as folder:
        home = Path(folder) / "home"
        _lay_out(home, options.bundle or _make_bundle(Path(folder)))
        _measure_starts(home, options.starts)
        with _start_plain(home) as plain, _start_bundle(home) as bundle:
            asyncio.run(_measure(plain, bundle, options))


def _make_bundle(folder: Path) -> Path:
    base = models.keep_smollm2()
    other = models.make_adapter(base, folder / "other", seed=3, r=4, lora_alpha=4)
    request = ReleaseRequest(
        (("pirate", models.keep_pirate(base)), ("other", other)),
        folder / "bundle",
        base=str(base),
        options=ReleaseOptions(targets=("vllm",)),
    )
    return release(request, Silent()).bundle


def _lay_out(home: Path, bundle: Path) -> None:
    """Makes the folder that both servers run in."""
    home.mkdir()
    for path in (bundle / "vllm").iterdir():
        (home / path.name).symlink_to(path.absolute())
    document = json.loads((bundle / "lorapack.json").read_text(encoding="utf-8"))
    if not (home / "base").exists():
        (home / "base").symlink_to(document["base"]["directory"])
    (home / "key").write_text(secrets.token_urlsafe(32), encoding="ascii")
    flags = parse_serve_yaml((home / "serve.yaml").read_text(encoding="utf-8"), where="serve.yaml")
    lines = [
        f"{name}: {json.dumps(value)}" for name, value in flags.items() if name != "middleware"
    ]
    (home / "plain.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _measure_starts(home: Path, count: int) -> None:
    plain, ours = [], []
    for _ in range(count):
        with _start_plain(home) as endpoint:
            plain.append(endpoint.seconds)
        with _start_bundle(home) as endpoint:
            ours.append(endpoint.seconds)
    if count:
        added = statistics.median(b - a for a, b in zip(plain, ours, strict=True))
        print("| start | median s |\n| --- | --- |")
        print(f"| plain vLLM, until /health answers | {statistics.median(plain):.1f} |")
        print(f"| bundle, until /ready says that all answer as proven | "
              f"{statistics.median(ours):.1f} |")  # fmt: skip
        print(f"\nadded by the gate and its probe: {added:+.1f} s (wanted: at most 5)\n")


@contextmanager
def _start_plain(home: Path) -> Iterator[Endpoint]:
    names = _names(home)
    places = str(len(names))
    command = ("vllm.entrypoints.openai.api_server", "--config", "plain.yaml",
               # As many as the gate's starter gives where vLLM runs on a processor.
               "--max-loras", places, "--max-cpu-loras", places)  # fmt: skip
    with _start(home, command, "/health", {}) as (url, seconds):
        yield Endpoint(url, "none", names, seconds)


@contextmanager
def _start_bundle(home: Path) -> Iterator[Endpoint]:
    further = {
        "PYTHONPATH": str(resource_folder("docker/gate")),
        "LORAPACK_HOME": str(home),
        "LORAPACK_API_KEY_FILE": str(home / "key"),
    }
    with _start(home, ("lorapack_gate.start",), "/ready", further) as (url, seconds):
        key = (home / "key").read_text(encoding="ascii")
        yield Endpoint(url, key, _names(home), seconds)


def _names(home: Path) -> tuple[str, ...]:
    gate = parse_gate((home / "gate.json").read_bytes(), where="gate.json")
    return tuple(model.name for model in gate.models)


@contextmanager
def _start(
    home: Path, module: tuple[str, ...], path: str, further: dict[str, str]
) -> Iterator[tuple[str, float]]:
    port = 18700 + secrets.randbelow(1000)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {
        **kept, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        **further,
    }  # fmt: skip
    begun = time.monotonic()
    with (home / f"{port}.log").open("wb") as log:
        process = subprocess.Popen(
            [keep_vllm(), "-P", "-m", *module, "--host", "127.0.0.1", "--port", str(port),
             "--enforce-eager"],
            cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, f"http://127.0.0.1:{port}{path}", begun)
            yield f"http://127.0.0.1:{port}/v1", time.monotonic() - begun
        finally:
            process.terminate()
            process.wait(120)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], url: str, begun: float) -> None:
    while time.monotonic() < begun + START_SECONDS:
        if process.poll() is not None:
            raise SystemExit(f"a server ended with exit code {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
    raise SystemExit("a server did not become ready")


async def _measure(plain: Endpoint, ours: Endpoint, options: argparse.Namespace) -> None:
    async with _client(plain) as one, _client(ours) as two:
        contenders = ((one, plain), (two, ours))
        for client, endpoint in contenders:
            await _load(client, endpoint, 2)
        await _measure_singles(contenders, options.singles)
        await _measure_load(contenders, options.rounds, options.requests)


def _client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=endpoint.url, api_key=endpoint.key, max_retries=0, timeout=600
    )


async def _measure_singles(contenders: Any, count: int) -> None:
    """Compares the time to the first token where nobody else asks."""
    first: tuple[list[float], list[float]] = ([], [])
    for number in range(count):
        for side in (0, 1) if number % 2 else (1, 0):
            client, endpoint = contenders[side]
            answered = await _ask(client, endpoint, number, tokens=2)
            first[side].append(answered.first)
    print("| one client: time to first token, ms | fastest tenth | median |\n| --- | --- | --- |")
    for name, values in zip(("plain vLLM", "bundle"), first, strict=True):
        print(
            f"| {name} | {_fastest(values) * 1000:.1f} | {statistics.median(values) * 1000:.1f} |"
        )
    added = statistics.median(b - a for a, b in zip(*first, strict=True))
    # The processes of the server wait for each other by spinning: where cores are few, most of the
    # time is that of the scheduler, and only the fastest answers show the server's own.
    fastest = _fastest(first[1]) - _fastest(first[0])
    print(f"\nadded to the time to first token: median of pairs {added * 1000:+.2f} ms, fastest "
          f"tenth {fastest * 1000:+.2f} ms (wanted: at most 5)\n")  # fmt: skip


def _fastest(values: list[float]) -> float:
    return statistics.quantiles(values, n=10)[0]


async def _measure_load(contenders: Any, rounds: int, requests: int) -> None:
    """Compares tokens a second with several clients at once."""
    rates: tuple[list[float], list[float]] = ([], [])
    firsts: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            client, endpoint = contenders[side]
            begun = time.perf_counter()
            answers = await _load(client, endpoint, requests)
            rates[side].append(sum(a.tokens for a in answers) / (time.perf_counter() - begun))
            firsts[side].append(statistics.median(a.first for a in answers))
    print(f"| {CLIENTS} clients | median tokens/s | median time to first token, ms |")
    print("| --- | --- | --- |")
    for name, rate, first in zip(("plain vLLM", "bundle"), rates, firsts, strict=True):
        print(f"| {name} | {statistics.median(rate):.1f} | {statistics.median(first) * 1000:.0f} |")
    ratio = statistics.median(b / a for a, b in zip(*rates, strict=True))
    print(f"\nthroughput: {ratio:.3f} × plain vLLM's (wanted: at least 0.97)")


async def _load(client: openai.AsyncOpenAI, endpoint: Endpoint, requests: int) -> list[Answered]:
    async def one(number: int) -> list[Answered]:
        return [await _ask(client, endpoint, number + turn) for turn in range(requests)]

    found = await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return [answered for each in found for answered in each]


async def _ask(
    client: openai.AsyncOpenAI, endpoint: Endpoint, number: int, *, tokens: int = TOKENS
) -> Answered:
    begun = time.perf_counter()
    parts = await client.chat.completions.create(
        model=endpoint.models[number % len(endpoint.models)],
        messages=[{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    first, count = 0.0, 0
    async for part in parts:
        if part.choices and part.choices[0].delta.content and not first:
            first = time.perf_counter() - begun
        if part.usage is not None:
            count = part.usage.completion_tokens
    return Answered(first or time.perf_counter() - begun, count)


if __name__ == "__main__":
    main()
