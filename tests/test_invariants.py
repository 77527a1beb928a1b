"""The rules of ARCHITECTURE.md that keep the rooms apart."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import packager
from packager.plan import ReleasePlan
from tests import models

PACKAGE = Path(packager.__file__).parent

# From left to right, as in ARCHITECTURE.md: a room knows only rooms before it.
ROOMS = (
    "errors", "untrusted", "filekind", "task", "dtype", "record", "progress", "process",
    "ahead", "sequential", "tensorfile", "quantisation",
    "manifest", "digest", "combination", "resource", "frontmatter", "markup", "licensetext",
    "obligation", "license", "adapter", "hub", "base", "lock",
    "trainingfact", "train", "demo", "gguf", "serving",
    "container", "plan",
    "chat", "modelfile", "vocabulary", "chatfile", "gather", "mergebase", "recipe", "conversion",
    "modelconfig", "merge", "rowreader", "factorreader", "tuner", "rehearsal", "updatereader",
    "combine", "combined", "stream", "transform", "basecopy", "stamp", "sinks", "quantise",
    "bundle", "emit", "verify", "card", "cardfacts", "servercard",
    "serverfolder", "preparation", "mergefolder", "release", "publish", "serve", "cli", "__main__",
)  # fmt: skip

ALLOWED_ROOMS = {
    "torch": {
        "basecopy",
        "merge",
        "quantisation",
        "rowreader",
        "factorreader",
        "updatereader",
        "stream",
        "transform",
        "sinks",
        "verify",
        "train",
        "demo",
        "tuner",
        "combine",
    },
    "transformers": {"chat", "verify", "train", "demo", "cli", "tuner"},
    "peft": {"verify", "train", "tuner", "combine"},
    "huggingface_hub": {"hub", "publish"},
    "click": {"cli"},
    "subprocess": {"process", "serve"},
}
"""A library → the rooms that may import it."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> Iterator[str]:
    """Yields every module that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            # `from packager.base import ref` may name a module or something in one.
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in modules()} - {""} == set(ROOMS)


def test_arrows_point_right_only() -> None:
    place = {room: number for number, room in enumerate(ROOMS)}
    wrong = [
        f"{module} imports {imported}"
        for module, path in modules().items()
        for imported in imports_of(path)
        if imported.startswith("packager.")
        and room_of(imported) != room_of(module)
        and module != "packager"
        and place.get(room_of(imported), -1) >= place.get(room_of(module), 0)
    ]
    assert not wrong


def test_no_module_needs_itself() -> None:
    graph = {
        module: {name for name in imports_of(path) if name in modules() and name != "packager"}
        for module, path in modules().items()
    }
    for module, needed in graph.items():
        # A package imports its own modules for its callers; they do not need it back.
        needed.discard(module)
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("library", ALLOWED_ROOMS)
def test_library_stays_in_its_rooms(library: str) -> None:
    importers = {
        room_of(module)
        for module, path in modules().items()
        for imported in imports_of(path)
        if imported.split(".")[0] == library
    }
    assert importers <= ALLOWED_ROOMS[library]


def loaded_after(code: str) -> set[str]:
    """Returns the top-level packages that a fresh interpreter has loaded after `code`."""
    script = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code, end\n"
        "print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "module", ["plan", "container", "card", "errors", "adapter", "base", "lock"]
)
def test_pure_rooms_load_no_heavy_library(module: str) -> None:
    loaded = loaded_after(f"import packager.{module}")
    assert "packager" in loaded
    assert not loaded & {"torch", "transformers", "huggingface_hub", "click", "numpy"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["release", "--help"]])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    loaded = loaded_after(
        f"sys.argv = {['lorapack', *arguments]!r}; from packager.cli import main; main()"
    )
    assert "click" in loaded
    assert not loaded & {"torch", "transformers", "huggingface_hub", "peft", "jinja2", "numpy"}


def test_inspect_loads_no_torch(tmp_path: Path) -> None:
    adapter = models.make_adapter(models.make_llama(tmp_path / "base"), tmp_path / "adapter")
    arguments = ["lorapack", "inspect", str(adapter)]
    loaded = loaded_after(f"sys.argv = {arguments!r}; from packager.cli import main; main()")
    assert "click" in loaded
    assert not loaded & {"torch", "transformers", "huggingface_hub", "numpy"}


def test_plan_holds_no_tensor() -> None:
    plain = {str, int, float, bool, type(None), Path}
    seen: set[type] = set()

    def check(hint: typing.Any, where: str) -> None:
        arguments = typing.get_args(hint)
        if typing.get_origin(hint) is typing.Literal:
            assert all(type(value) in plain for value in arguments), where
        elif arguments:
            for argument in arguments:
                if argument is not ...:
                    check(argument, where)
        elif dataclasses.is_dataclass(hint):
            if hint not in seen:
                seen.add(typing.cast(type, hint))
                for name, inner in typing.get_type_hints(hint).items():
                    check(inner, f"{where}.{name}")
        else:
            assert hint in plain or isinstance(hint, types.NoneType), f"{where}: {hint}"

    check(ReleasePlan, "ReleasePlan")
    assert len(seen) > 3
