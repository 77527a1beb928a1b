"""What a bundle holds that can be served, checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from packager.digest import differing_files, hash_files
from packager.errors import BaseError, BaseMismatchError, BundleError
from packager.manifest import MANIFEST_NAME, FileEntry, Manifest
from packager.modelfile import parse_create
from packager.serving.document import (
    BASE_FOLDER,
    GATE_NAME,
    SERVE_NAME,
    Flag,
    GateConfig,
    parse_gate,
    parse_serve_yaml,
    weights_folder,
)
from packager.serving.path import neighbour_path
from packager.untrusted import find_folder, read_bytes, read_text, resolve_inside

VLLM_FOLDER = "vllm"

_CREATE_NAME = "create.json"


@dataclass(frozen=True)
class VllmSource:
    """One of a bundle's servers: its `vllm/` folder, or that of a neighbour below it.

    Attributes:
        name: Of the neighbour; empty for the first server.
        folder: The folder.
        flags: Of `serve.yaml`.
        gate: Of `gate.json`.
        base: Folder of the weights where the server wants one beside it, else None: it takes the
            base from the Hub, at the commit that `serve.yaml` names.
        nbytes: Of the files that it loads.
        neighbours: The other servers, of the first one.
    """

    name: str
    folder: Path
    flags: Mapping[str, Flag]
    gate: GateConfig
    base: Path | None
    nbytes: int
    neighbours: tuple[VllmSource, ...] = ()

    @property
    def all_of_them(self) -> tuple[VllmSource, ...]:
        """Every server of the bundle, this first one last."""
        return (*self.neighbours, self)


@dataclass(frozen=True)
class GgufSource:
    """A merged model for llama.cpp.

    Attributes:
        name: Served name: the adapter's in the release.
        path: The file, or the first one of a split model.
    """

    name: str
    path: Path


def has_target(manifest: Manifest, target: str) -> bool:
    """Tells whether a bundle holds a target."""
    return any(record.target == target for record in manifest.targets)


def read_vllm_source(bundle: Path, manifest: Manifest, base: Path | None) -> VllmSource:
    """Reads what vLLM serves.

    Args:
        bundle: Its folder.
        manifest: Of the bundle.
        base: The base's folder, if it is not where the bundle was made.

    Raises:
        BundleError: A file is missing, altered or damaged.
        BaseError: The base is not there.
        BaseMismatchError: It is another one.
    """
    check_files(bundle, manifest, f"{VLLM_FOLDER}/")
    first = _read_server("", bundle, VLLM_FOLDER, manifest, base)
    neighbours = (
        _read_server(
            item.name, bundle, f"{VLLM_FOLDER}/{neighbour_path(item.name)}", manifest, base
        )
        for item in first.gate.neighbours
    )
    return replace(first, neighbours=tuple(neighbours))


def _read_server(
    name: str, bundle: Path, place: str, manifest: Manifest, base: Path | None
) -> VllmSource:
    folder = resolve_inside(bundle, place, where=MANIFEST_NAME)
    serve, gate = folder / SERVE_NAME, folder / GATE_NAME
    flags = parse_serve_yaml(read_text(serve), where=str(serve))
    config = parse_gate(read_bytes(gate), where=str(gate))
    merged = weights_folder(config)
    if merged is not None:
        found: Path | None = folder / BASE_FOLDER
        if not (folder / BASE_FOLDER).is_dir():
            check_files(bundle, manifest, f"{merged}/")
            found = (bundle / merged).absolute()
        files = [entry for entry in manifest.files if entry.path.startswith(f"{merged}/")]
    else:
        found = _find_base(folder, manifest, base, flags["model"] == BASE_FOLDER)
        files = list(manifest.base.files)
    return VllmSource(name, folder, flags, config, found, sum(entry.size for entry in files))


def read_gguf_sources(bundle: Path, manifest: Manifest) -> tuple[GgufSource, ...]:
    """Reads which GGUF models there are: of each adapter the default one.

    Raises:
        BundleError: A file is missing or altered, or a request for Ollama is damaged.
    """
    records = [record for record in manifest.targets if record.target == "ollama"]
    for record in records:
        check_files(bundle, manifest, f"{record.path}/")
    return tuple(GgufSource(record.name, _default_gguf(bundle / record.path)) for record in records)


def check_files(bundle: Path, manifest: Manifest, prefix: str) -> None:
    """Refuses files below a folder of the bundle that are not those of the manifest.

    Raises:
        BundleError: With the first few that differ.
    """
    wanted = [entry for entry in manifest.files if entry.path.startswith(prefix)]
    for entry in wanted:
        resolve_inside(bundle, entry.path, where=MANIFEST_NAME)
    _check_same(bundle, wanted)


def _check_same(bundle: Path, wanted: list[FileEntry]) -> None:
    missing = [entry.path for entry in wanted if not (bundle / entry.path).is_file()]
    there = [entry.path for entry in wanted if entry.path not in missing]
    differing = missing or list(differing_files(wanted, hash_files(bundle, there)))
    if differing:
        raise BundleError(
            "the bundle is not as it was released",
            where=str(bundle),
            expected="the files of its manifest",
            found=", ".join(differing[:5]) + (" missing" if missing else " altered"),
            hint=f"look closer with: lorapack verify {bundle} --level files",
        )


def _find_base(folder: Path, manifest: Manifest, given: Path | None, needed: bool) -> Path | None:
    if not needed:
        return None
    if (folder / BASE_FOLDER).is_dir():
        return folder / BASE_FOLDER
    record = manifest.base
    place = given or find_folder(record.directory)
    if place is None or not place.is_dir():
        raise BaseError(
            "the base is not where the bundle was made from",
            where=str(given or record.directory),
            expected=record.digest,
            hint="say where it is with --base",
        )
    names = [entry.path for entry in record.files if (place / entry.path).is_file()]
    differing = differing_files(record.files, hash_files(place, names))
    if differing:
        raise BaseMismatchError(
            f"{len(differing)} files of the base differ from those that the bundle was made from",
            where=str(place),
            expected=record.digest,
            found=", ".join(list(differing)[:5]),
            hint="give the base that it was made from with --base",
        )
    return place.absolute()


def _default_gguf(folder: Path) -> Path:
    create = folder / _CREATE_NAME
    _, files = parse_create(read_text(create), where=str(create))
    if not files:
        raise BundleError(
            "a request for Ollama names no file",
            where=str(create),
            hint="copy the bundle again, or release it again",
        )
    return resolve_inside(folder, min(files), where=str(create))
