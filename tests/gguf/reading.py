"""Reading checkpoints and GGUF files the way that tests compare them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from safetensors import safe_open

from packager.gguf import GgufKey, GgufModel, map_model


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def map_folder(folder: Path) -> GgufModel:
    return map_model(read_config(folder), read_shapes(folder))


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes in the converter's order: sorted, file after file."""
    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in sorted(file.keys()):
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def read_keys(path: Path) -> dict[str, Any]:
    """Returns the keys of a GGUF file with their types."""
    fields = GGUFReader(path).fields.values()
    return {each.name: ([kind.name for kind in each.types], each.contents()) for each in fields}


def written(keys: Iterable[GgufKey]) -> dict[str, Any]:
    """Returns keys as they come back from a file: floats as float32 holds them."""
    read = {}
    for key in keys:
        values = list(key.value) if isinstance(key.value, tuple) else [key.value]
        if key.type == "float32":
            values = [float(np.float32(value)) for value in values]
        kind = key.type.upper()
        many = isinstance(key.value, tuple)
        read[key.name] = (["ARRAY", kind], values) if many else ([kind], values[0])
    return read
