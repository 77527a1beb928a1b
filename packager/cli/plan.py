"""`lorapack plan`: the dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from packager.cli.option import (
    parse_adapters,
    parse_options,
    print_json,
    print_text,
    release_options,
    size_text,
)
from packager.cli.progress import TerminalProgress
from packager.plan import ReleasePlan, TargetPlan
from packager.plan.document import plan_document


@click.command("plan")
@release_options
def command(
    adapters: tuple[str, ...],
    base: str | None,
    require_lock: bool,
    targets: tuple[Any, ...],
    dtype: str,
    max_shard_size: str,
    license_id: str | None,
    as_json: bool,
) -> None:
    """Show every tensor and file of a release, its bytes, memory and time; write nothing."""
    from packager.release import ReleaseRequest, plan_request

    request = ReleaseRequest(
        adapters=parse_adapters(adapters),
        out=Path(),
        base=base,
        require_lock=require_lock,
        options=parse_options(targets, dtype, max_shard_size, license_id),
    )
    with TerminalProgress() as progress:
        _, plan = plan_request(request, progress)
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
    return "\n".join(lines)


def _target_lines(target: TargetPlan) -> list[str]:
    lines = [f"{target.path}/  {size_text(target.nbytes)}"]
    for shard in target.shards:
        lines.append(f"  {shard.path}  {size_text(shard.nbytes)}, {len(shard.tensors)} tensors")
        for tensor in shard.tensors:
            shape = "×".join(map(str, tensor.shape)) or "scalar"
            what = "".join(f" + {d.scale:g}·B·A rank {d.rank}" for d in tensor.deltas)
            source = "" if tensor.source == tensor.name else f" from {tensor.source}"
            lines.append(f"    {tensor.rule:<5} {tensor.name} {tensor.dtype} {shape}{source}{what}")
    for file in target.files:
        size = "" if file.size is None else f"  {size_text(file.size)}"
        lines.append(f"  {file.path}  ({file.origin}){size}")
    return lines
