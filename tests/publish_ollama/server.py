"""An Ollama on 127.0.0.1 that the real client can talk to; it keeps what it gets.

Spoken: version, me, blobs, create, show, chat, push, with the answers and error texts of ollama
v0.33.0-rc2 (server/routes.go, server/create.go). Parameters are shown by Go itself. Chat is
answered by llama.cpp where `runs_models` is set, else by a fixed sentence.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gguf

from tests.publish_ollama.go import ask_oracle
from tests.publish_ollama.wire import Fault, Handler, RefusedError, Request, Server

_DIGEST = re.compile(r"sha256:[0-9a-fA-F]{64}")
_NAME = re.compile(
    r"(?:(?:[\w.:-]+/)?[A-Za-z0-9_][\w-]*/)?[A-Za-z0-9_][\w.-]*(?::[\w.-]+)?", re.ASCII
)


@dataclass
class LoopbackOllama:
    """Use it as a context manager.

    Attributes:
        root: Where blobs lie.
        oracle: Go's program.
        version: What it says to be.
        signed_in: Whether somebody is.
        runs_models: Whether llama.cpp answers.
        template: Shown for every model instead of its own.
        changes: Fields of /api/show that are not what they should be.
        reply: The message and its end where llama.cpp does not answer.
        models: Name → what was asked for.
        pushed: Names, in order.
    """

    root: Path
    oracle: Path
    version: str = "0.33.0"
    signed_in: bool = True
    runs_models: bool = False
    template: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    reply: dict[str, Any] = field(
        default_factory=lambda: {
            "message": {"role": "assistant", "content": "Arr."},
            "done_reason": "stop",
        }
    )
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    pushed: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    _faults: list[Fault] = field(default_factory=list)

    def __enter__(self) -> Self:
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.ollama = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, route: str, **fault: Any) -> None:
        self._faults.append(Fault(route, **fault))

    def take(self, method: str, route: str) -> Fault | None:
        for fault in self._faults:
            if fault.route == route and fault.method in ("", method) and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def blob(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise RefusedError(400, "invalid digest format")
        return self.root / "blobs" / digest.replace(":", "-")

    def asked(self, route: str, method: str = "") -> list[Request]:
        return [
            item for item in self.requests if item.route == route and method in ("", item.method)
        ]

    def create(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Checks like CreateHandler, then yields the lines of its stream."""
        name = request.get("model") or ""
        if not _NAME.fullmatch(name):
            raise RefusedError(400, "invalid model name")
        files = request.get("files")
        if not files:
            raise RefusedError(400, "neither 'from' or 'files' was specified")
        for digest in files.values():
            path = self.blob(digest)
            if not path.exists():
                raise RefusedError(500, f"stat {path}: no such file or directory")
            if path.read_bytes()[:4] != b"GGUF":
                raise RefusedError(400, "supplied file was not in GGUF format")
        yield {"status": "parsing GGUF"}
        for digest in files.values():
            yield {"status": f"using existing layer {digest}"}
        yield {"status": "writing manifest"}
        self.models[name] = request
        yield {"status": "success"}

    def show(self, document: dict[str, Any]) -> dict[str, Any]:
        """What GetModelInfo makes of a request: Jinja is shown where no Go template was given."""
        name = document["model"]
        if name not in self.models:
            raise RefusedError(404, f"model '{name}' not found")
        request = self.models[name]
        level, jinja = read_gguf(self.weights(name))
        parameters = ask_oracle(self.oracle, "show", [request.get("parameters", {})])
        return {
            "license": "\n".join(request.get("license", [])),
            "system": request.get("system", ""),
            "template": self.template or request.get("template") or jinja,
            "parameters": json.loads(parameters),
            "messages": request.get("messages", []),
            "details": {"format": "gguf", "quantization_level": level},
            "model_info": {},
            **self.changes,
        }

    def weights(self, name: str) -> Path:
        return self.blob(min(self.models[name]["files"].items())[1])

    def chat(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["model"] not in self.models:
            raise RefusedError(404, f"model '{request['model']}' not found")
        self.chats.append(request)
        reply = self.reply
        if self.runs_models:
            said = run_llama(self.weights(request["model"]), request)["choices"][0]
            message = {"role": "assistant", "content": said["message"]["content"]}
            reply = {"message": message, "done_reason": said["finish_reason"]}
        return {"model": request["model"], "done": True, **reply}

    def push(self, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        name = document["model"]
        if name not in self.models:
            raise RefusedError(404, "couldn't retrieve manifest")
        size = self.weights(name).stat().st_size
        yield {"status": "retrieving manifest"}
        for done in (0, size // 2, size):
            digest = f"sha256:{self.weights(name).name.partition('-')[2]}"
            status = f"pushing {digest[7:19]}"
            yield {"status": status, "digest": digest, "total": size, "completed": done}
        yield {"status": "pushing manifest"}
        self.pushed.append(name)
        yield {"status": "success"}


@cache
def read_gguf(path: Path) -> tuple[str, str]:
    """Returns the mixture and the chat template, as the gguf package reads them."""
    fields = gguf.GGUFReader(path).fields
    kind = gguf.LlamaFileType(fields["general.file_type"].contents())
    return kind.name.removeprefix("MOSTLY_"), fields["tokenizer.chat_template"].contents()


def run_llama(weights: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Lets llama.cpp answer, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.publish_ollama.speak", str(weights)],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).resolve().parents[2],
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))
