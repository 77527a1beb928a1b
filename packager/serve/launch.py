"""How the servers of a bundle are started: commands, environments, places."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packager.resource import resource_folder
from packager.serve.engine import Vllm
from packager.serve.llama import prepare_llama
from packager.serve.memory import KV_FLAG, KV_VARIABLE, share_kv_cache
from packager.serve.port import LOOPBACK, free_ports
from packager.serve.request import ServeRequest
from packager.serve.source import GgufSource, VllmSource
from packager.serve.workplace import Workplace, link_files
from packager.serving.answer import Expected
from packager.serving.document import GateConfig

GATE_FOLDER = "docker/gate"

_MEMORY_FLAGS = (KV_FLAG, "--gpu-memory-utilization")
_KEPT = (
    "LORAPACK_ALLOWED_ORIGINS", "LORAPACK_MAX_BODY_BYTES", "LORAPACK_MAX_CONCURRENCY",
    "LORAPACK_METRICS_KEY_FILE",
)  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One process to start.

    Attributes:
        name: The model that it alone serves; empty for the one that is talked to.
        what: Engine and models, for people.
        command: Program and arguments.
        environment: All of its environment.
        workplace: Where it runs, and where what it prints goes.
        host: Where it listens.
        port: Likewise.
    """

    name: str
    what: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    workplace: Workplace
    host: str
    port: int


def prepare_llama_launch(
    sources: Sequence[GgufSource],
    expected: Expected | None,
    request: ServeRequest,
    workplace: Workplace,
    port: int,
) -> tuple[Launch, GateConfig]:
    """Puts files in place; returns how the one process is started, and what its gate goes by."""
    command, gate = prepare_llama(sources, expected, workplace.home, request.host, port)
    environment = _environment(request, workplace) | {"PYTHONPATH": _own_path()}
    if expected is None:
        environment["LORAPACK_ALLOW_UNPROVEN"] = "1"
    what = f"llama.cpp with {', '.join(source.name for source in sources)}"
    return Launch("", what, command, environment, workplace, request.host, port), gate


def prepare_vllm_launches(
    source: VllmSource, vllm: Vllm, request: ServeRequest, workplace: Workplace, port: int
) -> tuple[Launch, ...]:
    """Puts files in place, and returns how each server is started, in that order.

    The neighbours come first: the last one, which is talked to, is ready only when they are.

    Raises:
        InputError: The environment contradicts itself.
    """
    servers = source.all_of_them
    ports = (*free_ports(len(source.neighbours), taken=port), port)
    places = [workplace.beside(server.name) if server.name else workplace for server in servers]
    shared = _environment(request, workplace)
    memory = _memory_flags(vllm, request, servers)
    if KV_FLAG in memory:
        # It would take the option's place.
        shared.pop(KV_VARIABLE, None)
    launches = []
    for server, place, number in zip(servers, places, ports, strict=True):
        link_files(place.home, server.folder, server.base)
        host = LOOPBACK if server.name else request.host
        command = (
            str(vllm.python), "-m", "lorapack_gate.start",
            "--host", host, "--port", str(number),
            # On a processor, compiling takes longer than it saves.
            *(("--enforce-eager",) if vllm.on_cpu else ()),
            *memory,
            *request.engine_arguments,
        )  # fmt: skip
        environment = {**shared, "LORAPACK_HOME": str(place.home)}
        names = ", ".join(model.name for model in server.gate.models)
        what = f"vLLM {vllm.version} with {names}; this takes about a minute"
        launches.append(Launch(server.name, what, command, environment, place, host, number))
    neighbours = ",".join(
        f"{launch.name}=http://{LOOPBACK}:{launch.port}" for launch in launches if launch.name
    )
    last = launches[-1]
    told = {**last.environment, "LORAPACK_NEIGHBOURS": neighbours}
    return (*launches[:-1], replace(last, environment=told))


def _memory_flags(
    vllm: Vllm, request: ServeRequest, servers: Sequence[VllmSource]
) -> tuple[str, ...]:
    """Returns the options about memory; what the user gives is left alone."""
    given = {argument.partition("=")[0].replace("_", "-") for argument in request.engine_arguments}
    if not vllm.on_cpu or given.intersection(_MEMORY_FLAGS):
        return ()
    weights = sum(server.nbytes for server in servers)
    return KV_FLAG, str(share_kv_cache(os.environ, weights, len(servers)))


def _environment(request: ServeRequest, workplace: Workplace) -> dict[str, str]:
    """Returns this process's environment with what the gate is told.

    The engine finds the gate of this very package, and not one from the bundle.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("LORAPACK_")}
    ours |= {name: os.environ[name] for name in _KEPT if name in os.environ}
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
    }


def _own_path() -> str:
    """Returns PYTHONPATH for an engine that runs in this very environment."""
    own = (str(resource_folder(GATE_FOLDER)), str(Path(__file__).resolve().parents[2]))
    return os.pathsep.join(filter(None, (*own, os.environ.get("PYTHONPATH"))))
