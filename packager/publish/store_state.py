"""What a store of Ollama has already, and whether more fits into it; nothing is written here."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from packager.digest import OnBytes, hash_file
from packager.errors import InputError, OllamaError, OutputError
from packager.publish.ollama_name import ModelName
from packager.publish.store_image import Blob
from packager.sequential import can_share_blocks

State = Literal["new", "there", "replaced"]
"""Of a blob or manifest: not there before, there as it is, there with other content."""


def check_store(root: Path) -> None:
    """Refuses a folder that has files, but not those of a store.

    Raises:
        OllamaError: It is something else, or the folder above the store.
        OutputError: It cannot be read.
    """
    try:
        names = {path.name for path in root.iterdir()} if root.is_dir() else set()
        wrong = root.exists() and not root.is_dir()
    except OSError as problem:
        raise store_error(problem, root) from problem
    if wrong or (names and not names & {"blobs", "manifests"}):
        above = "models" in names
        raise OllamaError(
            "this is not a store of Ollama",
            where=str(root),
            expected="a folder with blobs and manifests, or one that is empty or missing",
            found="a file" if wrong else ", ".join(sorted(names)[:5]),
            hint=f"give {root / 'models'}"
            if above
            else "give what OLLAMA_MODELS names, which is ~/.ollama/models by default",
        )


def read_blob_state(root: Path, blob: Blob, on_bytes: OnBytes | None = None) -> State:
    """Tells whether a store has a blob with the right content, and reads it to the end for that.

    Raises:
        OutputError: What is there cannot be read.
    """
    path = root / "blobs" / f"sha256-{blob.sha256}"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != blob.size:
            return "replaced"
        return "there" if hash_file(path, on_bytes) == blob.sha256 else "replaced"
    except FileNotFoundError:
        return "new"
    except OSError as problem:
        raise store_error(problem, path) from problem
    except InputError as problem:
        raise OutputError(
            "the store cannot be read",
            where=str(path),
            found=problem.found,
            hint="run as the user whose store it is",
        ) from problem


def read_manifest_state(root: Path, name: ModelName, data: bytes) -> State:
    """Tells whether a store has a model just like that.

    Raises:
        OutputError: What is there cannot be read.
    """
    path = manifest_path(root, name)
    try:
        with path.open("rb") as file:
            return "there" if file.read(len(data) + 1) == data else "replaced"
    except (FileNotFoundError, NotADirectoryError):
        return "new"
    except OSError as problem:
        raise store_error(problem, path) from problem


def manifest_path(root: Path, name: ModelName) -> Path:
    """Returns where a model's manifest lies.

    A part that is there in other capitals is the same to Ollama, and is used as it is.

    Source: ollama v0.33.0-rc2, server/routes.go, getExistingName.
    """
    path = root / "manifests"
    for part in name.parts:
        path /= _existing(path, part)
    return path


def check_room(root: Path, blobs: Iterable[Blob]) -> None:
    """Refuses to begin on a disk that cannot hold what is missing.

    Raises:
        OutputError: With bytes needed and free; or the disk cannot be asked.
    """
    place = root.absolute()
    try:
        while not place.exists():
            place = place.parent
        needed = sum(blob.size for blob in blobs if not _is_shared(blob, place))
        free = shutil.disk_usage(place).free
    except OSError as problem:
        raise store_error(problem, place) from problem
    if free < needed:
        raise OutputError(
            "the disk has no room for the model",
            where=str(place),
            expected=f"{needed:,} bytes free",
            found=f"{free:,} bytes",
            hint="free some space: ollama rm removes models",
        )


def store_error(problem: OSError, where: Path) -> OutputError:
    """Returns what a failed write into a store means to a user."""
    no_right = "run as the user whose store it is, or give it to a running Ollama: --ollama NAME"
    hints = {
        errno.ENOSPC: "free some space: ollama rm removes models",
        errno.EDQUOT: "free some space: ollama rm removes models",
        errno.EACCES: no_right,
        errno.EPERM: no_right,
        errno.EROFS: "give a store on a disk that can be written",
        errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
        errno.EXDEV: "let blobs and manifests each lie on one disk",
    }
    return OutputError(
        "the store cannot be written",
        where=str(where),
        found=problem.strerror or "an I/O error",
        hint=hints.get(problem.errno or 0, "check the folder and the disk, then run again"),
    )


def _existing(folder: Path, part: str) -> str:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return part
    if part in names:
        return part
    return next((name for name in names if name.lower() == part.lower()), part)


def _is_shared(blob: Blob, place: Path) -> bool:
    if blob.source is None or not os.access(place, os.W_OK):
        return False
    with blob.source.open("rb") as file:
        return can_share_blocks(file.fileno(), place)
