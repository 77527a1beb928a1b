"""The manifest `lorapack.json`: what a bundle holds and what it came from; writer and parser."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from packager.dtype import MERGEABLE
from packager.errors import BundleError, InputError
from packager.record import check_fields
from packager.untrusted import check_relative_name, parse_json_object

SCHEMA_VERSION = 1
MANIFEST_NAME = "lorapack.json"

Target = Literal["adapter", "merged", "ollama", "gguf-adapter", "vllm"]
Evidence = Literal["lock", "name-and-shape"]
"""How the base is known to be the one trained on: by a lock's digests, or only by fit."""


@dataclass(frozen=True)
class FileEntry:
    """One file with its content.

    Attributes:
        path: Relative POSIX path.
        size: In bytes.
        sha256: 64 lower-case hexadecimal digits.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class BaseRecord:
    """The exact base of a bundle.

    Attributes:
        repo: `org/name` on the Hub, or None for a local directory.
        commit: 40 hexadecimal digits, or None for a local directory.
        directory: Where the base lay on the releasing machine. Never published.
        digest: `sha256:<hex>` over the paths, sizes and sha256 of `files`.
        evidence: How it is known that the adapter was trained on this base.
        license: SPDX or Hub licence id.
        license_source: Where the id was read: a file of the base, or `--license`.
        gated: Whether the Hub asks for an agreement before download.
        architecture: As in `config.json`.
        files: Every file of the base that was used.
    """

    repo: str | None
    commit: str | None
    directory: str
    digest: str
    evidence: Evidence
    license: str
    license_source: str
    gated: bool
    architecture: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class AdapterRecord:
    """One adapter of a bundle: its name in the release and the bytes that it came from."""

    name: str
    directory: str
    digest: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class TargetRecord:
    """One emitted target.

    Attributes:
        target: Which.
        name: For which adapter.
        path: In which folder of the bundle.
        delta_difference: ‖ΔW' − ΔW‖ / ‖ΔW‖ of an adapter that is kept in another form than it was
            trained in.
    """

    target: Target
    name: str
    path: str
    delta_difference: float | None = None


@dataclass(frozen=True)
class Manifest:
    """The whole manifest.

    Attributes:
        schema_version: Of this document.
        tool: `lorapack` and every library that took part, with its version.
        created: UTC, ISO 8601.
        base: The exact base.
        adapters: Where the adapters came from.
        targets: What was emitted.
        files: Every file of the bundle but the manifest itself and `report/`.
        options: Choices that the weights depend on, such as `dtype`.
    """

    schema_version: int
    tool: dict[str, str]
    created: str
    base: BaseRecord
    adapters: tuple[AdapterRecord, ...]
    targets: tuple[TargetRecord, ...]
    files: tuple[FileEntry, ...]
    options: dict[str, str] = field(default_factory=dict)


def render_manifest(manifest: Manifest) -> str:
    """Returns the manifest as JSON text, stable and readable."""
    return json.dumps(asdict(manifest), ensure_ascii=False, indent=1) + "\n"


def parse_manifest(text: str | bytes, *, where: str) -> Manifest:
    """Parses `lorapack.json`.

    Raises:
        BundleError: Unknown schema, a missing or wrong field, or a path that leaves the bundle.
    """
    try:
        manifest = _manifest(parse_json_object(text, where=where, constants=False), where)
        _check(manifest, where)
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as problem:
        raise BundleError(
            "the manifest is damaged",
            where=where,
            found=str(problem)[:200],
            hint="copy the bundle again, or release it again",
        ) from problem
    return manifest


def _manifest(raw: dict[str, Any], where: str) -> Manifest:
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            "the bundle has another schema",
            where=where,
            expected=f"schema_version {SCHEMA_VERSION}",
            found=repr(version)[:40],
            hint="use the lorapack version that wrote it, or a newer one",
        )
    base = dict(raw["base"])
    base["files"] = parse_files(base["files"], where=where)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        tool=raw["tool"],
        created=raw["created"],
        base=BaseRecord(**base),
        adapters=tuple(
            AdapterRecord(**{**item, "files": parse_files(item["files"], where=where)})
            for item in raw["adapters"]
        ),
        targets=tuple(TargetRecord(**item) for item in raw["targets"]),
        files=parse_files(raw["files"], where=where),
        options=raw.get("options", {}),
    )


def parse_files(raw: list[dict[str, Any]], *, where: str) -> tuple[FileEntry, ...]:
    """Parses a list of files.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: Not such a list.
        UnsafeInputError: A path leads outside.
    """
    entries = tuple(FileEntry(**item) for item in raw)
    for entry in entries:
        check_fields(entry)
        check_relative_name(entry.path, where=where)
        if entry.size < 0:
            raise ValueError(f"size of {entry.path!r} is not a byte count")
        if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
            raise ValueError(f"sha256 of {entry.path!r} is not 64 hexadecimal digits")
    if len({entry.path for entry in entries}) != len(entries):
        raise ValueError("a path stands twice")
    return entries


def _check(manifest: Manifest, where: str) -> None:
    for record in (manifest, manifest.base, *manifest.adapters, *manifest.targets):
        check_fields(record)
    for target in manifest.targets:
        check_relative_name(target.path, where=where)
    for adapter in manifest.adapters:
        if "/" in check_relative_name(adapter.name, where=where):
            raise ValueError(f"adapter name {adapter.name!r}")
    if manifest.options.get("dtype", "F32") not in MERGEABLE:
        raise ValueError(f"dtype {manifest.options['dtype']!r}")
