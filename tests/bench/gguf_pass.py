"""Base + adapter → GGUF files, without a release around it. Arguments: BASE ADAPTER OUT QUANT…"""

import os
import sys
from pathlib import Path

from packager.adapter import LoraModule, read_adapter
from packager.base import read_base
from packager.gguf.layout import plan_files
from packager.gguf.mapping import map_model
from packager.gguf.mixture import parse_quant
from packager.plan import Delta, PlannedTensor
from packager.progress import Silent
from packager.quantise import WeightSources, write_gguf
from packager.tensorfile import TensorRef
from packager.updatereader import adapter_tensors


def plan_tensor(ref: TensorRef, module: LoraModule | None) -> PlannedTensor:
    """Plans a tensor of a Llama, merged if it is adapted."""
    if module is None:
        return PlannedTensor(ref.name, ref.dtype, ref.shape, "copy", ref.name)
    delta = Delta(
        "x", module.module, module.lora_a.name, module.lora_b.name, module.rank, module.scale
    )
    return PlannedTensor(ref.name, ref.dtype, ref.shape, "lora", ref.name, (delta,))


def main(base_directory: str, adapter_directory: str, out: str, *quants: str) -> None:
    """Writes all files into a new folder."""
    base, spec = read_base(Path(base_directory)), read_adapter(Path(adapter_directory))
    modules = {f"{name}.weight": module for name, module in spec.modules.items()}
    planned = {
        name: plan_tensor(ref, modules.pop(name, None)) for name, ref in base.tensors.items()
    }
    assert not modules
    model = map_model(base.config, {name: ref.shape for name, ref in base.tensors.items()})
    files = tuple(
        file for quant in quants for file in plan_files(model, parse_quant(quant), f"model-{quant}")
    )
    folder = Path(out)
    folder.mkdir()
    sources = WeightSources(planned, base.tensors, adapter_tensors({"x": spec.tensors}))
    write_gguf(folder, model, files, sources, threads=os.cpu_count() or 1, progress=Silent())


if __name__ == "__main__":
    main(*sys.argv[1:])
