"""What a release's servers share, written once: options, gate, answers, containers, card."""

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
    Answers,
    Expected,
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
from packager.serving.path import neighbour_path, template_path
from packager.serving.value import ServingPlan
from packager.untrusted import resolve_inside
from packager.verify.proof import Proof

_GATE = "docker/gate"


def write_server(
    root: Path,
    plan: ReleasePlan,
    gathered: Gathered,
    proof: Proof,
    answers: Answers,
    progress: Progress,
) -> Iterator[FileEntry]:
    """Writes everything in the servers' folders that is no adapter's own.

    Args:
        root: Of the bundle; merged models are complete.
        plan: Of the release.
        gathered: The sources.
        proof: Of the release.
        answers: What it brought to light; of every adapter, or no server gets any.
        progress: Told of bytes.

    Yields:
        What was written, paths relative to `root`.

    Raises:
        InputError: A source file cannot be read, or a model fits on no number of GPUs.
        OutputError: The disk is full or fails.
    """
    server = plan.serving
    if server is None:
        return
    folder = root / FOLDER
    expected = _expect_all(server, proof, answers)
    texts = render_server(server, expected, gathered)
    texts[CARD_NAME] = _render_card(plan, server, proof, expected)
    for path, text in texts.items():
        write_text(folder / path, text)
        yield file_entry(root, f"{FOLDER}/{path}")
    source = gathered.ref.directory
    copies = {
        name: resolve_inside(source, name, where=str(source))
        for name in sorted(gathered.base.documents)
    }
    for item in (server, *server.neighbours):
        if item.base.baked:
            progress.stage(f"copy {item.base.name}", item.base.nbytes)
            copies = {**copies, **_baked_files(root, item, server, gathered)}
    for path, original in copies.items():
        copy_new(original, folder / path)
        progress.advance((folder / path).stat().st_size)
        yield file_entry(root, f"{FOLDER}/{path}")


def render_server(
    server: ServingPlan, expected: Mapping[str, Expected], gathered: Gathered
) -> dict[str, str]:
    """Returns every text of the servers' folders, the card apart, by its path.

    Args:
        server: The first.
        expected: What each of the servers has to answer, by what it loads; empty without a proof.
        gathered: The sources.

    Raises:
        InputError: A model fits on no number of GPUs.
    """
    texts = {}
    for item in (server, *server.neighbours):
        own = _render_own(item, expected.get(item.base.name))
        texts.update({f"{_below(item, server)}{path}": text for path, text in own.items()})
    for name in list_resources(_GATE):
        texts[f"{GATE_FOLDER}/{name.removeprefix(f'{_GATE}/')}"] = read_resource(name)
    has_notice = any(name.lower().startswith("notice") for name in gathered.base.documents)
    notice = notice_text(gathered.base.license)
    if notice is not None and not has_notice:
        texts[NOTICE_NAME] = notice
    return texts | render_container(server, proven=bool(expected))


def _below(item: ServingPlan, server: ServingPlan) -> str:
    """Where a server's folder begins within that of the first one."""
    return "" if item is server else f"{neighbour_path(item.base.name)}/"


def _render_own(server: ServingPlan, expected: Expected | None) -> dict[str, str]:
    """What one server is told."""
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
    return texts


def _baked_files(
    root: Path, item: ServingPlan, server: ServingPlan, gathered: Gathered
) -> dict[str, Path]:
    """Of a model that is part of its server's folder: where each file goes → where it is."""
    place = f"{_below(item, server)}{BASE_FOLDER}"
    if item.base.merged is None:
        source = gathered.ref.directory
        return {
            f"{place}/{name}": resolve_inside(source, name, where=str(source))
            for name in gathered.ref.names
        }
    folder = root / item.base.merged.folder
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {f"{place}/{path.relative_to(folder).as_posix()}": path for path in found}


def _expect_all(server: ServingPlan, proof: Proof, answers: Answers) -> dict[str, Expected]:
    """What each server has to answer, by what it loads; of all of them, or of none."""
    servers = (server, *server.neighbours)
    names = [name for item in servers for name in _proven_names(item)]
    if any(name not in answers for name in names):
        return {}
    return {item.base.name: _expect(item, proof, answers) for item in servers}


def _proven_names(server: ServingPlan) -> tuple[str, ...]:
    """The adapters that a server answers as, one way or the other."""
    if server.base.merged is not None:
        return (server.base.merged.adapter,)
    return tuple(adapter.name for adapter in server.adapters)


def _expect(server: ServingPlan, proof: Proof, answers: Answers) -> Expected:
    found = [answers[name] for name in _proven_names(server)]
    shared, own = found[0][:-1], (item[-1] for item in found)
    target = next(item for item in proof.targets if item.target == "vllm")
    assert target.behaviour is not None
    return Expected(
        schema_version=SCHEMA_VERSION,
        truth=f"base + adapter, PEFT {proof.versions.get('peft', 'unknown')}, float32",
        prompt_set=target.behaviour.prompt_set,
        served_dtype=server.base.dtype,
        models=(*shared, *own),
    )


def _render_card(
    plan: ReleasePlan, server: ServingPlan, proof: Proof, expected: Mapping[str, Expected]
) -> str:
    folded = (item.name for item in plan.targets if item.served is not None and item.served.folded)
    differences = {
        item.name: item.weights.delta_difference
        for item in proof.targets
        if item.target == "vllm" and item.weights is not None
    }
    return render_server_card(server, expected, folded=frozenset(folded), differences=differences)
