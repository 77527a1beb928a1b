"""The models for Ollama that a bundle holds: one for each quant of each adapter."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packager.errors import BundleError, OllamaError
from packager.manifest import FileEntry, Manifest, TargetRecord
from packager.modelfile import Modelfile, parse_create, render_create
from packager.publish.ollama_gguf import GgufHeader, read_gguf_header
from packager.publish.ollama_name import (
    DEFAULT_TAG,
    ModelName,
    check_name,
    parse_model_name,
)
from packager.publish.plan import target_files
from packager.untrusted import read_text

_DEFAULT_REQUEST = "create.json"
_QUANT_REQUEST = re.compile(r"create\.(.+)\.json")
_SPLIT_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class BundledModel:
    """One model that can be given to an Ollama.

    Attributes:
        target: The adapter's name in the release.
        quant: Such as `Q4_K_M`.
        is_default: Whether it is the one for people who name none.
        folder: Of the target, on the disk.
        files: The GGUF, or its parts in order; paths within `folder`.
        modelfile: How it is made.
        header: Of the first file.
    """

    target: str
    quant: str
    is_default: bool
    folder: Path
    files: tuple[FileEntry, ...]
    modelfile: Modelfile
    header: GgufHeader

    @property
    def nbytes(self) -> int:
        """Size of its files, in bytes."""
        return sum(entry.size for entry in self.files)

    def request(self, name: str) -> dict[str, Any]:
        """Returns the body of POST /api/create that makes it under a name."""
        digests = {entry.path: f"sha256:{entry.sha256}" for entry in self.files}
        return dict(json.loads(render_create(self.modelfile, digests, model=name)))


def read_ollama_models(bundle: Path, manifest: Manifest) -> tuple[BundledModel, ...]:
    """Reads what a checked bundle has for Ollama, in the manifest's order, the default first.

    Raises:
        OllamaError: Nothing in the bundle is for Ollama.
        BundleError: A request is missing or damaged, or names a file that the manifest does not.
        InputError: A file is not a GGUF.
    """
    targets = [record for record in manifest.targets if record.target == "ollama"]
    if not targets:
        raise OllamaError(
            "nothing in this bundle is for Ollama",
            where=str(bundle),
            expected="an ollama target",
            found=", ".join(sorted({record.target for record in manifest.targets})) or "no target",
            hint="release again with --target ollama",
        )
    return tuple(model for record in targets for model in _read_target(bundle, manifest, record))


def choose_names(
    models: tuple[BundledModel, ...], name: ModelName | None
) -> tuple[tuple[ModelName, BundledModel], ...]:
    """Returns which name gets which model, in order of making: `latest` comes last.

    Without a tag every quant gets a tag of its own, and the default one `latest` besides. A tag
    that is a quant chooses it; any other tag is for the default quant. With several adapters in
    the bundle each one's name becomes part of the model's.

    Args:
        models: Of `read_ollama_models`.
        name: What the user asked for, or None for the adapters' own names.

    Raises:
        OllamaError: A name would not be taken by Ollama.
    """
    several = len({model.target for model in models}) > 1
    chosen: list[tuple[ModelName, BundledModel]] = []
    for target in dict.fromkeys(model.target for model in models):
        own = [model for model in models if model.target == target]
        base = _name_of(target, name, several=several)
        tag = base.tag
        if tag is None:
            chosen += [(base.tagged(model.quant), model) for model in own]
            chosen += [(base.tagged(DEFAULT_TAG), model) for model in own if model.is_default]
        else:
            fitting = [model for model in own if model.quant.lower() == tag.lower()]
            chosen.append((base, (fitting or own)[0]))
    return tuple(chosen)


def _name_of(target: str, name: ModelName | None, *, several: bool) -> ModelName:
    if name is None:
        return parse_model_name(target, where="the adapter's name")
    if not several:
        return name
    return check_name(replace(name, model=f"{name.model}-{target}"), where="the adapter's name")


def _read_target(
    bundle: Path, manifest: Manifest, record: TargetRecord
) -> tuple[BundledModel, ...]:
    folder = bundle / record.path
    entries = {entry.path: entry for entry in target_files(manifest, record)}
    requests = {found[1]: name for name in entries if (found := _QUANT_REQUEST.fullmatch(name))}
    default = _read_model(record.name, "", folder, entries, _DEFAULT_REQUEST)
    models = [
        _read_model(record.name, quant, folder, entries, name) for quant, name in requests.items()
    ] or [replace(default, quant=_quant_of(record.name, default.files[0].path))]
    marked = [replace(model, is_default=model.files == default.files) for model in models]
    if sum(model.is_default for model in marked) != 1:
        quant = _quant_of(record.name, default.files[0].path)
        raise _missing(folder / f"create.{quant}.json")
    return tuple(sorted(marked, key=lambda model: not model.is_default))


def _read_model(
    target: str, quant: str, folder: Path, entries: dict[str, FileEntry], name: str
) -> BundledModel:
    path = folder / name
    if name not in entries:
        raise _missing(path)
    modelfile, digests = parse_create(read_text(path), where=str(path))
    files = tuple(
        _check_entry(folder, entries, name, digest) for name, digest in sorted(digests.items())
    )
    if not files:
        raise BundleError(
            "a request names no file of the bundle",
            where=str(path),
            found=modelfile.from_[:80],
            hint="release the bundle again",
        )
    header = read_gguf_header(folder / files[0].path)
    return BundledModel(target, quant, False, folder, files, modelfile, header)


def _check_entry(folder: Path, entries: dict[str, FileEntry], name: str, digest: str) -> FileEntry:
    if name not in entries:
        raise _missing(folder / name)
    if digest != f"sha256:{entries[name].sha256}":
        raise BundleError(
            "a request names another file than the bundle has",
            where=str(folder / name),
            expected=digest,
            found=f"sha256:{entries[name].sha256}",
            hint="release the bundle again",
        )
    return entries[name]


def _quant_of(target: str, file_name: str) -> str:
    """Takes the quant out of `<target>-<quant>.gguf`, or of the name of a part of it."""
    stem = _SPLIT_SUFFIX.sub("", file_name.removesuffix(".gguf"))
    return stem.removeprefix(f"{target}-")


def _missing(path: Path) -> BundleError:
    return BundleError(
        "a file of the ollama target is missing",
        where=str(path),
        hint="release the bundle again with --target ollama",
    )
