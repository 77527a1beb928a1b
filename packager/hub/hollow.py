"""A base's files without its weights: what a plan reads, and nothing in anybody's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packager.digest import hash_file
from packager.errors import BaseError, BaseMismatchError
from packager.hub.client import HubRefusedError, ask, silence
from packager.hub.fetch import git_blob_id
from packager.hub.remote import RemoteFile, RemoteRepo, base_error
from packager.manifest import FileEntry
from packager.quantisation.state import MAX_STATE_BYTES, STATE_MARK
from packager.tensorfile import header_length, parse_header

_WORKERS = 4
_LENGTH_BYTES = 8
_FIRST_BYTES = 1 << 16
_MAX_WHOLE_BYTES = 256 << 20


def fetch_hollow(remote: RemoteRepo, names: Iterable[str], folder: Path) -> tuple[FileEntry, ...]:
    """Lays out files of a commit in a folder of its own: weights with their header only.

    A weights file gets its size, its header, and the small descriptions of weights that
    bitsandbytes quantised; the rest is a hole that takes no room on the disk. Files that lie in
    the Hub's cache are taken from there, and nothing is added to it.

    Args:
        remote: From `resolve_repo`.
        names: Which of its files, all of them in the commit.
        folder: An empty folder.

    Returns:
        Every file with the sha256 of its real content, of weights as the Hub gives it.

    Raises:
        BaseError: The Hub refuses, cannot be reached, or gives no digest of a weights file.
        BaseMismatchError: A file's bytes are not those that the Hub announces.
        InputError: A header is damaged.
    """
    known = {file.name: file for file in remote.files}
    files = [known[name] for name in sorted(set(names))]
    with silence(), ThreadPoolExecutor(_WORKERS) as pool:
        return tuple(pool.map(lambda file: _lay_out(remote, file, folder), files))


def _lay_out(remote: RemoteRepo, file: RemoteFile, folder: Path) -> FileEntry:
    place = folder / file.name
    place.parent.mkdir(parents=True, exist_ok=True)
    if file.name.endswith(".safetensors") and file.size > _FIRST_BYTES:
        header = _header(remote, file)
        place.write_bytes(header)
        with place.open("r+b") as stream:
            stream.truncate(file.size)
            for offset, data in _descriptions(remote, file, header):
                stream.seek(offset)
                stream.write(data)
        return FileEntry(file.name, file.size, _announced(remote, file))
    if file.size > _MAX_WHOLE_BYTES:
        raise BaseError(
            "a file that describes the base is too large",
            where=f"{remote.repo}/{file.name}",
            expected=f"at most {_MAX_WHOLE_BYTES} bytes",
            found=f"{file.size} bytes",
            hint="check that this is the base model, in the transformers layout",
        )
    place.write_bytes(_read(remote, file, 0, file.size))
    sha256 = hash_file(place)
    if not _is_announced(file, place, sha256):
        raise BaseMismatchError(
            f"{file.name} is not what the Hub says it is",
            where=f"{remote.repo}@{remote.commit}",
            expected=file.sha256 or f"git blob {file.git_blob_id}",
            found=f"sha256 {sha256}",
            hint="run the same command again",
        )
    return FileEntry(file.name, file.size, sha256)


def _is_announced(file: RemoteFile, place: Path, sha256: str) -> bool:
    if file.sha256 is not None:
        return sha256 == file.sha256
    return file.git_blob_id is None or git_blob_id(place) == file.git_blob_id


def _header(remote: RemoteRepo, file: RemoteFile) -> bytes:
    start = _read(remote, file, 0, _FIRST_BYTES)
    end = _LENGTH_BYTES + header_length(
        start[:_LENGTH_BYTES], file.size, f"{remote.repo}/{file.name}"
    )
    return (start + _read(remote, file, len(start), end) if end > len(start) else start)[:end]


def _descriptions(
    remote: RemoteRepo, file: RemoteFile, header: bytes
) -> Iterator[tuple[int, bytes]]:
    """Yields offset and bytes of what describes the weights that are quantised."""
    parsed = parse_header(header[_LENGTH_BYTES:], path=Path(file.name), size=file.size)
    wanted = [ref for ref in parsed.tensors if STATE_MARK in ref.name]
    wanted = [ref for ref in wanted if ref.nbytes <= MAX_STATE_BYTES]
    with ThreadPoolExecutor(_WORKERS) as pool:
        yield from pool.map(
            lambda ref: (
                ref.offset,
                _read(remote, file, ref.offset, ref.offset + ref.nbytes),
            ),
            wanted,
        )


def _announced(remote: RemoteRepo, file: RemoteFile) -> str:
    if file.sha256 is not None:
        return file.sha256
    raise BaseError(
        "the Hub gives no digest of a weights file",
        where=f"{remote.repo}@{remote.commit}/{file.name}",
        hint=f"hf download {remote.repo} --revision {remote.commit}; then plan with the folder",
    )


def _read(remote: RemoteRepo, file: RemoteFile, start: int, end: int) -> bytes:
    """Returns the bytes from `start` up to `end` (exclusive), from the cache or the Hub."""
    from huggingface_hub import try_to_load_from_cache

    if start >= end:
        return b""
    cached = try_to_load_from_cache(remote.repo, file.name, revision=remote.commit)
    if isinstance(cached, str):
        with Path(cached).open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)
    try:
        return ask(lambda: _read_range(remote, file.name, start, end))
    except HubRefusedError as refusal:
        raise base_error(refusal, remote.repo, remote.commit) from None


def _read_range(remote: RemoteRepo, name: str, start: int, end: int) -> bytes:
    """Asks for a range; an answer that is longer than wanted is not read to its end.

    Source: huggingface_hub 2.4, hf_api.py (parse_safetensors_file_metadata does the same).
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    address = hf_hub_url(remote.repo, name, revision=remote.commit)
    headers = {
        **build_hf_headers(library_name="lorapack"),
        "Range": f"bytes={start}-{end - 1}",
        "Accept-Encoding": "identity",
    }
    with get_session().stream("GET", address, headers=headers, follow_redirects=True) as answer:
        if answer.is_error:
            answer.read()  # its text is part of the error
        hf_raise_for_status(answer)
        parts, left = [], end - start
        for part in answer.iter_raw():
            parts.append(part[:left])
            left -= len(parts[-1])
            if not left:
                break
    data = b"".join(parts)
    # A server that knows no ranges answers 200 with the file from its start.
    if start and answer.status_code == 200:
        return _read_range(remote, name, 0, end)[start:]
    return data
