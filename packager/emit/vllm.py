"""The files of one adapter in a server's folder: as it is served, and as it was trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packager.bundle import copy_new, write_text
from packager.emit.merged import file_entry
from packager.gather import Gathered
from packager.manifest import FileEntry
from packager.plan import AdapterSource, TargetPlan
from packager.serving.path import adapter_path, original_path
from packager.sinks.served import render_served_config, write_served_lora
from packager.untrusted import resolve_inside


def write_served_adapter(
    folder: Path, target: TargetPlan, source: AdapterSource, gathered: Gathered
) -> Iterator[FileEntry]:
    """Writes an adapter as the server loads it, and as it was trained.

    Yields:
        What was written, paths relative to `folder`.

    Raises:
        AdapterError: NaN or infinity in the adapter.
        InputError: A source file cannot be read.
        OutputError: The disk is full or fails.
    """
    lora, spec, ref = target.served, source.spec, gathered.ref
    assert lora is not None
    name = target.name
    yield write_served_lora(folder, name, lora, spec)
    texts = {
        f"{adapter_path(name)}/adapter_config.json": render_served_config(
            spec, lora, ref.repo or ref.directory.name, ref.commit
        ),
    }
    for file in target.files:
        if file.origin == "adapter":
            path = file.path.removeprefix(f"{original_path(name)}/")
            root = spec.directory
            copy_new(resolve_inside(root, path, where=str(root)), folder / file.path)
        elif file.path in texts:
            write_text(folder / file.path, texts[file.path])
        else:
            continue
        yield file_entry(folder, file.path)
