"""The folder of a combined adapter: planned from headers, written a module at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.adapter import AdapterSpec, LoraModule
from packager.adapter.spec import CONFIG_NAME, WEIGHTS_NAME
from packager.combination import Combination
from packager.errors import InputError, UnsupportedFeatureError, output_error
from packager.filekind import is_tokenizer_file, list_model_files
from packager.lock import LOCK_NAME
from packager.tensorfile import render_header, tensor_bytes
from packager.untrusted import resolve_inside

_METADATA = {"format": "pt"}
_PLAIN = {
    "lora", "rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules",
    "regex target_modules", "fan_in_fan_out", "LoRA on embeddings",
}  # fmt: skip
"""Features of which nothing is left once the factors of every module are combined."""
_CLEARED: dict[str, Any] = {
    "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "exclude_modules": None,
    "layers_to_transform": None, "layers_pattern": None, "init_lora_weights": True,
    "inference_mode": True,
}  # fmt: skip


@dataclass(frozen=True)
class CombinedModule:
    """One module of the result.

    Attributes:
        module: Dotted name.
        parts: (the adapter's own, its weight) of those that have it, in order.
    """

    module: str
    parts: tuple[tuple[LoraModule, float], ...]


def combine_folders(
    specs: Sequence[AdapterSpec], combination: Combination, out: Path, *, hollow: bool = False
) -> None:
    """Writes the adapter that others make together.

    Its scale is one, its tokenizer and its lock are those of the first that has them.

    Args:
        specs: The adapters.
        combination: How; it fits them in number.
        out: The folder to make.
        hollow: Leave the values out, for a dry run: the weights have their size only.

    Raises:
        AdapterError: A tensor holds NaN or infinity.
        InputError: Ranks or shapes do not go together, or a file cannot be read.
        OutputError: The folder cannot be written.
        UnsupportedFeatureError: An adapter is more than pairs of factors.
    """
    for spec in specs:
        _check_plain(spec)
    modules = plan_modules(specs, combination)
    rank = combined_rank(specs, modules, combination)
    try:
        out.mkdir(parents=True)
        _write_weights(modules, combination, rank, out / WEIGHTS_NAME, hollow=hollow)
        text = json.dumps(_config(specs, modules, rank), ensure_ascii=False, indent=2)
        (out / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        _copy_beside(specs, out)
    except OSError as problem:
        raise output_error(problem, out) from problem


def plan_modules(
    specs: Sequence[AdapterSpec], combination: Combination
) -> tuple[CombinedModule, ...]:
    """Returns the modules of all adapters together, by name.

    Raises:
        InputError: A module has other shapes in two of them.
    """
    found: dict[str, list[tuple[LoraModule, float]]] = {}
    for spec, weight in zip(specs, combination.weights, strict=True):
        for name, module in spec.modules.items():
            found.setdefault(name, []).append((module, weight))
    for name, parts in found.items():
        shapes = {(part.shape, part.embedding) for part, _ in parts}
        if len(shapes) > 1:
            raise _unequal(f"module {name!r} has other shapes in two adapters", shapes)
    return tuple(CombinedModule(name, tuple(parts)) for name, parts in sorted(found.items()))


def combined_rank(
    specs: Sequence[AdapterSpec], modules: Sequence[CombinedModule], combination: Combination
) -> int:
    """Returns the rank of the result.

    Raises:
        InputError: The method wants one rank of all adapters, and they have several.
    """
    ranks = [max(spec.ranks) for spec in specs]
    if combination.method == "cat":
        return sum(ranks)
    if combination.decomposes:
        return combination.svd_rank or max(ranks)
    for module in modules:
        own = {part.rank for part, _ in module.parts}
        if len(own) > 1 or len(set(ranks)) > 1:
            raise _unequal(f"{combination.method} needs one rank of all adapters", set(ranks) | own)
    return ranks[0]


def _unequal(what: str, found: set[Any]) -> InputError:
    return InputError(
        what,
        where="--combine",
        found=", ".join(map(str, sorted(found)))[:120],
        hint="--combine cat and --combine svd take adapters of any ranks; the shapes must be those "
        "of one base",
    )


def _check_plain(spec: AdapterSpec) -> None:
    strange = [item.name for item in spec.features if item.name not in _PLAIN]
    if not strange and not spec.leftover and all(m.is_pair for m in spec.modules.values()):
        return
    raise UnsupportedFeatureError(
        f"an adapter with {(strange or list(spec.leftover) or ['more than pairs'])[0]!r} cannot "
        "be combined with others: PEFT combines pairs of factors only",
        where=str(spec.directory),
        expected="plain LoRA",
        found=", ".join(item.name for item in spec.features)[:120],
        hint="merge one and release the other on the result: lorapack merge "
        "--base_model_path BASE --lora_adapter_path A --output_path M; then --base M",
    )


def _config(
    specs: Sequence[AdapterSpec], modules: Sequence[CombinedModule], rank: int
) -> Mapping[str, Any]:
    names = [module.module for module in modules]
    raw = specs[0].config.raw
    kept = {key: value for key, value in _CLEARED.items() if key in raw or value}
    return {**raw, **kept, "r": rank, "lora_alpha": rank, "target_modules": names}


def _write_weights(
    modules: Sequence[CombinedModule],
    combination: Combination,
    rank: int,
    path: Path,
    *,
    hollow: bool,
) -> None:
    tensors = [
        entry
        for module in modules
        for entry in (
            (module.parts[0][0].lora_a.name, "F32", (rank, module.parts[0][0].lora_a.shape[1])),
            (module.parts[0][0].lora_b.name, "F32", (module.parts[0][0].lora_b.shape[0], rank)),
        )
    ]
    with path.open("xb") as file:
        file.write(render_header(tensors, _METADATA))
        if hollow:
            file.truncate(file.tell() + sum(tensor_bytes(kind, size) for _, kind, size in tensors))
            return
        from packager.combine.arithmetic import combine_parts

        for module in modules:
            parts = _read_parts(module)
            for values in combine_parts(parts, combination, module.module, rank):
                file.write(values.numpy().tobytes())


def _read_parts(module: CombinedModule) -> list[Any]:
    from packager.combine.arithmetic import Part
    from packager.factorreader import check_finite_values
    from packager.rowreader import OpenFiles, read_whole

    parts = []
    with ExitStack() as stack:
        files = OpenFiles(stack)
        for own, weight in module.parts:
            factors = []
            for ref in (own.lora_a, own.lora_b):
                values = read_whole(ref, files)
                check_finite_values(ref, values)
                factors.append(values.float())
            parts.append(Part(factors[0], factors[1], own.scale, weight))
    return parts


def _copy_beside(specs: Sequence[AdapterSpec], out: Path) -> None:
    for spec in specs:
        names = [name for name in list_model_files(spec.directory) if is_tokenizer_file(name)]
        if names:
            for name in names:
                _copy(spec.directory, name, out)
            break
    for spec in specs:
        if (spec.directory / LOCK_NAME).is_file():
            _copy(spec.directory, LOCK_NAME, out)
            break


def _copy(folder: Path, name: str, out: Path) -> None:
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    path = resolve_inside(folder, name, where=os.fspath(folder))
    with path.open("rb") as source, target.open("xb") as file:
        shutil.copyfileobj(source, file)
