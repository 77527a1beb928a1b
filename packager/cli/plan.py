"""`lorapack plan`: the dry run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from packager.cli.option import (
    Given,
    parse_request,
    print_json,
    print_text,
    release_options,
    size_text,
)
from packager.cli.progress import TerminalProgress
from packager.gguf.value import GgufTensor
from packager.plan import (
    Addition,
    Delta,
    GgufLoraPlan,
    GgufPlan,
    Magnitude,
    ModuleUpdate,
    PartDelta,
    PlannedTensor,
    ReleasePlan,
    Residual,
    Rounding,
    TargetPlan,
    Update,
)
from packager.plan.document import plan_document
from packager.serving.document import SERVE_NAME, launch_flags, option_lines
from packager.serving.path import adapter_path, neighbour_path
from packager.serving.value import ServedLora, ServingPlan


@click.command("plan")
@release_options
def command(as_json: bool, **given: Any) -> None:
    """Show every tensor and file of a release, its bytes, memory and time; write nothing."""
    from packager.preparation import joined, plan_request

    request = parse_request(Given(**given), Path())
    with (
        tempfile.TemporaryDirectory(prefix="lorapack-") as hollow,
        TerminalProgress() as progress,
        joined(request, progress, hollow=Path(hollow)) as asked,
    ):
        plan = plan_request(asked, progress, hollow=Path(hollow)).plan
    if as_json:
        print_json(plan_document(plan))
    else:
        print_text(render_plan_text(plan))


def render_plan_text(plan: ReleasePlan) -> str:
    """Returns a plan as a person reads it."""
    evidence = "locked" if plan.evidence == "lock" else "by name and shape only"
    lines = [
        f"base     {plan.base} ({evidence})",
        f"licence  {plan.license}",
        f"reads    {size_text(plan.read_bytes)}",
        f"writes   {size_text(plan.output_bytes)}",
        f"memory   {size_text(plan.peak_memory_bytes)} to write, "
        f"{size_text(plan.behaviour_memory_bytes)} to prove the behaviour",
        f"time     about {plan.seconds:.0f} s on a disk of 300 MB/s",
    ]
    lines += [f"note     {note}" for note in plan.notes]
    for target in plan.targets:
        lines += ["", *_target_lines(target)]
    if plan.serving is not None:
        lines += ["", *_server_lines(plan.serving)]
    return "\n".join(lines)


def _server_lines(first: ServingPlan) -> list[str]:
    """What all adapters of a server share; its texts are named in the folder's README."""
    lines = []
    for server in (first, *first.neighbours):
        own = "" if server is first else f"{neighbour_path(server.base.name)}/"
        lines.append(f"vllm/{own}{SERVE_NAME}  for vLLM {server.vllm_version}")
        lines += [f"    {line}" for line in option_lines(launch_flags(server))]
        if server.base.baked:
            lines.append(f"  vllm/{own}base/  {size_text(server.base.nbytes)}")
    lines.append("  README.md, gate/, containers, Kubernetes, Ray and monitoring  (written)")
    return lines


def _target_lines(target: TargetPlan) -> list[str]:
    lines = [f"{target.path}/  {size_text(target.nbytes)}"]
    for shard in target.shards:
        lines.append(f"  {shard.path}  {size_text(shard.nbytes)}, {len(shard.tensors)} tensors")
        for tensor in shard.tensors:
            source = "" if tensor.source == tensor.name else f" from {tensor.source}"
            what = f"{tensor.dtype} {_shape(tensor.shape)}{source}{_deltas(tensor)}"
            lines.append(f"    {tensor.rule:<5} {tensor.name} {what}")
    if target.converter is not None:
        size = size_text(target.converter.nbytes)
        lines.append(f"  {size} merged in float32 for the converter, removed afterwards")
        lines += [f"  {target.name}-{quant}.gguf" for quant in target.converter.quants]
    if target.gguf is not None:
        lines += _gguf_lines(target.gguf)
    if target.gguf_lora is not None:
        lines += _lora_lines(target.gguf_lora)
    if target.whole is not None:
        lines.append(f"  {target.whole.folder}/ is served as a whole")
    if target.served is not None:
        lines += _served_lines(target.name, target.served)
    for file in target.files:
        size = "" if file.size is None else f"  {size_text(file.size)}"
        lines.append(f"  {file.path}  ({file.origin}){size}")
    return lines


def _gguf_lines(plan: GgufPlan) -> list[str]:
    merged = {tensor.name: tensor for tensor in plan.merged}
    sources = {tensor.name: tensor for tensor in plan.tensors}
    lines = [f"  {plan.architecture}: {len(plan.keys) + len(plan.long_keys)} keys"]
    for file in plan.files:
        lines.append(f"  {file.path}  {size_text(file.size)}, {len(file.tensors)} tensors")
        for item in file.tensors:
            tensor = item.tensor
            fallen = f" instead of {tensor.fell_back}" if tensor.fell_back else ""
            origin = _origin(sources[tensor.name], merged)
            lines.append(
                f"    {tensor.type:<5} {tensor.name} {_shape(tensor.shape)}{fallen}{origin}"
            )
    if plan.dropped:
        lines.append(f"  not needed: {', '.join(plan.dropped[:3])}, {len(plan.dropped)} in all")
    return lines


def _origin(tensor: GgufTensor, merged: Mapping[str, PlannedTensor]) -> str:
    if not tensor.sources:
        return " from the configuration"
    more = f" and {len(tensor.sources) - 1} more" if len(tensor.sources) > 1 else ""
    transform = "" if tensor.transform == "none" else f", {tensor.transform}"
    first = merged[tensor.sources[0]]
    return f" from {first.source}{more}{_deltas(first)}{transform}"


def _lora_lines(plan: GgufLoraPlan) -> list[str]:
    lines = [f"  {plan.path}  {size_text(plan.size)}, {len(plan.factors)} tensors"]
    for factor in plan.factors:
        scale = "" if factor.scale == 1 else f" times {factor.scale:g}"
        order = ", permute" if factor.heads else ""
        lines.append(f"    {plan.type:<5} {factor.name} {_shape(factor.shape)}{scale}{order}")
    return lines


def _served_lines(name: str, lora: ServedLora) -> list[str]:
    path = f"{adapter_path(name)}/adapter_model.safetensors"
    lines = [f"  {path}  {size_text(lora.size)}, {len(lora.factors)} tensors"]
    for factor in lora.factors:
        scale = "" if factor.scale == 1 else f" times {factor.scale:g}"
        lines.append(f"    {factor.dtype:<5} {factor.name} {_shape(factor.shape)}{scale}")
    return lines


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _deltas(tensor: PlannedTensor) -> str:
    return "".join(map(_update_text, tensor.deltas))


def _update_text(update: Update) -> str:
    if isinstance(update, (Delta, PartDelta)):
        return f" + {update.scale:g}·B·A rank {update.rank}"
    if isinstance(update, (Residual, Rounding)):
        return _start_text(update)
    if isinstance(update, Magnitude):
        return f", each {update.axis} to its trained norm"
    if isinstance(update, ModuleUpdate):
        return f", through PEFT's {update.tuner} with {len(update.reads)} tensors"
    if isinstance(update, Addition):
        return f" + {update.scale:g}·bias"
    return f", {len(update.indices)} rows trained"


def _start_text(update: Residual | Rounding) -> str:
    """What had become of the base before training."""
    if isinstance(update, Rounding):
        return f", rounded to {update.loaded_in}"
    return f" - what {update.kind} took out, rank {update.rank}"
