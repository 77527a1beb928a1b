"""Starting an engine on a bundle, from the manifest to a proven endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from packager.bundle import read_manifest
from packager.manifest import Manifest
from packager.progress import Progress
from packager.serve.child import start_child
from packager.serve.engine import Vllm, choose_engine, find_vllm
from packager.serve.ggufproof import expect_gguf
from packager.serve.group import Group, Member
from packager.serve.launch import Launch, prepare_llama_launch, prepare_vllm_launches
from packager.serve.port import claim_port
from packager.serve.ready import wait_ready
from packager.serve.request import (
    Endpoint,
    Engine,
    ServeRequest,
    check_request,
    endpoint_url,
    reachable_host,
)
from packager.serve.source import has_target, read_gguf_sources, read_vllm_source
from packager.serve.workplace import Workplace, make_workplace
from packager.serving.document import GateConfig


@dataclass(frozen=True)
class Server:
    """A server that is ready, or several that are one to its users.

    Attributes:
        endpoint: As its users see it.
        group: The processes.
    """

    endpoint: Endpoint
    group: Group

    def wait(self) -> None:
        """Waits as long as all of it runs.

        Raises:
            ProcessError: A process ended by itself.
        """
        raise self.group.wait().error()


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
    port = claim_port(request.host, request.port)
    with make_workplace(request) as workplace:
        launches, gate = _prepare(engine, vllm, request, manifest, workplace, port, progress)
        with start_all(launches, progress) as (group, told):
            endpoint = Endpoint(
                url=endpoint_url(request.host, port),
                engine=engine,
                models=tuple(model.name for model in gate.all_models),
                chats=tuple(model.name for model in gate.all_models if model.chat),
                key_file=workplace.key_file,
                proven=told.get("proven") is True,
            )
            yield Server(endpoint, group)


def _prepare(
    engine: Engine,
    vllm: Vllm | None,
    request: ServeRequest,
    manifest: Manifest,
    workplace: Workplace,
    port: int,
    progress: Progress,
) -> tuple[tuple[Launch, ...], GateConfig]:
    progress.say(f"checking the files of {request.bundle}")
    if engine == "llama.cpp":
        ggufs = read_gguf_sources(request.bundle, manifest)
        expected = expect_gguf(request.bundle, manifest, ggufs)
        if expected is None:
            progress.say(
                "llama.cpp is not asked again what the proof asked: that takes the answers of "
                "--target vllm, and the figures of the report, in the same bundle"
            )
        launch, gate = prepare_llama_launch(ggufs, expected, request, workplace, port)
        return (launch,), gate
    assert vllm is not None
    source = read_vllm_source(request.bundle, manifest, request.base)
    return prepare_vllm_launches(source, vllm, request, workplace, port), source.gate


@contextmanager
def start_all(
    launches: tuple[Launch, ...], progress: Progress
) -> Iterator[tuple[Group, dict[str, Any]]]:
    """Starts one server after the other, each once the one before is ready.

    Two that measure the memory of one GPU at the same time would each count the other's as their
    own. Leaving the context stops them the other way round: what the last one has handed on is
    finished before the others end.

    Yields:
        The servers, and what the last one told of itself when it was ready.
    """
    group, told = Group(), {}
    with ExitStack() as started:
        for launch in launches:
            progress.say(f"starting {launch.what}")
            child = started.enter_context(
                start_child(
                    launch.command,
                    environment=launch.environment,
                    directory=launch.workplace.home,
                    log=launch.workplace.log,
                )
            )
            group.members.append(Member(launch.name, child))
            told = wait_ready(group, reachable_host(launch.host), launch.port, progress)
        yield group, told
