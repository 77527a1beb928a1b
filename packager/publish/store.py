"""Publishing a bundle into Ollama's store on the disk, without a server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from packager.bundle import read_manifest
from packager.progress import Progress, Silent
from packager.publish.check import check_bundle
from packager.publish.ollama_bundle import choose_names, read_ollama_models
from packager.publish.ollama_name import ModelName, parse_model_name
from packager.publish.store_folder import StoreFolder
from packager.publish.store_image import Blob, Image, make_image
from packager.publish.store_state import (
    State,
    check_room,
    check_store,
    manifest_path,
    read_blob_state,
    read_manifest_state,
)

Drafts = list[tuple[ModelName, Image]]
"""Names and models, in order of writing."""


@dataclass(frozen=True)
class StoredBlob:
    """One blob of a model, and how it stood in the store before."""

    media_type: str
    digest: str
    size: int
    state: State


@dataclass(frozen=True)
class StoredModel:
    """A model that was put into a store, or would be.

    Attributes:
        name: What `ollama run` takes.
        target: The adapter's name in the release.
        quant: Such as `Q4_K_M`.
        manifest: Where its manifest lies.
        id: sha256 of the manifest; `ollama list` shows the first 12 digits.
        state: How the manifest stood there before.
        blobs: Layers and configuration, in the manifest's order.
    """

    name: str
    target: str
    quant: str
    manifest: str
    id: str
    state: State
    blobs: tuple[StoredBlob, ...]

    @property
    def written_bytes(self) -> int:
        """Size of the blobs that were not there yet, in bytes."""
        return sum(blob.size for blob in self.blobs if blob.state != "there")


def publish_store(
    bundle: Path,
    store: Path,
    name: str | None = None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> tuple[StoredModel, ...]:
    """Puts the models of a bundle's ollama targets into a store, so that `ollama run` finds them.

    The whole bundle is hashed against its manifest first. Blobs that are there with the right
    content stay; all blobs are on the disk before the first manifest appears. Nothing that the
    store had is removed: a manifest that is replaced leaves its blobs to Ollama's own clean-up.

    Args:
        bundle: What `lorapack release` wrote.
        store: The folder that `OLLAMA_MODELS` names.
        name: `NAME` or `NAMESPACE/NAME`, perhaps with a tag; None for the adapter's own. See
            `choose_names` for tags.
        dry_run: Check everything, write nothing, and return what would be written.
        progress: Told of stages and bytes.

    Returns:
        One value per model, in order of writing. A blob that several models share is `new` in the
        first of them and `there` in the others.

    Raises:
        BundleError: The bundle is not what its manifest says, or incomplete.
        OllamaError: A name, the folder or a model does not fit.
        OutputError: The store cannot be written, or the disk is full.
    """
    told = progress or Silent()
    wanted = parse_model_name(name, where="the name") if name is not None else None
    manifest = read_manifest(bundle)
    check_store(store)
    chosen = choose_names(read_ollama_models(bundle, manifest), wanted)
    drafts = [(named, make_image(model)) for named, model in chosen]
    check_bundle(bundle, manifest, told)
    if dry_run:
        blobs = _blob_states(store, drafts, told)
        manifests = _manifest_states(store, drafts)
        check_room(store, _missing(drafts, blobs))
    else:
        with StoreFolder(store, told) as folder:
            blobs = _blob_states(store, drafts, told)
            manifests = _manifest_states(store, drafts)
            _write_blobs(folder, store, drafts, blobs, told)
            for named, image in drafts:
                if manifests[named] != "there":
                    folder.add_manifest(named, image.manifest)
    seen: set[str] = set()
    return tuple(
        StoredModel(
            name=named.text,
            target=model.target,
            quant=model.quant,
            manifest=str(manifest_path(store, named)),
            id=hashlib.sha256(image.manifest).hexdigest(),
            state=manifests[named],
            blobs=_report(image, blobs, seen),
        )
        for (named, model), (_, image) in zip(chosen, drafts, strict=True)
    )


def _blob_states(store: Path, drafts: Drafts, progress: Progress) -> dict[str, State]:
    """Returns digest → state; those that are there are read to the end."""
    blobs = _unique(drafts)
    progress.stage("reading the store", sum(blob.size for blob in blobs))
    return {blob.digest: read_blob_state(store, blob, progress.advance) for blob in blobs}


def _manifest_states(store: Path, drafts: Drafts) -> dict[ModelName, State]:
    return {name: read_manifest_state(store, name, image.manifest) for name, image in drafts}


def _write_blobs(
    folder: StoreFolder, store: Path, drafts: Drafts, states: dict[str, State], progress: Progress
) -> None:
    missing = _missing(drafts, states)
    check_room(store, missing)
    progress.stage("writing blobs", sum(blob.size for blob in missing))
    for blob in missing:
        folder.add_blob(blob, progress.advance)
    for blob in _unique(drafts):
        folder.touch(blob)


def _unique(drafts: Drafts) -> tuple[Blob, ...]:
    return tuple({blob.digest: blob for _, image in drafts for blob in image.blobs}.values())


def _missing(drafts: Drafts, states: dict[str, State]) -> tuple[Blob, ...]:
    return tuple(blob for blob in _unique(drafts) if states[blob.digest] != "there")


def _report(image: Image, states: dict[str, State], seen: set[str]) -> tuple[StoredBlob, ...]:
    report = []
    for blob in image.blobs:
        state: State = "there" if blob.digest in seen else states[blob.digest]
        seen.add(blob.digest)
        report.append(StoredBlob(blob.media_type, blob.digest, blob.size, state))
    return tuple(report)
