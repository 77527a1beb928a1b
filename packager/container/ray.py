"""A Ray Serve LLM application, for bases that need several GPUs or machines."""

from __future__ import annotations

import json
from typing import Any

from packager.container.deployment import HOME, Deployment, render_template
from packager.serving.document import launch_flags

RAY_VERSION = "2.60.0"

_BY_RAY = frozenset({"model", "served-model-name"})
"""Options that Ray Serve LLM gives to vLLM itself.

Source: ray 2.60.0, llm/_internal/serve/engines/vllm/vllm_models.py, get_initialization_kwargs.
"""


def render_ray(deployment: Deployment) -> dict[str, str]:
    """Returns the texts of the application by path."""
    return {
        "ray/Dockerfile": render_template("ray/Dockerfile", deployment, ray_version=RAY_VERSION),
        "ray/serve.yaml": render_template(
            "ray/serve.yaml",
            deployment,
            ray_version=RAY_VERSION,
            model_source=_model_source(deployment),
            engine=engine_arguments(deployment),
        ),
    }


def engine_arguments(deployment: Deployment) -> dict[str, Any]:
    """Returns vLLM's options by the names that its Python classes have, paths from the root.

    Source: vLLM 0.32.0, vllm/engine/arg_utils.py, human_readable_int_or_auto: auto is -1; and
    vllm/entrypoints/launchers/cli_args.py, LoRAParserAction.
    """
    arguments: dict[str, Any] = {}
    for flag, value in launch_flags(deployment.plan).items():
        if flag in _BY_RAY:
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


def _model_source(deployment: Deployment) -> str:
    model = str(launch_flags(deployment.plan)["model"])
    return model if deployment.weights_from == "hub" else f"{HOME}/{model}"
