"""Starting an engine on a bundle, from the manifest to a proven endpoint."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.bundle import read_manifest
from packager.errors import InputError
from packager.manifest import Manifest
from packager.progress import Progress
from packager.resource import resource_folder
from packager.serve.child import Child, start_child
from packager.serve.engine import Vllm, choose_engine, find_vllm
from packager.serve.llama import prepare_llama
from packager.serve.ready import stopped_early, wait_ready
from packager.serve.request import (
    Endpoint,
    Engine,
    ServeRequest,
    check_request,
    endpoint_url,
    reachable_host,
)
from packager.serve.source import (
    VllmSource,
    has_target,
    read_gguf_sources,
    read_vllm_source,
)
from packager.serve.workplace import Workplace, link_files, make_workplace
from packager.serving.document import GateConfig

GATE_FOLDER = "docker/gate"


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        endpoint: As its users see it.
        child: Its process.
    """

    endpoint: Endpoint
    child: Child

    def wait(self) -> None:
        """Waits as long as it runs.

        Raises:
            ProcessError: It ended by itself.
        """
        self.child.wait()
        raise stopped_early(self.child)


@dataclass(frozen=True)
class _Launch:
    """How an engine is started: command and gate, once its files are in place."""

    command: tuple[str, ...]
    gate: GateConfig
    environment: Mapping[str, str]


@contextmanager
def serve_bundle(request: ServeRequest, progress: Progress) -> Iterator[Server]:
    """Serves a bundle; leaving the context stops everything that was started.

    Args:
        request: What is asked for.
        progress: Told of what happens until the server is ready.

    Yields:
        The server, once base and adapters have answered as in the proof.

    Raises:
        InputError: The request contradicts itself, or nothing can serve the bundle here.
        BundleError: No bundle, or it is not as it was released.
        BaseError: The base is not there, or another one.
        ProcessError: The engine cannot be started, or ends.
        ProofError: The engine answers something else than was proven.
    """
    check_request(request)
    manifest = read_manifest(request.bundle)
    vllm = None if request.engine == "llama.cpp" else find_vllm(request.vllm_python)
    engine = choose_engine(
        request.engine,
        vllm,
        for_vllm=has_target(manifest, "vllm"),
        for_llama=has_target(manifest, "ollama"),
    )
    port = _claim_port(request.host, request.port)
    with make_workplace(request) as workplace:
        launch = _prepare(engine, vllm, request, manifest, workplace, port, progress)
        with start_child(
            launch.command,
            environment=_environment(request, workplace, launch.environment),
            directory=workplace.home,
            log=workplace.log,
        ) as child:
            told = wait_ready(child, reachable_host(request.host), port, progress)
            models = launch.gate.models
            endpoint = Endpoint(
                url=endpoint_url(request.host, port),
                engine=engine,
                models=tuple(model.name for model in models),
                chats=tuple(model.name for model in models if model.chat),
                key_file=workplace.key_file,
                proven=told.get("proven") is True,
            )
            yield Server(endpoint, child)


def _prepare(
    engine: Engine,
    vllm: Vllm | None,
    request: ServeRequest,
    manifest: Manifest,
    workplace: Workplace,
    port: int,
    progress: Progress,
) -> _Launch:
    progress.say(f"checking the files of {request.bundle}")
    if engine == "llama.cpp":
        ggufs = read_gguf_sources(request.bundle, manifest)
        progress.say(f"starting llama.cpp with {', '.join(model.name for model in ggufs)}")
        command, gate = prepare_llama(ggufs, workplace.home, request.host, port)
        # What these files answer was proven when they were made; llama.cpp is asked nothing again.
        unproven = {"LORAPACK_ALLOW_UNPROVEN": "1", "PYTHONPATH": _own_path()}
        return _Launch(command, gate, unproven)
    assert vllm is not None
    source = read_vllm_source(request.bundle, manifest, request.base)
    link_files(workplace.home, source.folder, source.base)
    progress.say(f"starting vLLM {vllm.version} with {_names(source)}; this takes about a minute")
    command = (
        str(vllm.python), "-m", "lorapack_gate.start",
        "--host", request.host, "--port", str(port),
        # On a processor, compiling takes longer than it saves.
        *(("--enforce-eager",) if vllm.on_cpu else ()),
        *request.engine_arguments,
    )  # fmt: skip
    return _Launch(command, source.gate, {})


def _names(source: VllmSource) -> str:
    return ", ".join(model.name for model in source.gate.models)


def _environment(
    request: ServeRequest, workplace: Workplace, further: Mapping[str, str]
) -> dict[str, str]:
    """Returns this process's environment with what the gate is told.

    The engine finds the gate of this very package, and not one from the bundle.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LORAPACK_")}
    limits = ("LORAPACK_MAX_BODY_BYTES", "LORAPACK_MAX_CONCURRENCY", "LORAPACK_METRICS_KEY_FILE")
    ours |= {name: os.environ[name] for name in limits if name in os.environ}
    key = workplace.key_file
    return {
        "VLLM_NO_USAGE_STATS": "1",
        **ours,
        "PYTHONPATH": str(resource_folder(GATE_FOLDER)),
        # As -P, which Python 3.10 does not know: modules do not come from the working directory.
        "PYTHONSAFEPATH": "1",
        "LORAPACK_HOME": str(workplace.home),
        **({} if key is None else {"LORAPACK_API_KEY_FILE": str(key)}),
        **({"LORAPACK_INSECURE_NO_AUTH": "1"} if request.without_key else {}),
        **further,
    }


def _own_path() -> str:
    """Returns PYTHONPATH for an engine that runs in this very environment."""
    own = (str(resource_folder(GATE_FOLDER)), str(Path(__file__).resolve().parents[2]))
    return os.pathsep.join(filter(None, (*own, os.environ.get("PYTHONPATH"))))


def _claim_port(host: str, port: int) -> int:
    """Returns a port that can be listened on: the given one, or for 0 any.

    Raises:
        InputError: Somebody listens there already, or the address is not this machine's.
    """
    try:
        # A name, such as localhost, may stand for several addresses; the first one counts.
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as problem:
        raise InputError(
            "there is no listening there",
            where=f"{host} port {port}",
            found=problem.strerror or "an error of the system",
            hint="give another --port, or --port 0 for any that is free",
        ) from problem
