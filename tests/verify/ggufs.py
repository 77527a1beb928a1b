"""GGUF files of small models without a vocabulary of their own, by the writer that releases use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from packager.adapter import read_adapter
from packager.base import read_base
from packager.gguf.layout import plan_files
from packager.gguf.mapping import map_model, with_keys
from packager.gguf.mixture import parse_quant
from packager.gguf.value import GgufKey
from packager.plan import AdapterSource, BaseSource, GgufPlan, ReleaseOptions
from packager.plan.ggufadapter import plan_gguf_adapter
from packager.plan.rule import plan_tensors
from packager.progress import Silent
from packager.quantise import Importance, WeightSources, write_gguf
from packager.sinks.ggufadapter import write_gguf_lora
from packager.updatereader import adapter_tensors
from packager.verify.truthrows import TruthSources


@dataclass(frozen=True)
class Made:
    """Files of one model.

    Attributes:
        folder: Where they lie.
        plan: What they hold.
        sources: Base and adapter.
    """

    folder: Path
    plan: GgufPlan
    sources: TruthSources

    def path(self, quant: str) -> Path:
        [file] = (file for file in self.plan.files if file.quant == quant)
        return self.folder / file.path


def make_ggufs(
    base: Path,
    adapter: Path,
    folder: Path,
    *quants: str,
    lost: bool = False,
    importance: Importance | None = None,
) -> Made:
    """Writes base + adapter in each quantisation, or as if the adapter had been lost on the way."""
    index, source = read_base(base), adapter_source(adapter)
    merged, problems = plan_tensors(source, index, "F32")
    assert problems == []
    refs = adapter_tensors({source.name: source.spec.tensors})
    used = {name: replace(it, deltas=()) if lost else it for name, it in merged.items()}
    model = map_model(index.config, {name: tensor.shape for name, tensor in merged.items()})
    assert index.embedding is not None
    keys = (
        GgufKey("tokenizer.ggml.model", "string", "none"),
        GgufKey(f"{model.architecture}.vocab_size", "uint32", index.embedding.shape[0]),
    )
    model = with_keys(model, keys)
    named = GgufKey("quantize.imatrix.file", "string", "of a test")
    matrix = (named,) if importance else None
    files = tuple(
        it
        for name in quants
        for it in plan_files(model, parse_quant(name), name, imatrix_keys=matrix)
    )
    folder.mkdir(parents=True, exist_ok=True)
    sources = WeightSources(used, index.tensors, refs)
    write_gguf(folder, model, files, sources, threads=1, progress=Silent(), importance=importance)
    plan = GgufPlan(
        architecture=model.architecture,
        keys=model.keys,
        long_keys=(),
        tensors=model.tensors,
        dropped=model.dropped,
        files=files,
        merged=tuple(merged.values()),
    )
    return Made(folder, plan, TruthSources(index.tensors, refs))


def make_lora(base: Path, adapter: Path, folder: Path) -> Path:
    """Writes the adapter as a GGUF LoRA in float32."""
    source = adapter_source(adapter)
    origin = BaseSource("base", "lock", "apache-2.0", read_base(base), {}, {}, None)
    target, problems = plan_gguf_adapter(source, origin, ReleaseOptions(adapter_type="F32"))
    assert problems == []
    assert target is not None
    assert target.gguf_lora is not None
    folder.mkdir(parents=True, exist_ok=True)
    refs = {ref.name: ref for ref in source.spec.tensors}
    write_gguf_lora(folder, target.gguf_lora, refs)
    return folder / target.gguf_lora.path


def adapter_source(adapter: Path) -> AdapterSource:
    return AdapterSource("small", read_adapter(adapter), {}, None)
