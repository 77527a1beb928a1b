"""Talking to a running Ollama through its official client; import it only where that is wanted.

Nothing that the client or its HTTP library raises leaves this module: what leaves is an
`OllamaError`, or a `RefusedError` with the status of the answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import ollama

from packager.digest import OnBytes
from packager.errors import OllamaError
from packager.progress import Progress
from packager.publish.ollama_progress import Counter, Steps, clean_text, read_parts

ATTEMPTS = 3
_PAUSE_SECONDS = 0.5
# A large model takes minutes to load from a slow disk before its first answer.
_TIMEOUT = httpx.Timeout(1800, connect=10)
_NO_STATUS = -1


class RefusedError(OllamaError):
    """Ollama answered with an error.

    Args:
        what: Which request was refused.
        status: Of the answer; −1 where the error came within a stream.
        fields: As of `LorapackError`.
    """

    def __init__(self, what: str, *, status: int, **fields: str) -> None:
        super().__init__(what, **fields)
        self.status = status


class BrokenError(OllamaError):
    """The connection was cut before the answer was complete."""


class _Client(ollama.Client):  # type: ignore[misc]
    """The official client, with the requests that it has no methods for.

    Source: ollama-python 0.6.2, _client.py: `create_blob` neither asks whether a blob is there nor
    tells how far it is, and `create` knows no `requires`.
    """

    @property
    def address(self) -> str:
        return str(self._client.base_url).rstrip("/")

    @property
    def is_on_this_machine(self) -> bool:
        host = str(self._client.base_url.host)
        with suppress(ValueError):
            return ip_address(host).is_loopback
        return host == "localhost"

    def ask(self, method: str, path: str, **request: Any) -> Any:
        return self._request_raw(method, path, **request)

    def follow(self, path: str, document: Mapping[str, Any]) -> Iterator[Any]:
        status = ollama.ProgressResponse
        yield from self._request(status, "POST", path, json=document, stream=True)


class OllamaServer:
    """One running Ollama.

    Args:
        host: Its address; None for that of `OLLAMA_HOST`, or the default.

    Raises:
        OllamaError: That is no address.
    """

    def __init__(self, host: str | None = None) -> None:
        try:
            self._client = _connect(host)
        except (ValueError, httpx.InvalidURL) as problem:
            raise OllamaError(
                "this is not the address of an Ollama",
                where="OLLAMA_HOST",
                expected="such as 127.0.0.1:11434",
                found=str(problem)[:100],
                hint="set OLLAMA_HOST to where `ollama serve` listens, or unset it",
            ) from problem
        self.address = self._client.address

    def __enter__(self) -> OllamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read_version(self) -> str:
        """Returns the version, such as `0.33.0`.

        Raises:
            OllamaError: Nothing answers there, or something else than an Ollama.
        """
        with self._errors("tell its version"):
            return str(self._object("GET", "/api/version")["version"])

    def is_signed_in(self) -> bool | None:
        """Tells whether it may push to ollama.com; None where it does not know.

        Source: ollama v0.33.0-rc2, server/routes.go, WhoamiHandler: 401 where nobody is signed in.
        """
        try:
            with self._errors("tell who is signed in"):
                self._client.ask("POST", "/api/me")
        except RefusedError as refusal:
            return False if refusal.status == httpx.codes.UNAUTHORIZED else None
        return True

    def has_blob(self, digest: str) -> bool:
        """Tells whether it has a blob; `digest` is `sha256:<hex>`."""
        try:
            with self._errors("tell whether it has a blob"):
                self._client.ask("HEAD", f"/api/blobs/{digest}")
        except RefusedError as refusal:
            if refusal.status == httpx.codes.NOT_FOUND:
                return False
            raise
        return True

    def send_blob(self, path: Path, digest: str, size: int, on_bytes: OnBytes) -> None:
        """Sends a file; again from its start where the connection is cut, or Ollama stumbles.

        Raises:
            InputError: The file cannot be read.
            OllamaError: It was not taken, such as for another digest than its content's.
        """
        for attempt in range(1, ATTEMPTS + 1):
            told = Counter(on_bytes)
            try:
                with self._errors("take a blob"):
                    self._client.ask(
                        "POST",
                        f"/api/blobs/{digest}",
                        content=read_parts(path, told),
                        headers={"Content-Length": str(size)},
                    )
            except (BrokenError, RefusedError) as problem:
                status = getattr(problem, "status", httpx.codes.INTERNAL_SERVER_ERROR)
                if status < httpx.codes.INTERNAL_SERVER_ERROR or attempt == ATTEMPTS:
                    raise
                on_bytes(-told.total)
                time.sleep(_PAUSE_SECONDS * attempt)
            else:
                return

    def create(self, request: Mapping[str, Any], progress: Progress) -> None:
        """Makes a model of blobs that were sent.

        Args:
            request: The body of POST /api/create.
            progress: Told of what Ollama is doing.

        Raises:
            OllamaError: It was refused, or did not come to its end.
        """
        with self._errors("make the model"):
            self._follow("/api/create", request, progress)

    def push(self, name: str, progress: Progress) -> None:
        """Lets Ollama send a model to its registry.

        Raises:
            OllamaError: As of `create`.
        """
        with self._errors("push the model"):
            self._follow("/api/push", {"model": name}, progress)

    def show(self, name: str) -> dict[str, Any]:
        """Returns what Ollama knows of a model."""
        with self._errors("show the model"):
            return self._object("POST", "/api/show", json={"model": name})

    def chat(self, name: str, question: str, max_tokens: int) -> Any:
        """Asks a model one question, and lets go of it afterwards.

        Returns:
            The client's ChatResponse.
        """
        with self._errors("answer a question"):
            return self._client.chat(
                model=name,
                messages=[{"role": "user", "content": question}],
                options={"temperature": 0, "num_predict": max_tokens},
                keep_alive=0,
            )

    def _object(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        value = self._client.ask(method, path, **request).json()
        if not isinstance(value, dict):
            raise TypeError(f"{value!r:.80}")
        return value

    def _follow(self, path: str, document: Mapping[str, Any], progress: Progress) -> None:
        """Reads a stream of steps to its end, which has to be a success."""
        steps = Steps(progress)
        last = ""
        for step in self._client.follow(path, document):
            last = step.status or ""
            steps.tell(last, step.digest or "", step.total or 0, step.completed or 0)
        if last != "success":
            raise BrokenError(
                "Ollama stopped before it was done",
                where=self.address,
                expected="success as its last word",
                found=clean_text(last) or "nothing",
                hint="look into the log of `ollama serve`, then run again",
            )

    @contextmanager
    def _errors(self, task: str) -> Iterator[None]:
        try:
            yield
        except ollama.ResponseError as problem:
            raise RefusedError(
                f"Ollama would not {task}",
                status=problem.status_code,
                where=self.address,
                found=_status_text(problem),
                hint="look into the log of `ollama serve`, then run again",
            ) from problem
        except (httpx.ConnectError, httpx.ConnectTimeout, ConnectionError) as problem:
            raise OllamaError(
                "no Ollama answers",
                where=self.address,
                expected="one that was started with `ollama serve`",
                hint="start it: ollama serve; or do without one: --ollama-store DIR",
            ) from problem
        except httpx.HTTPError as problem:
            raise BrokenError(
                f"the connection to Ollama was cut before it could {task}",
                where=self.address,
                found=clean_text(str(problem)) or type(problem).__name__,
                hint="run again: blobs that arrived whole are not sent twice",
            ) from problem
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise OllamaError(
                "what answers there is no Ollama",
                where=self.address,
                found=clean_text(str(problem)),
                hint="set OLLAMA_HOST to where `ollama serve` listens",
            ) from problem


def _connect(host: str | None) -> _Client:
    """Returns a client that goes through no proxy to this machine, as Ollama's own does."""
    client = _Client(host, timeout=_TIMEOUT)
    if not client.is_on_this_machine:
        return client
    client.close()
    return _Client(host, timeout=_TIMEOUT, trust_env=False)


def _status_text(problem: Any) -> str:
    text = clean_text(str(problem.error))
    return text if problem.status_code == _NO_STATUS else f"{problem.status_code}: {text}"
