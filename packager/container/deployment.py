"""What the templates of a server's containers are filled with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from packager.container.label import resource_name
from packager.serving.document import PORT
from packager.serving.parallel import GPUS_PER_NODE, USABLE_SHARE, Load, Parallel, plan_parallel
from packager.serving.path import neighbour_path
from packager.serving.value import ServingPlan

HOME = "/srv/lorapack"
_GIB = 1 << 30
_DOWNLOAD_BYTES_PER_SECOND = 50e6
_START_SECONDS = 600
_LISTEN = ("--host", "0.0.0.0", "--port", str(PORT))  # noqa: S104 # in a container


@dataclass(frozen=True)
class Deployment:
    """One server in containers, and those beside it.

    Attributes:
        plan: Of the server.
        parallel: How what it loads is spread over GPUs.
        neighbours: The servers of merged models, which the first one passes requests on to.
    """

    plan: ServingPlan
    parallel: Parallel
    neighbours: tuple[Deployment, ...] = ()

    @property
    def servers(self) -> tuple[Deployment, ...]:
        """This one and its neighbours."""
        return (self, *self.neighbours)

    @property
    def is_neighbour(self) -> bool:
        """Whether another server passes requests on to this one, and nobody else calls it."""
        return bool(self.plan.service)

    @property
    def name(self) -> str:
        """Of images, projects and objects."""
        return self.plan.service or resource_name(self.plan.base.name)

    @property
    def title(self) -> str:
        """Of what is served, for people."""
        if self.plan.base.merged is None:
            return f"{self.plan.base.name} and its adapters"
        return ", ".join(self.plan.names)

    @property
    def home(self) -> str:
        """Its folder in the image."""
        return f"{HOME}/{neighbour_path(self.plan.base.name)}" if self.is_neighbour else HOME

    @property
    def weights_from(self) -> Literal["hub", "folder", "image"]:
        """Where the weights come from."""
        if self.plan.base.baked:
            return "image"
        return "hub" if self.plan.base.from_hub else "folder"

    @property
    def wants_token(self) -> bool:
        """Whether the Hub asks who fetches the weights."""
        return self.weights_from == "hub" and self.plan.base.origin.gated

    @property
    def shares_gpus(self) -> bool:
        """Whether its neighbours may run on the same GPUs, of which each takes a part."""
        return self.plan.gpu_share is not None

    @property
    def devices(self) -> tuple[tuple[str, ...], ...]:
        """Of each server, the GPUs that it uses on one machine: the same, or its own."""
        counts = [server.parallel.gpus for server in self.servers]
        firsts = [0 if self.shares_gpus else sum(counts[:place]) for place in range(len(counts))]
        return tuple(
            tuple(map(str, range(first, first + count)))
            for first, count in zip(firsts, counts, strict=True)
        )

    @property
    def fits_machine(self) -> bool:
        """Whether one machine holds a replica of every server."""
        return max(int(device) for devices in self.devices for device in devices) < GPUS_PER_NODE

    @property
    def fits_machines(self) -> bool:
        """Whether for every server there is one machine that holds a replica of it."""
        return all(server.parallel.nodes == 1 for server in self.servers)

    @property
    def shared_command(self) -> tuple[str, ...]:
        """Arguments of the GPU image, be its GPUs shared or not."""
        return (*_LISTEN, *_sizes(self.parallel))

    @property
    def command(self) -> tuple[str, ...]:
        """Arguments of the GPU image where the server has GPUs of its own."""
        whole = ("--gpu-memory-utilization", str(USABLE_SHARE)) if self.shares_gpus else ()
        return (*self.shared_command, *whole)

    @property
    def cpu_command(self) -> tuple[str, ...]:
        """Arguments of the CPU image."""
        return (*_LISTEN, "--enforce-eager")

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
        """Room for the weights alone."""
        return math.ceil(1.1 * self.plan.base.nbytes / _GIB) + 1

    @property
    def start_seconds(self) -> int:
        """Longest time to a first sign of life, fetching the base included."""
        return _START_SECONDS + math.ceil(self.plan.base.nbytes / _DOWNLOAD_BYTES_PER_SECOND)


def plan_deployment(plan: ServingPlan) -> Deployment:
    """Returns how a server and its neighbours are deployed.

    Raises:
        InputError: What one of them loads cannot be spread over GPUs of the memory asked for.
    """
    parallel = plan_parallel(server_load(plan), plan.gpu_memory_bytes)
    return Deployment(plan, parallel, tuple(map(plan_deployment, plan.neighbours)))


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


def _sizes(parallel: Parallel) -> Iterable[str]:
    sizes = {
        "--tensor-parallel-size": parallel.tensor,
        "--pipeline-parallel-size": parallel.pipeline,
    }
    return (word for flag, size in sizes.items() if size > 1 for word in (flag, str(size)))
