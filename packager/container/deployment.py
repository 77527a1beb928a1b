"""What the templates of a server's containers are filled with."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from jinja2 import StrictUndefined
from jinja2.loaders import FunctionLoader
from jinja2.sandbox import ImmutableSandboxedEnvironment

from packager.container.label import resource_name
from packager.markup import clean
from packager.resource import read_resource
from packager.serving.parallel import Load, Parallel, plan_parallel
from packager.serving.value import ServingPlan

HOME = "/srv/lorapack"
PORT = 8000
_GIB = 1 << 30
_DOWNLOAD_BYTES_PER_SECOND = 50e6
_START_SECONDS = 600


@dataclass(frozen=True)
class Deployment:
    """One server in containers.

    Attributes:
        plan: Of the server.
        parallel: How its base is spread over GPUs.
    """

    plan: ServingPlan
    parallel: Parallel

    @property
    def name(self) -> str:
        """Of images, projects and objects."""
        return resource_name(self.plan.base.name)

    @property
    def weights_from(self) -> Literal["hub", "folder", "image"]:
        """Where the base's weights come from."""
        if self.plan.base.baked:
            return "image"
        origin = self.plan.base.origin
        return "hub" if origin.repo is not None and origin.commit is not None else "folder"

    @property
    def command(self) -> tuple[str, ...]:
        """Arguments of the GPU image."""
        return ("--host", "0.0.0.0", "--port", str(PORT), *self._sizes)  # noqa: S104 # in a container

    @property
    def cpu_command(self) -> tuple[str, ...]:
        """Arguments of the CPU image."""
        return ("--host", "0.0.0.0", "--port", str(PORT), "--enforce-eager")  # noqa: S104

    @property
    def _sizes(self) -> tuple[str, ...]:
        sizes = {
            "--tensor-parallel-size": self.parallel.tensor,
            "--pipeline-parallel-size": self.parallel.pipeline,
        }
        return tuple(word for flag, size in sizes.items() if size > 1 for word in (flag, str(size)))

    @property
    def memory_gib(self) -> int:
        """Main memory that starting takes: the weights pass through it once."""
        return max(16, math.ceil(1.2 * self.plan.base.nbytes / _GIB) + 8)

    @property
    def cache_gib(self) -> int:
        """Room for the base, where it is fetched, and for compiled kernels."""
        fetched = self.plan.base.nbytes if self.weights_from == "hub" else 0
        return math.ceil(1.1 * fetched / _GIB) + 10

    @property
    def base_gib(self) -> int:
        """Room for the base alone."""
        return math.ceil(1.1 * self.plan.base.nbytes / _GIB) + 1

    @property
    def start_seconds(self) -> int:
        """Longest time to a first sign of life, fetching the base included."""
        return _START_SECONDS + math.ceil(self.plan.base.nbytes / _DOWNLOAD_BYTES_PER_SECOND)


def plan_deployment(plan: ServingPlan) -> Deployment:
    """Returns how a server is deployed.

    Raises:
        InputError: Its base cannot be spread over GPUs of the memory asked for.
    """
    return Deployment(plan, plan_parallel(server_load(plan), plan.gpu_memory_bytes))


def server_load(plan: ServingPlan) -> Load:
    """Returns what has to lie on the GPUs: the base, and the largest adapters in every slot."""
    # A slot holds the largest rank, whatever the rank of the adapter in it.
    sizes = sorted(
        (item.nbytes * plan.max_lora_rank // item.rank for item in plan.adapters), reverse=True
    )
    return Load(
        nbytes=plan.base.nbytes,
        lora_bytes=sum(sizes[: plan.max_loras]),
        dtype=plan.base.dtype,
        shape=plan.base.shape,
        context=plan.base.context,
    )


def render_template(name: str, deployment: Deployment, **more: Any) -> str:
    """Returns a template of `templates/vllm/` with every value quoted as JSON, and so as YAML."""
    values = {"served": deployment, "plan": deployment.plan, "port": PORT, "home": HOME, **more}
    return _environment().get_template(f"templates/vllm/{name}.j2").render(values)


def _quote(value: Any) -> str:
    # What JSON writes on one line, YAML reads as the same value.
    return json.dumps(clean(value) if isinstance(value, str) else value, ensure_ascii=False)


def _bare(value: str) -> _Bare:
    return _Bare(value)


class _Bare(str):
    """A word of our own, such as a resource's name, that needs no quotes."""

    __slots__ = ()


def _show(value: Any) -> str:
    return value if isinstance(value, _Bare) else _quote(value)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(read_resource),
        finalize=_show,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # YAML; every value is quoted by finalize
    )
    environment.filters["bare"] = _bare
    return environment
