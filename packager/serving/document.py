"""`serve.yaml`, which `vllm serve --config` reads, and `gate.json`; writers and parsers.

Every value of `serve.yaml` is JSON on one line, which YAML reads as what it is: the parser here
needs no more, and takes only what a release writes.

Source: vLLM 0.32.0, vllm/utils/argparse_utils.py, load_config_file: a list becomes an option with
several values, true an option without one; paths are those of the working directory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from packager.errors import BundleError, InputError
from packager.record import build_record
from packager.serving.engine import GATE
from packager.serving.path import adapter_path, merged_folder, template_path
from packager.serving.value import ServedAdapter, ServingPlan
from packager.untrusted import check_relative_name, parse_json_object

SERVE_NAME = "serve.yaml"
GATE_NAME = "gate.json"
GATE_SCHEMA_VERSION = 1
BASE_FOLDER = "base"
GATE_FOLDER = "gate"
PORT = 8000
_LINE = re.compile(r"(?P<key>[a-z][a-z-]{0,60}): (?P<value>.{1,1000000})")
_MAX_LINES = 100
_URL = re.compile(r"http://[a-z0-9][a-z0-9.-]{0,252}:[1-9]\d{0,4}")

Flag = bool | int | float | str | tuple[str, ...]

_TYPES: Mapping[str, type[Any]] = {
    "model": str,
    "revision": str,
    "tokenizer-revision": str,
    "served-model-name": tuple,
    "dtype": str,
    "max-model-len": object,
    "gpu-memory-utilization": float,
    "enable-lora": bool,
    "max-lora-rank": int,
    "max-loras": int,
    "max-cpu-loras": int,
    "lora-modules": tuple,
    "trust-request-chat-template": bool,
    "middleware": tuple,
    "disable-fastapi-docs": bool,
    "disable-access-log-for-endpoints": str,
}
"""Option → type of its value; `max-model-len` is a number or `auto`."""


@dataclass(frozen=True)
class GateModel:
    """A model that the gate lets through.

    Attributes:
        name: Under which it answers.
        kind: What it is.
        chat_template: File of the chat template that the gate gives it, or None.
        stop_token_ids: Token ids that end its answers besides the server's own.
        chat: Whether it takes conversations: there is a chat template, its own or the server's.
    """

    name: str
    kind: Literal["base", "adapter", "merged"]
    chat_template: str | None
    stop_token_ids: tuple[int, ...]
    chat: bool


@dataclass(frozen=True)
class GateNeighbour:
    """Another server, of one merged model, which the gate passes requests on to.

    Attributes:
        name: Its folder below `models/`.
        url: Where it is in containers and clusters, such as `http://base-pirate:8000`.
        models: As in its own `gate.json`.
    """

    name: str
    url: str
    models: tuple[GateModel, ...]


@dataclass(frozen=True)
class GateConfig:
    """The content of `gate.json`.

    Attributes:
        schema_version: Of this document.
        vllm_version: That the release was checked against.
        base: Name of the base; empty where only whole models are served.
        expected: File of the answers that the server has to give, or None without a proof.
        models: All that this server may be asked for, the base first.
        neighbours: Servers of further models.
    """

    schema_version: int
    vllm_version: str
    base: str
    expected: str | None
    models: tuple[GateModel, ...]
    neighbours: tuple[GateNeighbour, ...] = ()

    @property
    def all_models(self) -> tuple[GateModel, ...]:
        """All that may be asked for, the neighbours' last."""
        return (*self.models, *(model for item in self.neighbours for model in item.models))


def launch_flags(plan: ServingPlan) -> dict[str, Flag]:
    """Returns the options that the server is started with, in the order of `serve.yaml`."""
    base, origin = plan.base, plan.base.origin
    flags: dict[str, Flag | None] = {
        "model": str(origin.repo) if base.from_hub else BASE_FOLDER,
        "revision": origin.commit if base.from_hub else None,
        "tokenizer-revision": origin.commit if base.from_hub else None,
        "served-model-name": (base.name,),
        "dtype": base.dtype,
        "max-model-len": "auto" if base.context is None else base.context,
        "gpu-memory-utilization": plan.gpu_share,
        **_lora_flags(plan),
        "trust-request-chat-template": plan.trusts_templates or None,
        "middleware": (GATE,),
        "disable-fastapi-docs": True,
        # Asked every few seconds, without a key and for ever.
        "disable-access-log-for-endpoints": "/health,/ready",
    }
    return {name: value for name, value in flags.items() if value is not None}


def _lora_flags(plan: ServingPlan) -> dict[str, Flag | None]:
    if not plan.adapters:
        return {}
    return {
        "enable-lora": True,
        "max-lora-rank": plan.max_lora_rank,
        "max-loras": plan.max_loras,
        "max-cpu-loras": plan.max_cpu_loras,
        "lora-modules": tuple(_lora_module(item, plan.base.name) for item in plan.adapters),
    }


def render_serve_yaml(flags: Mapping[str, Flag], vllm_version: str) -> str:
    """Returns the text of `serve.yaml`."""
    head = f"# Options of vLLM {vllm_version}; its working directory has to be this folder."
    return "\n".join((head, *option_lines(flags))) + "\n"


def option_lines(flags: Mapping[str, Flag]) -> list[str]:
    """Returns the lines of `serve.yaml`, one for each option."""
    return [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in flags.items()]


def parse_serve_yaml(text: str, *, where: str) -> dict[str, Flag]:
    """Parses what `render_serve_yaml` wrote; whatever else YAML may hold is refused.

    Raises:
        BundleError: A line, an option or a value is none that a release writes.
    """
    flags: dict[str, Flag] = {}
    try:
        for line in text.splitlines()[:_MAX_LINES]:
            if line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if found is None or found["key"] in flags:
                raise ValueError(f"line {line[:80]!r}")
            flags[found["key"]] = _flag(found["key"], json.loads(found["value"]))
        _check_flags(flags, text)
    except (ValueError, KeyError, RecursionError, InputError) as problem:
        raise BundleError(
            "the launch configuration is not as a release writes it",
            where=where,
            expected="known options of vLLM, one on a line",
            found=str(problem)[:200],
            hint="copy the bundle again, or release it again",
        ) from problem
    return flags


def gate_config(plan: ServingPlan, expected: str | None) -> GateConfig:
    """Returns what the gate has to know.

    Args:
        plan: Of the server.
        expected: File of the answers that the server has to give, or None without a proof.
    """
    return GateConfig(
        schema_version=GATE_SCHEMA_VERSION,
        vllm_version=plan.vllm_version,
        base=plan.base.name if plan.base.merged is None else "",
        expected=expected,
        models=_gate_models(plan),
        neighbours=tuple(
            GateNeighbour(server.base.name, f"http://{server.service}:{PORT}", _gate_models(server))
            for server in plan.neighbours
        ),
    )


def _gate_models(plan: ServingPlan) -> tuple[GateModel, ...]:
    base = plan.base
    kind: Literal["base", "merged"] = "base" if base.merged is None else "merged"
    models = [GateModel(base.name, kind, None, (), base.chat)]
    for adapter in plan.adapters:
        own = adapter.template is not None
        template = template_path(adapter.name) if own else None
        chat = own or base.chat
        models.append(GateModel(adapter.name, "adapter", template, adapter.stop_ids, chat))
    return tuple(models)


def render_gate(config: GateConfig) -> str:
    """Returns the text of `gate.json`."""
    return json.dumps(asdict(config), ensure_ascii=False, indent=1) + "\n"


def parse_gate(text: str | bytes, *, where: str) -> GateConfig:
    """Parses what `render_gate` wrote.

    Raises:
        BundleError: Another schema, a wrong field, or a path that leads outside.
    """
    try:
        raw = parse_json_object(text, where=where, constants=False)
        if raw["schema_version"] != GATE_SCHEMA_VERSION:
            raise ValueError(f"schema_version {raw['schema_version']!r:.40}")
        config = build_record(GateConfig, raw)
        _check_gate(config, where)
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as problem:
        raise BundleError(
            "the gate's configuration is damaged",
            where=where,
            found=str(problem)[:200],
            hint="copy the bundle again, or release it again",
        ) from problem
    return config


def weights_folder(config: GateConfig) -> str | None:
    """Returns the bundle's folder of the merged model that a server loads; None for the base."""
    first = config.models[0]
    return merged_folder(first.name) if first.kind == "merged" else None


def _lora_module(adapter: ServedAdapter, base: str) -> str:
    module = {
        "name": adapter.name, "path": adapter_path(adapter.name), "base_model_name": base,
    }  # fmt: skip
    return json.dumps(module, ensure_ascii=False)


def _flag(key: str, value: Any) -> Flag:
    kind = _TYPES[key]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = tuple(value)
    fits = value == "auto" or type(value) is int if kind is object else type(value) is kind
    if not fits:
        raise ValueError(f"{key}: {value!r:.80}")
    flag: Flag = value
    return flag


def _check_flags(flags: Mapping[str, Flag], text: str) -> None:
    if len(text.splitlines()) > _MAX_LINES:
        raise ValueError(f"more than {_MAX_LINES} lines")
    missing = {"model", "served-model-name", "middleware"} - set(flags)
    if missing:
        raise ValueError(f"no {min(missing)}")
    if flags["middleware"] != (GATE,):
        raise ValueError(f"middleware {flags['middleware']!r:.80}")
    modules = flags.get("lora-modules", ())
    for item in modules if isinstance(modules, tuple) else ():
        module = json.loads(item)
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(path, str) or path != adapter_path(str(module.get("name"))):
            raise ValueError(f"lora-modules: {item[:80]!r}")
        check_relative_name(path, where="lora-modules")


def _check_gate(config: GateConfig, where: str) -> None:
    names = [model.name for model in config.all_models]
    bases = [model.name for model in config.all_models if model.kind == "base"]
    if len(set(names)) != len(names) or not config.models or names[: len(bases)] != bases:
        raise ValueError(f"models {names!r:.100}")
    if bases != ([config.base] if config.base else []):
        raise ValueError(f"base {config.base!r:.100}")
    paths = [model.chat_template for model in config.all_models] + [config.expected]
    for path in paths:
        if path is not None:
            check_relative_name(path, where=where)
    for neighbour in config.neighbours:
        if "/" in check_relative_name(neighbour.name, where=where) or not neighbour.models:
            raise ValueError(f"neighbour {neighbour.name!r:.100}")
        if not _URL.fullmatch(neighbour.url):
            raise ValueError(f"url {neighbour.url!r:.100}")
