"""What the adapters of a server share, written once: options, gate, answers, containers, card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from packager.bundle import copy_new, write_text
from packager.container import render_container
from packager.emit.merged import file_entry
from packager.filekind import CARD_NAME
from packager.gather import Gathered
from packager.manifest import FileEntry
from packager.obligation import notice_text
from packager.plan import ReleasePlan
from packager.plan.layout import NOTICE_NAME
from packager.plan.serving import FOLDER
from packager.progress import Progress
from packager.resource import list_resources, read_resource
from packager.servercard import render_server_card
from packager.serving.answer import (
    EXPECTED_NAME,
    SCHEMA_VERSION,
    Expected,
    ExpectedModel,
    render_expected,
)
from packager.serving.document import (
    BASE_FOLDER,
    GATE_FOLDER,
    GATE_NAME,
    SERVE_NAME,
    gate_config,
    launch_flags,
    render_gate,
    render_serve_yaml,
)
from packager.serving.path import template_path
from packager.serving.value import ServingPlan
from packager.untrusted import resolve_inside
from packager.verify.proof import Proof

Answers = Mapping[str, tuple[ExpectedModel, ExpectedModel]]
"""Adapter → what the base, and what the adapter has to answer."""

_GATE = "docker/gate"


def write_server(
    root: Path,
    plan: ReleasePlan,
    gathered: Gathered,
    proof: Proof,
    answers: Answers,
    progress: Progress,
) -> Iterator[FileEntry]:
    """Writes everything in a server's folder that is no adapter's own.

    Args:
        root: Of the bundle.
        plan: Of the release.
        gathered: The sources.
        proof: Of the release.
        answers: What it brought to light; of every adapter, or the server gets none.
        progress: Told of bytes.

    Yields:
        What was written, paths relative to `root`.

    Raises:
        InputError: A source file cannot be read, or the base fits on no number of GPUs.
        OutputError: The disk is full or fails.
    """
    server = plan.serving
    if server is None:
        return
    folder = root / FOLDER
    expected = _expect(server, proof, answers)
    texts = render_server(server, expected, gathered)
    texts[CARD_NAME] = _render_card(plan, server, proof, expected)
    for path, text in texts.items():
        write_text(folder / path, text)
        yield file_entry(root, f"{FOLDER}/{path}")
    copies = {name: name for name in sorted(gathered.base.documents)}
    if server.base.baked:
        progress.stage("copy the base", server.base.nbytes)
        copies |= {f"{BASE_FOLDER}/{name}": name for name in gathered.ref.names}
    source = gathered.ref.directory
    for path, name in copies.items():
        copy_new(resolve_inside(source, name, where=str(source)), folder / path)
        progress.advance((folder / path).stat().st_size)
        yield file_entry(root, f"{FOLDER}/{path}")


def render_server(
    server: ServingPlan, expected: Expected | None, gathered: Gathered
) -> dict[str, str]:
    """Returns every text of a server's folder, its card apart, by its path.

    Raises:
        InputError: The base fits on no number of GPUs.
    """
    answers = None if expected is None else EXPECTED_NAME
    texts = {
        SERVE_NAME: render_serve_yaml(launch_flags(server), server.vllm_version),
        GATE_NAME: render_gate(gate_config(server, answers)),
    }
    if expected is not None:
        texts[EXPECTED_NAME] = render_expected(expected)
    for adapter in server.adapters:
        if adapter.template is not None:
            texts[template_path(adapter.name)] = adapter.template
    for name in list_resources(_GATE):
        texts[f"{GATE_FOLDER}/{name.removeprefix(f'{_GATE}/')}"] = read_resource(name)
    has_notice = any(name.lower().startswith("notice") for name in gathered.base.documents)
    notice = notice_text(gathered.base.license)
    if notice is not None and not has_notice:
        texts[NOTICE_NAME] = notice
    return texts | render_container(server, proven=expected is not None)


def _expect(server: ServingPlan, proof: Proof, answers: Answers) -> Expected | None:
    pairs = [answers[adapter.name] for adapter in server.adapters if adapter.name in answers]
    if len(pairs) < len(server.adapters):
        return None
    target = next(item for item in proof.targets if item.target == "vllm")
    assert target.behaviour is not None
    return Expected(
        schema_version=SCHEMA_VERSION,
        truth=f"base + adapter, PEFT {proof.versions.get('peft', 'unknown')}, float32",
        prompt_set=target.behaviour.prompt_set,
        served_dtype=server.base.dtype,
        models=(pairs[0][0], *(adapter for _, adapter in pairs)),
    )


def _render_card(
    plan: ReleasePlan, server: ServingPlan, proof: Proof, expected: Expected | None
) -> str:
    folded = (item.name for item in plan.targets if item.served is not None and item.served.folded)
    differences = {
        item.name: item.weights.delta_difference
        for item in proof.targets
        if item.target == "vllm" and item.weights is not None
    }
    return render_server_card(server, expected, folded=frozenset(folded), differences=differences)
