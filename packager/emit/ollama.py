"""The files of GGUF targets: models with all that Ollama is told about them, and LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packager.emit.making import Making
from packager.gather import Gathered
from packager.gguf.layout import GgufFile
from packager.gguf.value import GgufModel
from packager.manifest import FileEntry
from packager.modelfile import render_create, render_modelfile
from packager.plan import ReleaseOptions, TargetPlan
from packager.plan.gguf import map_source
from packager.progress import Progress
from packager.quantise import WeightSources, write_gguf
from packager.recipe import find_quants, make_recipe
from packager.updatereader import adapter_tensors


def write_models(
    folder: Path, target: TargetPlan, gathered: Gathered, making: Making, progress: Progress
) -> tuple[FileEntry, ...]:
    """Writes every GGUF file of a target in one pass over base and adapter.

    Raises:
        AdapterError: NaN or infinity in the adapter or the result.
        InputError: A source file cannot be read.
        OutputError: The disk is full or fails.
    """
    assert target.gguf is not None
    source = next(item for item in gathered.adapters if item.name == target.name)
    model = map_source(source, gathered.base.index)
    sources = WeightSources(
        {tensor.name: tensor for tensor in target.gguf.merged},
        gathered.base.index.tensors,
        adapter_tensors({source.name: source.spec.tensors}),
    )
    return quantise_model(folder, model, target.gguf.files, sources, making, progress)


def quantise_model(
    folder: Path,
    model: GgufModel,
    files: tuple[GgufFile, ...],
    sources: WeightSources,
    making: Making,
    progress: Progress,
) -> tuple[FileEntry, ...]:
    """Writes the planned files of a model.

    Raises:
        LorapackError: As of `write_models`.
    """
    from packager.gguf.imatrix import fitting_weights

    quants = ", ".join(dict.fromkeys(file.quant for file in files))
    progress.stage(f"quantise: {quants}"[:60], sum(file.size for file in files))
    imatrix = making.imatrix
    return write_gguf(
        folder,
        model,
        files,
        sources,
        threads=making.threads,
        progress=progress,
        importance=None if imatrix is None else fitting_weights(imatrix, model),
    )


def render_recipes(
    target: TargetPlan,
    written: Mapping[str, FileEntry],
    gathered: Gathered,
    options: ReleaseOptions,
) -> dict[str, str]:
    """Returns every Modelfile and request of a target by file name.

    Args:
        target: Its plan.
        written: The GGUF files by path, with their digests.
        gathered: The sources.
        options: What a user chose.
    """
    texts: dict[str, str] = {}
    planned = {file.path for file in target.files}
    for quant, paths in find_quants(target).items():
        recipe = make_recipe(target, quant, gathered, options)
        digests = {path: f"sha256:{written[path].sha256}" for path in paths}
        first = not texts
        for middle in ("", f".{quant}") if first else (f".{quant}",):
            texts[f"create{middle}.json"] = render_create(recipe, digests)
            if f"Modelfile{middle}" in planned:
                texts[f"Modelfile{middle}"] = render_modelfile(recipe)
    return texts
