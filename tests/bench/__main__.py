"""`just bench [--runs N] [--peft-runs N] [--folder DIR] [start speed memory gguf]`."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bench.apart import apart
from tests.bench.gguf import bench_gguf, bench_gguf_memory
from tests.bench.measure import LORAPACK, PEFT, Run, median_ratio, median_seconds, paired, run

SIZES = ("1B", "3B", "8B", "2GB-tensor")
KINDS = ("1B", "3B")
"""Sizes at which other kinds of adapters and bases are measured: twice, to see what grows."""


def main() -> None:
    """Runs the parts that were asked for and prints a Markdown table of each."""
    parser = argparse.ArgumentParser(prog="just bench")
    parser.add_argument("parts", nargs="*", default=["start", "speed", "memory"])
    parser.add_argument("--runs", type=int, default=5, help="paired runs")
    parser.add_argument("--peft-runs", type=int, default=3, help="paired runs against PEFT")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "lorapack-bench")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"machine: {apart('packager.verify.check', 'describe_machine')}\n")
    if "start" in options.parts:
        _start(options.folder)
    if "speed" in options.parts:
        _speed(options.folder, options.runs, options.peft_runs)
    if "memory" in options.parts:
        _memory(options.folder)
    if "gguf" in options.parts:
        _gguf(options.folder, options.peft_runs)


def _start(folder: Path) -> None:
    base = _base("3B", folder)
    adapter = _adapter("3B", folder, base)
    cache = folder / "cache"
    commands = {"--help": ["--help"], "inspect": ["inspect", str(adapter)]}
    runs = paired(
        10,
        {
            name: lambda arguments=arguments: run([*LORAPACK, *arguments], cache=cache)
            for name, arguments in commands.items()
        },
    )
    print("\n| command | median s | peak memory, GiB |")
    print("| --- | --- | --- |")
    for name, each in runs.items():
        peak = max(item.peak_bytes for item in each) / 2**30
        print(f"| lorapack {name} | {median_seconds(each):.2f} | {peak:.2f} |")


def _speed(folder: Path, count: int, peft_count: int) -> None:
    base = _base("3B", folder)
    adapter = _adapter("3B", folder, base)
    starts = _contenders(folder, base, adapter)
    peft = starts.pop("PEFT")
    runs = paired(count, starts)
    slow = paired(peft_count, {"lorapack merge": starts["lorapack merge"], "PEFT": peft})
    copy, merge, whole = (runs[name] for name in ("cp + sync", "lorapack merge", "release"))
    ours, theirs = slow["lorapack merge"], slow["PEFT"]
    print("\n3 B parameters, bfloat16, 4 shards, rank 16 on all linear layers\n")
    print("| | median s | peak memory, GiB | against |")
    print("| --- | --- | --- | --- |")
    rows = (
        ("`cp -r base out && sync`", copy, ""),
        ("`lorapack merge`", merge, f"{median_ratio(merge, copy):.2f} × copy"),
        (
            "`lorapack release --target merged --no-behaviour`",
            whole,
            f"{median_ratio(whole, copy):.2f} × copy",
        ),
        ("PEFT load + merge + save", theirs, f"{median_ratio(theirs, ours):.1f} × merge"),
    )
    for title, each, against in rows:
        peak = max(item.peak_bytes for item in each) / 2**30
        print(f"| {title} | {median_seconds(each):.1f} | {peak:.2f} | {against} |")
    written = max(item.written_bytes for item in merge)
    size = sum(path.stat().st_size for path in (folder / "out-merge").iterdir())
    print(f"\nmerge wrote {written:,} bytes for an output of {size:,} bytes")
    accuracy = apart(
        "tests.bench.accuracy", "compare_accuracy", base, adapter,
        folder / "out-merge", folder / "out-peft",
    )  # fmt: skip
    print(
        f"accuracy: mean error {accuracy.ratio:.4f} × PEFT's; worse on {accuracy.worse} of "
        f"{accuracy.merged} merged tensors (at most {accuracy.excess:+.1e}, where float32 tells "
        f"apart {2.0**-24:.1e}); {accuracy.changed} of {accuracy.kept} untouched "
        "tensors differ from the base"
    )
    _remove(folder)


def _memory(folder: Path) -> None:
    print("\n| base, adapter | base bytes | merge, s | peak memory, GiB |")
    print("| --- | --- | --- | --- |")
    for name in SIZES:
        base = _base(name, folder)
        adapter = _adapter(name, folder, base)
        _measure_merge(f"{name}, LoRA", folder, base, adapter)
        if name in KINDS:
            for kind in ("dora", "loha"):
                made = _kind(f"make_{kind}", name, folder, adapter)
                _measure_merge(f"{name}, {kind}", folder, base, made)
            four_bit = _kind("make_four_bit_base", name, folder, base)
            _measure_merge(f"{name} in NF4, LoRA", folder, four_bit, adapter)
            shutil.rmtree(four_bit)
        if name != "3B":
            shutil.rmtree(base)


def _measure_merge(title: str, folder: Path, base: Path, adapter: Path) -> None:
    made = _contenders(folder, base, adapter)["lorapack merge"]()
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    print(f"| {title} | {size:,} | {made.seconds:.1f} | {made.peak_bytes / 2**30:.2f} |")
    _remove(folder)


def _kind(maker: str, name: str, folder: Path, source: Path) -> Path:
    made: Path = apart("tests.bench.kind", maker, name, folder, source)
    return made


def _gguf(folder: Path, count: int) -> None:
    base = _base("3B", folder)
    bench_gguf(folder, base, _adapter("3B", folder, base), count)
    base = _base("2GB-tensor", folder)
    bench_gguf_memory(folder, base, _adapter("2GB-tensor", folder, base))
    shutil.rmtree(base)


def _contenders(folder: Path, base: Path, adapter: Path) -> dict[str, Callable[[], Run]]:
    cache = folder / "cache"

    def start(out: Path, *command: str, sync: bool = False) -> Run:
        shutil.rmtree(out, ignore_errors=True)
        return run(command, cache=cache, sync=sync)

    copied, merged, released, peft = (
        folder / f"out-{name}" for name in ("copy", "merge", "release", "peft")
    )
    merge = ("merge", "--base_model_path", str(base), "--lora_adapter_path", str(adapter))
    release = ("release", str(adapter), "--base", str(base), "--target", "merged")
    return {
        "cp + sync": lambda: start(copied, "cp", "-r", str(base), str(copied), sync=True),
        "lorapack merge": lambda: start(merged, *LORAPACK, *merge, "--output_path", str(merged)),
        "release": lambda: start(
            released, *LORAPACK, *release, "--no-behaviour", "--out", str(released)
        ),
        "PEFT": lambda: start(peft, *PEFT, str(base), str(adapter), str(peft), sync=True),
    }


def _base(name: str, folder: Path) -> Path:
    base: Path = apart("tests.bench.shape", "make_base", name, folder)
    return base


def _adapter(name: str, folder: Path, base: Path) -> Path:
    adapter: Path = apart("tests.bench.shape", "make_adapter", name, folder, base)
    return adapter


def _remove(folder: Path) -> None:
    for out in folder.glob("out-*"):
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
