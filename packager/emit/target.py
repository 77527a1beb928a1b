"""Writing one planned target into its folder: weights, copied files, rendered files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packager.basecopy import check_base_copies
from packager.bundle import write_text
from packager.conversion import settle_target
from packager.emit.converted import write_converted
from packager.emit.making import Making
from packager.emit.merged import file_entry, write_file
from packager.emit.ollama import render_recipes, write_models
from packager.emit.shard import write_shards
from packager.emit.vllm import write_served_adapter
from packager.filekind import CARD_NAME
from packager.gather import Gathered
from packager.manifest import FileEntry
from packager.plan import TargetPlan
from packager.progress import Progress
from packager.sinks.ggufadapter import write_gguf_lora
from packager.stream import check_finite


def write_target(
    folder: Path, target: TargetPlan, gathered: Gathered, making: Making, progress: Progress
) -> Iterator[FileEntry]:
    """Writes everything of a target but its card, which needs the figures of the proof.

    Args:
        folder: Of the target; it exists and is empty.
        target: Its plan.
        gathered: The sources.
        making: What else it depends on.
        progress: Told of bytes.

    Yields:
        What was written, paths relative to `folder`.

    Raises:
        AdapterError: NaN or infinity in the adapter or the result.
        BaseMismatchError: The adapter carries a weight that the base does not have.
        InputError: A source file cannot be read.
        OutputError: The disk is full or fails.
    """
    source = next(item for item in gathered.adapters if item.name == target.name)
    check_base_copies(source, gathered.base.index)
    if target.whole is not None:
        return  # it is the merged model; what its server is told is written with the others'
    if target.served is not None:
        yield from write_served_adapter(folder, target, source, gathered)
        return
    texts: dict[str, str] = {}
    if target.shards:
        yield from write_shards(folder, target, gathered, progress)
    elif target.target == "ollama":
        write = write_models if target.converter is None else write_converted
        models = write(folder, target, gathered, making, progress)
        yield from models
        by_path = {entry.path: entry for entry in models}
        texts = render_recipes(settle_target(target, folder), by_path, gathered, making.options)
    elif target.gguf_lora is not None:
        yield write_gguf_lora(folder, target.gguf_lora, {t.name: t for t in source.spec.tensors})
    else:
        check_finite(source.spec.tensors)
    for file in target.files:
        if file.path in texts:
            write_text(folder / file.path, texts[file.path])
        elif file.path != CARD_NAME:
            write_file(folder, file, target, source, gathered)
        if file.path != CARD_NAME:
            yield file_entry(folder, file.path)
