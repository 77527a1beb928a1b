"""One pass into GGUF against what people do today: merge, convert, quantise each.

llama-quantize runs on the very ggml that lorapack calls, so that only the ways differ.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.measure import PEFT, Run, median_ratio, median_seconds, paired, run
from tests.gguf.llama_tools import quantize_command
from tests.llamacpp_source import llamacpp_source
from tests.models import cache_folder, write_tokenizer

QUANTS = ("Q4_K_M", "Q8_0")
_PASS = (sys.executable, "-m", "tests.bench.gguf_pass")
_CONVERT = (sys.executable, "-m", "tests.bench.gguf_convert")


def bench_gguf(folder: Path, base: Path, adapter: Path, count: int) -> None:
    """Prints a table of paired runs; needs five times the room of the base.

    Args:
        folder: For outputs.
        base: A Llama without a tokenizer.
        adapter: A LoRA for it.
        count: Of paired runs.
    """
    llamacpp_source()
    quantize_command()
    runs = paired(
        count,
        {
            "cp + sync": lambda: _copy(folder, base),
            "ours Q8_0": lambda: _pass(folder, base, adapter, "Q8_0"),
            "ours both": lambda: _pass(folder, base, adapter, *QUANTS),
            "theirs both": lambda: _theirs(folder, base, adapter),
        },
    )
    copy, one, both, theirs = runs.values()
    print(f"\n{sum(path.stat().st_size for path in base.glob('*.safetensors')):,} bytes of base\n")
    print("| | median s | peak memory, GiB | written, GB | against |")
    print("| --- | --- | --- | --- | --- |")
    for title, each, against in (
        ("`cp -r base out && sync`", copy, ""),
        ("base + adapter → Q8_0", one, f"{median_ratio(one, copy):.2f} × copy"),
        ("base + adapter → Q4_K_M and Q8_0", both, f"{median_ratio(both, theirs):.2f} × theirs"),
        ("PEFT merge, llama.cpp convert, llama-quantize twice", theirs, ""),
    ):
        peak = max(item.peak_bytes for item in each) / 2**30
        written = max(item.written_bytes for item in each) / 1e9
        print(f"| {title} | {median_seconds(each):.1f} | {peak:.2f} | {written:.2f} | {against} |")


def bench_gguf_memory(folder: Path, base: Path, adapter: Path) -> None:
    """Prints the peak memory of a base with a huge tensor."""
    largest = _pass(folder, base, adapter, *QUANTS)
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    print(f"\n{base.name}, {size:,} bytes: peak memory {largest.peak_bytes / 2**30:.2f} GiB")


def _copy(folder: Path, base: Path) -> Run:
    out = _new(folder, "out-copy")
    return _removed(out, run(("cp", "-r", base, out), cache=folder / "cache", sync=True))


def _pass(folder: Path, base: Path, adapter: Path, *quants: str) -> Run:
    out = _new(folder, "out-gguf")
    done = run((*_PASS, base, adapter, out, *quants), cache=folder / "cache")
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"    an output of {size:,} bytes")
    return _removed(out, done)


def _theirs(folder: Path, base: Path, adapter: Path) -> Run:
    """Runs the four programs in turn; the intermediate files are part of it."""
    out = _new(folder, "out-theirs")
    merged, plain = out / "merged", out / "merged.gguf"
    runs = [_start(folder, (*PEFT, base, adapter, merged))]
    write_tokenizer(merged)
    runs.append(_start(folder, (*_CONVERT, merged, plain, cache_folder().parent)))
    runs += [
        _start(folder, quantize_command([plain, out / f"{quant}.gguf", quant])) for quant in QUANTS
    ]
    for each, name in zip(runs, ("merge", "convert", *QUANTS), strict=True):
        print(f"    {name:<8} {each.seconds:6.1f} s  cpu {each.cpu_seconds:6.1f} s")
    whole = Run(
        seconds=sum(each.seconds for each in runs),
        cpu_seconds=sum(each.cpu_seconds for each in runs),
        peak_bytes=max(each.peak_bytes for each in runs),
        written_bytes=sum(each.written_bytes for each in runs),
    )
    return _removed(out, whole)


def _start(folder: Path, command: Sequence[str | Path]) -> Run:
    return run(command, cache=folder / "cache", sync=True)


def _new(folder: Path, name: str) -> Path:
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    if name == "out-theirs":
        out.mkdir()
    return out


def _removed(out: Path, done: Run) -> Run:
    shutil.rmtree(out)
    return done
