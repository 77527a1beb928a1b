"""What a user asks to be served, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packager.errors import InputError

Engine = Literal["vllm", "llama.cpp"]
EngineChoice = Literal["auto", "vllm", "llama.cpp"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServeRequest:
    """What a user asks for.

    Attributes:
        bundle: Its folder.
        host: Address to listen on.
        port: Likewise; 0 for any that is free.
        key_file: File with one API key a line, or None to make a key for this run.
        without_key: Whether everybody on this machine may ask, and nobody else.
        engine: Which engine, or `auto` for vLLM where it can be used and llama.cpp else.
        base: Folder of the base, if it is not where the bundle was made.
        vllm_python: Python in whose environment vLLM is installed, or None to look for one.
        engine_arguments: Further options for vLLM.
        log: File for what the engine prints, or None to keep the end of it only.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8000
    key_file: Path | None = None
    without_key: bool = False
    engine: EngineChoice = "auto"
    base: Path | None = None
    vllm_python: Path | None = None
    engine_arguments: tuple[str, ...] = ()
    log: Path | None = None


@dataclass(frozen=True)
class Endpoint:
    """A running server, as its users see it.

    Attributes:
        url: With `/v1`, as clients of OpenAI's want it.
        engine: What answers.
        models: Served names; of vLLM, the base comes first.
        chats: Those of them that take conversations.
        key_file: Where the API key stands, or None where none is asked.
        proven: Whether the running server has been compared with the release's proof.
    """

    url: str
    engine: Engine
    models: tuple[str, ...]
    chats: tuple[str, ...]
    key_file: Path | None
    proven: bool


def check_request(request: ServeRequest) -> None:
    """Refuses to open a server to others without a key.

    Raises:
        InputError: With what to give instead.
    """
    if request.without_key and request.key_file is not None:
        raise InputError(
            "two options contradict each other",
            where="--api-key-file, --insecure-no-auth",
            hint="leave one of them out",
        )
    if request.without_key and request.host not in _LOOPBACK:
        raise InputError(
            "a server without an API key answers this machine only",
            where="--insecure-no-auth",
            expected="--host 127.0.0.1",
            found=f"--host {request.host}",
            hint="give --api-key-file instead of --insecure-no-auth",
        )


def reachable_host(host: str) -> str:
    """Returns where this machine reaches a server that listens on `host`."""
    if host in ("", "0.0.0.0"):  # noqa: S104
        return "127.0.0.1"
    return "::1" if host == "::" else host


def endpoint_url(host: str, port: int) -> str:
    """Returns the address for clients on this machine."""
    name = reachable_host(host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/v1"
