"""A private folder that an engine runs in: links to the bundle's files, and the API key."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packager.errors import InputError, output_error
from packager.serve.request import ServeRequest
from packager.serving.answer import EXPECTED_NAME
from packager.serving.document import BASE_FOLDER, GATE_NAME, SERVE_NAME
from packager.serving.path import ADAPTER_FOLDER, TEMPLATE_FOLDER
from packager.untrusted import read_bytes

_KEY_NAME = "api-key"
_MAX_KEY_BYTES = 1 << 16
_MIN_KEY_LENGTH = 16


@dataclass(frozen=True)
class Workplace:
    """The folder.

    Attributes:
        home: The engine's working directory.
        key_file: Where the API key stands, or None where none is asked.
        log: What the engine prints.
    """

    home: Path
    key_file: Path | None
    log: Path

    def beside(self, name: str) -> Workplace:
        """Returns the place of another server, which has the same keys and a log of its own.

        Args:
            name: Of it; part of the name of its log: `engine.log` → `engine-<name>.log`.
        """
        home = self.home.with_name("neighbours") / name
        home.mkdir(parents=True)
        log = self.log.with_name(f"{self.log.stem}-{name}{self.log.suffix}")
        return Workplace(home, self.key_file, log)


@contextmanager
def make_workplace(request: ServeRequest) -> Iterator[Workplace]:
    """Makes the folder, readable by this user only, and removes it at the end.

    Raises:
        InputError: The key file is missing, or holds no key.
        OutputError: There is no place for the folder.
    """
    given = None if request.key_file is None else check_key_file(request.key_file)
    try:
        with tempfile.TemporaryDirectory(prefix="lorapack-serve-") as folder:
            home = Path(folder) / "home"
            home.mkdir()
            key = given or (None if request.without_key else _make_key(Path(folder)))
            log = Path(folder) / "engine.log" if request.log is None else request.log.absolute()
            yield Workplace(home, key, log)
    except OSError as problem:
        raise output_error(problem, Path(problem.filename or tempfile.gettempdir())) from problem


def link_files(home: Path, folder: Path, base: Path | None) -> None:
    """Links a bundle's server files, one by one, and the base.

    Only what the gate and the server are told to read is linked: a stray module in the bundle's
    folder is out of reach of the engine's Python.

    Args:
        home: Where to.
        folder: The server's in the bundle.
        base: The folder of what it loads, or None.
    """
    for name in (SERVE_NAME, GATE_NAME, EXPECTED_NAME, ADAPTER_FOLDER, TEMPLATE_FOLDER):
        if (folder / name).exists():
            (home / name).symlink_to((folder / name).absolute())
    if base is not None:
        (home / BASE_FOLDER).symlink_to(base.absolute())


def check_key_file(path: Path) -> Path:
    """Returns the whole path of a file with API keys.

    Raises:
        InputError: It is missing, empty, or holds something else than keys.
    """
    lines = read_bytes(path, max_bytes=_MAX_KEY_BYTES).decode("ascii", "replace").splitlines()
    keys = [line.strip() for line in lines if line.strip()]
    if not keys or not all(_is_key(key) for key in keys):
        raise InputError(
            "the key file holds no key" if not keys else "the key file holds what is no key",
            where=str(path),
            expected=f"keys of at least {_MIN_KEY_LENGTH} printable ASCII characters, one a line",
            hint=f"make one: openssl rand -base64 32 > {path}",
        )
    return path.absolute()


def _is_key(text: str) -> bool:
    return (
        len(text) >= _MIN_KEY_LENGTH and text.isascii() and text.isprintable() and " " not in text
    )


def _make_key(folder: Path) -> Path:
    path = folder / _KEY_NAME
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{secrets.token_urlsafe(32)}\n")
    return path
