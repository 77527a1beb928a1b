"""The texts that travel with the package: `templates/` and `docker/`."""

from __future__ import annotations

from pathlib import Path

from packager.errors import InputError
from packager.untrusted import read_text, resolve_inside

_ROOMS = ("templates", "docker")
_PACKAGE = Path(__file__).resolve().parent


def read_resource(name: str) -> str:
    """Reads a template or a container file by its name, such as `templates/card.md.j2`.

    A wheel carries both folders inside the package; in a checkout they stand beside it.

    Raises:
        UnsafeInputError: The name leads outside of the folders.
        InputError: The name is in neither folder, or there is no such file.
    """
    room = name.partition("/")[0]
    if room not in _ROOMS:
        raise InputError(
            "no such resource",
            where=name,
            expected=f"a name below {' or '.join(f'{room}/' for room in _ROOMS)}",
            hint="install lorapack again",
        )
    return read_text(resolve_inside(_folder(room), name.partition("/")[2], where="resource name"))


def resource_folder(name: str) -> Path:
    """Returns a folder of the package by its name, such as `docker/gate`.

    Raises:
        UnsafeInputError: The name leads outside of the folders.
    """
    room, _, rest = name.partition("/")
    return resolve_inside(_folder(room), rest, where="resource name")


def list_resources(folder: str) -> tuple[str, ...]:
    """Returns the names of the Python files below a folder of container files, sorted.

    A checkout may hold what running them left behind; that is not meant.
    """
    room, _, rest = folder.partition("/")
    root = _folder(room)
    found = (path.relative_to(root).as_posix() for path in (root / rest).rglob("*.py"))
    return tuple(f"{room}/{name}" for name in sorted(found))


def _folder(room: str) -> Path:
    packaged = _PACKAGE / room
    return packaged if packaged.is_dir() else _PACKAGE.parent / room
