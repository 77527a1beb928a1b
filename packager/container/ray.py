"""A Ray Serve LLM application, for bases that need several GPUs or machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packager.container.deployment import HOME, Deployment
from packager.container.template import render_template
from packager.resource import read_resource
from packager.serving.document import PORT, launch_flags

RAY_VERSION = "2.60.0"

_LEFT_OUT = frozenset(
    {
        "model", "served-model-name", "gpu-memory-utilization", "disable-access-log-for-endpoints",
    }
)  # fmt: skip
"""Options that Ray Serve LLM gives to vLLM itself, one for servers that share their GPUs, and one
of a log that Ray Serve writes instead.

Source: ray 2.60.0, llm/_internal/serve/engines/vllm/vllm_models.py, get_initialization_kwargs.
"""


@dataclass(frozen=True)
class _Application:
    """One server as an application of Ray Serve.

    Attributes:
        server: Which.
        route: Prefix of its paths; the first server has all paths that no other has.
        source: What the engine loads.
        engine: Its options.
        environment: Variables of its processes.
    """

    server: Deployment
    route: str
    source: str
    engine: Mapping[str, Any]
    environment: Mapping[str, str]


def render_ray(deployment: Deployment) -> dict[str, str]:
    """Returns the texts of the applications by path."""
    return {
        "ray/Dockerfile": render_template("ray/Dockerfile", deployment, ray_version=RAY_VERSION),
        "ray/requirements.txt": read_resource("docker/requirements-ray.txt"),
        "ray/serve.yaml": render_template(
            "ray/serve.yaml",
            deployment,
            ray_version=RAY_VERSION,
            applications=[_plan_application(server) for server in deployment.servers],
        ),
    }


def engine_arguments(deployment: Deployment) -> dict[str, Any]:
    """Returns vLLM's options by the names that its Python classes have, paths from the root.

    Source: vLLM 0.32.0, vllm/engine/arg_utils.py, human_readable_int_or_auto: auto is -1; and
    vllm/entrypoints/launchers/cli_args.py, LoRAParserAction.
    """
    arguments: dict[str, Any] = {}
    for flag, value in launch_flags(deployment.plan).items():
        if flag in _LEFT_OUT:
            continue
        if flag == "lora-modules" and isinstance(value, tuple):
            modules = [json.loads(item) for item in value]
            arguments["lora_modules"] = [
                {**module, "path": f"{HOME}/{module['path']}"} for module in modules
            ]
        else:
            arguments[flag.replace("-", "_")] = -1 if value == "auto" else value
    arguments["tensor_parallel_size"] = deployment.parallel.tensor
    arguments["pipeline_parallel_size"] = deployment.parallel.pipeline
    return arguments


def _plan_application(server: Deployment) -> _Application:
    model = str(launch_flags(server.plan)["model"])
    environment = {"LORAPACK_HOME": server.home}
    if server.neighbours:
        environment["LORAPACK_NEIGHBOURS"] = ",".join(
            f"{other.plan.base.name}=http://127.0.0.1:{PORT}{_route(other)}"
            for other in server.neighbours
        )
    if server.weights_from != "hub":
        environment["HF_HUB_OFFLINE"] = "1"
    return _Application(
        server,
        _route(server),
        model if server.weights_from == "hub" else f"{server.home}/{model}",
        engine_arguments(server),
        environment,
    )


def _route(server: Deployment) -> str:
    return f"/models/{server.name}" if server.is_neighbour else "/"
