"""A serving plan → every text of its containers."""

from __future__ import annotations

from packager.container.dashboard import render_dashboard
from packager.container.deployment import Deployment, plan_deployment
from packager.container.image import render_dockerfile
from packager.container.ray import render_ray
from packager.container.template import render_template
from packager.resource import read_resource
from packager.serving.value import ServingPlan

_EACH = ("deployment", "service", "autoscaler", "disruption", "network")


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
    }
    # Compose is for one machine, and so is a Deployment's pod; what needs more is for Ray.
    if deployment.fits_machine:
        texts["compose.yaml"] = render_template("compose.yaml", deployment)
    if deployment.fits_machines:
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


def _render_kubernetes(front: Deployment) -> dict[str, str]:
    texts = {"k8s/serviceaccount.yaml": render_template("k8s/serviceaccount.yaml", front)}
    for server in front.servers:
        folder = f"{server.name}/" if server.is_neighbour else ""
        for name in (*_EACH, *(["base-claim"] if server.weights_from == "folder" else [])):
            texts[f"k8s/{folder}{name}.yaml"] = render_template(
                f"k8s/{name}.yaml", server, front=front
            )
    paths = [path.removeprefix("k8s/") for path in texts]
    whole = {
        "k8s/kustomization.yaml": render_template("k8s/kustomization.yaml", front, paths=paths)
    }
    return whole | texts
