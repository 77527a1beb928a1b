"""A Ray Serve LLM application, for bases that need several GPUs or machines."""

from __future__ import annotations

from packager.container.deployment import Deployment, render_template


def render_ray(deployment: Deployment) -> dict[str, str]:
    """Returns the texts of the application by path."""
    return {"ray/serve.yaml": render_template("ray/serve.yaml", deployment)}
