"""A target that another program converts: merged, handed over, taken back, quantised."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from packager.bundle import make_folder
from packager.conversion import run_converter
from packager.emit.making import Making
from packager.emit.merged import write_file
from packager.emit.ollama import quantise_model
from packager.emit.shard import write_shards
from packager.gather import Gathered
from packager.gguf.general import general_keys
from packager.gguf.layout import plan_files
from packager.gguf.mapping import with_keys
from packager.manifest import FileEntry
from packager.plan import PlannedTensor, TargetPlan
from packager.progress import Progress
from packager.quantise import WeightSources
from packager.vocabulary import with_chat

_SCRATCH = ".converted"


def write_converted(
    folder: Path, target: TargetPlan, gathered: Gathered, making: Making, progress: Progress
) -> tuple[FileEntry, ...]:
    """Writes every GGUF file of a target that the user's llama.cpp converts.

    The merged model and the converter's file lie in the target's folder meanwhile.

    Raises:
        AdapterError: NaN or infinity in the adapter or the result.
        InputError: A source, or the converter's file, cannot be read.
        OutputError: The disk is full or fails.
        ProcessError: The converter fails.
    """
    plan = target.converter
    assert plan is not None
    source = next(item for item in gathered.adapters if item.name == target.name)
    assert source.gguf is not None
    scratch = folder / _SCRATCH
    merged = scratch / target.name
    make_folder(merged)
    whole = replace(target, shards=plan.shards, files=plan.files, converter=None)
    write_shards(merged, whole, gathered, progress)
    for file in plan.files:
        write_file(merged, file, whole, source, gathered)
    progress.stage("run the converter of --llama-cpp")
    made = run_converter(
        Path(making.options.llama_cpp), merged, scratch / "whole.gguf", plan.nbytes
    )
    shutil.rmtree(merged)
    keys = with_chat(made.model.keys, gathered.chats[target.name])
    general = general_keys(source.gguf.facts, made.model.tensors)
    model = with_keys(replace(made.model, keys=keys), general)
    files = tuple(
        file
        for quant in plan.quants
        for file in plan_files(
            model,
            quant,
            f"{target.name}-{quant}",
            max_bytes=plan.max_bytes,
            imatrix_keys=making.options.imatrix_keys,
        )
    )
    planned = {
        name: PlannedTensor(name, "F32", ref.shape, "cast", name)
        for name, ref in made.tensors.items()
    }
    sources = WeightSources(planned, made.tensors, {})
    entries = quantise_model(folder, model, files, sources, making, progress)
    shutil.rmtree(scratch)
    return entries
