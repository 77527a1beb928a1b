"""Over how many GPUs a base is spread: tensor and pipeline parallel sizes from bytes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from packager.errors import InputError
from packager.serving.shape import ModelShape

DEFAULT_GPU_BYTES = 80_000_000_000
GPUS_PER_NODE = 8
_MAX_NODES = 64

# Source: vLLM 0.32.0, vllm/config/cache.py, CacheConfig.gpu_memory_utilization.
USABLE_SHARE = 0.92
_WORKING_BYTES = 2 << 30
"""For activations, CUDA graphs and the libraries on each GPU."""
_KV_SHARE = 0.2
"""Least share of the usable memory that is left to keys and values, so that requests overlap."""
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Load:
    """What has to lie on the GPUs.

    Attributes:
        nbytes: Of the base's weights.
        lora_bytes: Of the adapters that are held at once.
        dtype: Of keys and values: float32, float16 or bfloat16.
        shape: Sizes of the base, or None where they are not known.
        context: Most tokens of one request, or None for what the base was made for.
    """

    nbytes: int
    lora_bytes: int
    dtype: str
    shape: ModelShape | None
    context: int | None = None


@dataclass(frozen=True)
class Parallel:
    """How a base is spread.

    Attributes:
        tensor: GPUs that share each layer; they stand in one machine.
        pipeline: Groups of consecutive layers.
        gpu_bytes: Memory of one GPU that this was computed for.
        weight_bytes: Of weights on the fullest GPU.
        kv_bytes: Left for keys and values on the fullest GPU.
        kv_bytes_per_token: Of one token there; 0 where it is not known.
    """

    tensor: int
    pipeline: int
    gpu_bytes: int
    weight_bytes: int
    kv_bytes: int
    kv_bytes_per_token: int

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.tensor * self.pipeline

    @property
    def nodes(self) -> int:
        """Machines of at most eight GPUs."""
        return math.ceil(self.gpus / GPUS_PER_NODE)

    @property
    def kv_tokens(self) -> int | None:
        """Tokens of all requests together that fit, or None where it is not known."""
        return self.kv_bytes // self.kv_bytes_per_token if self.kv_bytes_per_token else None


def tensor_sizes(shape: ModelShape) -> tuple[int, ...]:
    """Returns the tensor parallel sizes that a model allows on one machine, ascending.

    Source: vLLM 0.32.0, vllm/config/model.py, verify_with_parallel_config (heads), and
    model_executor/layers/linear.py, QKVParallelLinear (keys and values are divided or copied as a
    whole) and ColumnParallelLinear (the inner width is divided).
    """
    return tuple(
        size
        for size in range(1, GPUS_PER_NODE + 1)
        if shape.heads % size == 0
        and (shape.kv_heads % size == 0 or size % shape.kv_heads == 0)
        and shape.intermediate_size % size == 0
        # The embedding is padded, but machines hold 1, 2, 4 or 8 GPUs that talk quickly.
        and GPUS_PER_NODE % size == 0
    )


def plan_parallel(load: Load, gpu_bytes: int | None) -> Parallel:
    """Returns the fewest GPUs that hold a base.

    Where sharing each layer between the GPUs of one machine is enough, that is how: stages of
    layers wait for each other. Of equally many GPUs, the fewest stages.

    Args:
        load: What has to lie there.
        gpu_bytes: Memory of one GPU; None means 80 GB.

    Raises:
        InputError: No number of them does, or not a single one and the sizes are not known.
    """
    limit = DEFAULT_GPU_BYTES if gpu_bytes is None else gpu_bytes
    for tensor, pipeline in _candidates(load.shape):
        made = _spread(load, tensor, pipeline, limit)
        if _fits(made, load):
            return made
    raise InputError(
        "the base does not fit on GPUs of this memory",
        where="--gpu-memory",
        expected=f"memory for {load.nbytes / 1e9:.1f} GB of weights and their keys and values, "
        f"spread over at most {_MAX_NODES} machines"
        if load.shape is not None
        else f"one GPU for {load.nbytes / 1e9:.1f} GB: the sizes of its layers are not known",
        found=f"{limit / 1e9:.1f} GB a GPU",
        hint="say what your GPUs have: --gpu-memory 141GB, or a smaller context: --max-model-len",
    )


def _candidates(shape: ModelShape | None) -> list[tuple[int, int]]:
    if shape is None:
        return [(1, 1)]
    # Pipeline stages beyond one machine use the largest tensor size: layers are passed between
    # machines, never divided over them.
    sizes = tensor_sizes(shape)
    pairs = [
        (tensor, pipeline)
        for tensor in sizes
        for pipeline in range(1, shape.layers + 1)
        if tensor * pipeline <= GPUS_PER_NODE
        or (tensor == sizes[-1] and tensor * pipeline <= GPUS_PER_NODE * _MAX_NODES)
    ]
    return sorted(pairs, key=lambda pair: (pair[1] > 1, pair[0] * pair[1], pair[1]))


def _spread(load: Load, tensor: int, pipeline: int, gpu_bytes: int) -> Parallel:
    usable = int(gpu_bytes * USABLE_SHARE)
    weights, per_token = load.nbytes + load.lora_bytes, 0
    shape = load.shape
    if shape is not None:
        stage = math.ceil(shape.layers / pipeline)
        weights = _stage_bytes(load, shape, stage, pipeline) // tensor
        # A head of keys and values lies whole on every GPU that asks it; a latent on all of them.
        heads = max(shape.kv_heads // tensor, 1)
        values = shape.latent or 2 * heads * shape.head_dim
        per_token = stage * values * _VALUE_BYTES[load.dtype]
    kv_bytes = max(usable - weights - _WORKING_BYTES, 0)
    return Parallel(tensor, pipeline, gpu_bytes, weights, kv_bytes, per_token)


def _stage_bytes(load: Load, shape: ModelShape, stage: int, pipeline: int) -> int:
    """Returns the weights of the fullest stage, which holds the embedding or the head."""
    edge = shape.vocabulary * shape.hidden_size * _VALUE_BYTES[load.dtype]
    edge = min(edge, load.nbytes // 2)
    if pipeline == 1:
        return load.nbytes + load.lora_bytes
    layers = (load.nbytes - edge + load.lora_bytes) / shape.layers
    return math.ceil(layers * stage) + edge


def _fits(made: Parallel, load: Load) -> bool:
    usable = made.gpu_bytes * USABLE_SHARE
    context = load.context or (load.shape.context if load.shape is not None else 0)
    return (
        made.kv_bytes >= _KV_SHARE * usable and made.kv_bytes >= context * made.kv_bytes_per_token
    )
