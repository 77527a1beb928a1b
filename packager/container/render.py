"""A serving plan → every text of its containers."""

from __future__ import annotations

from packager.container.dashboard import render_dashboard
from packager.container.deployment import Deployment, plan_deployment, render_template
from packager.container.image import render_dockerfile
from packager.container.ray import render_ray
from packager.resource import read_resource
from packager.serving.value import ServingPlan

_KUBERNETES = (
    "kustomization", "serviceaccount", "deployment", "service", "autoscaler", "disruption",
    "network",
)  # fmt: skip


def container_files(plan: ServingPlan) -> tuple[str, ...]:
    """Returns the paths that `render_container` gives, in order.

    Raises:
        InputError: The base cannot be spread over GPUs of the memory asked for.
    """
    return tuple(render_container(plan, proven=True))


def render_container(plan: ServingPlan, *, proven: bool) -> dict[str, str]:
    """Returns every text by its path below the server's folder.

    Args:
        plan: Of the server.
        proven: Whether the bundle holds the answers that the server is checked against.

    Raises:
        InputError: The base cannot be spread over GPUs of the memory asked for.
    """
    deployment = plan_deployment(plan)
    texts = {
        name: render_dockerfile(read_resource(f"docker/{name}"), plan, proven=proven)
        for name in ("Dockerfile", "Dockerfile.cpu")
    } | {
        "requirements-cpu.txt": read_resource("docker/requirements-cpu.txt"),
        ".dockerignore": read_resource("docker/bundle.dockerignore"),
        "compose.yaml": render_template("compose.yaml", deployment),
    }
    # A Deployment's pod is one machine; what needs more is for Ray.
    if deployment.parallel.nodes == 1:
        texts |= _render_kubernetes(deployment)
    return {
        **texts,
        **render_ray(deployment),
        "monitoring/prometheus.yaml": render_template("prometheus.yaml", deployment),
        "monitoring/prometheus-adapter.yaml": render_template(
            "prometheus-adapter.yaml", deployment
        ),
        "monitoring/dashboard.json": render_dashboard(deployment),
    }


def _render_kubernetes(deployment: Deployment) -> dict[str, str]:
    names = [*_KUBERNETES, *(["base-claim"] if deployment.weights_from == "folder" else [])]
    return {f"k8s/{name}.yaml": render_template(f"k8s/{name}.yaml", deployment) for name in names}
