"""Downloading the wanted files of a base, each checked against the digest that the Hub gives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from packager.digest import OnBytes, hash_files
from packager.errors import BaseError, BaseMismatchError, UnsafeInputError
from packager.filekind import CARD_NAME, is_document, is_identity_file
from packager.hub.client import HubRefusedError, ask, client, silence
from packager.hub.remote import RemoteFile, RemoteRepo, base_error
from packager.untrusted import check_relative_name, resolve_inside

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WORKERS = 4
_CHUNK_BYTES = 1 << 20


def wanted_base_files(remote: RemoteRepo) -> tuple[str, ...]:
    """Returns the names of the files that a release needs of a base, in name order.

    Configuration, tokenizer, chat templates, licence documents, card, and safetensors weights
    with their index. Copies in other formats and precisions are left out.

    Raises:
        UnsafeInputError: The weights are pickles only.
        BaseError: There are no weights.
    """
    names = [file.name for file in remote.files]
    described = [
        name for name in names if is_identity_file(name) or is_document(name) or name == CARD_NAME
    ]
    return tuple(sorted({*described, *_weight_names(remote.repo, names)}))


def _weight_names(repo: str, names: list[str]) -> list[str]:
    if INDEX_NAME in names:
        shards = [name for name in names if _SHARD.fullmatch(name)]
        # Mistral's `consolidated.safetensors` is the same model once more, for another loader.
        other = [
            name
            for name in names
            if name.endswith(".safetensors")
            and "/" not in name
            and not name.startswith(("consolidated", "adapter_model"))
        ]
        return [INDEX_NAME, *(shards or other)]
    if SINGLE_NAME in names:
        return [SINGLE_NAME]
    pickles = [name for name in names if name.endswith(_PICKLES) and "/" not in name]
    if pickles:
        raise UnsafeInputError(
            "the base's weights are pickles, which can run code",
            where=f"{repo}/{pickles[0]}",
            expected=SINGLE_NAME,
            hint="convert them at https://huggingface.co/spaces/safetensors/convert, or load the "
            "model in a sandbox and call model.save_pretrained(DIR, safe_serialization=True)",
        )
    raise BaseError(
        "the repository holds no weights that can be read",
        where=repo,
        expected=f"{SINGLE_NAME}, or shards with {INDEX_NAME}",
        found=", ".join(names[:8]) or "no files",
        hint="check that this is the base model, in the transformers layout",
    )


def fetch_files(remote: RemoteRepo, names: Iterable[str], progress: OnBytes | None = None) -> Path:
    """Downloads files of a commit into the Hub's cache and checks each against its digest.

    Files that are there already are checked, too, and not sent again.

    Args:
        remote: From `resolve_repo`.
        names: Which of its files.
        progress: Told the bytes received.

    Returns:
        The snapshot's directory.

    Raises:
        BaseError: A file is not in the commit, or the Hub refuses or cannot be reached.
        BaseMismatchError: A file's bytes are not those that the Hub announces.
    """
    known = {file.name: file for file in remote.files}
    wanted = sorted(set(names))
    missing = [name for name in wanted if name not in known]
    if missing or not wanted:
        raise BaseError(
            "a file of the base is not there" if missing else "no file of the base is wanted",
            where=f"{remote.repo}@{remote.commit}",
            expected=", ".join(missing[:8]),
            hint=f"hf download {remote.repo} --revision {remote.commit}",
        )
    with silence(), ThreadPoolExecutor(_WORKERS) as pool:
        places = list(pool.map(lambda name: _fetch(remote, name, progress), wanted))
    directory = _snapshot(places[0], wanted[0])
    _check_digests(directory, remote, [known[name] for name in wanted])
    return directory


def _fetch(remote: RemoteRepo, name: str, progress: OnBytes | None) -> Path:
    check_relative_name(name, where=remote.repo)
    bar: Any = _byte_counter(progress)
    try:
        place = ask(
            lambda: client().hf_hub_download(
                remote.repo, name, revision=remote.commit, tqdm_class=bar
            )
        )
    except HubRefusedError as refusal:
        raise base_error(refusal, remote.repo, remote.commit) from None
    return Path(place)


def _byte_counter(progress: OnBytes | None) -> type:
    """Returns a progress bar that draws nothing and reports what it is told."""
    from tqdm.std import tqdm

    class ByteCounter(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if progress is not None:
                progress(int(n or 0))

    return ByteCounter


def _snapshot(place: Path, name: str) -> Path:
    return place.parents[name.count("/")]


def _check_digests(directory: Path, remote: RemoteRepo, files: list[RemoteFile]) -> None:
    for file in files:
        place = resolve_inside(directory, file.name, where=f"{remote.repo}@{remote.commit}")
        size = place.stat().st_size
        if size != file.size:
            raise _mismatch(remote, file, place, f"{file.size} bytes", f"{size} bytes")
    large = {file.name: file for file in files if file.sha256 is not None}
    for entry in hash_files(directory, large):
        file = large[entry.path]
        if entry.sha256 != file.sha256:
            place = directory / file.name
            raise _mismatch(remote, file, place, f"sha256 {file.sha256}", f"sha256 {entry.sha256}")
    for file in files:
        if file.sha256 is None and file.git_blob_id is not None:
            found = git_blob_id(directory / file.name)
            if found != file.git_blob_id:
                wanted = f"git blob {file.git_blob_id}"
                raise _mismatch(remote, file, directory / file.name, wanted, f"git blob {found}")


def git_blob_id(path: Path) -> str:
    """Returns the id that git gives to a file's content: 40 hexadecimal digits.

    Source: git, Documentation/gitformat-loose: sha1 over `blob <size>`, a zero byte, the content.
    """
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _mismatch(
    remote: RemoteRepo, file: RemoteFile, place: Path, expected: str, found: str
) -> BaseMismatchError:
    return BaseMismatchError(
        f"{file.name} is not what the Hub says it is",
        where=str(place),
        expected=expected,
        found=found,
        hint=f"hf download {remote.repo} {file.name} --revision {remote.commit} --force-download",
    )
