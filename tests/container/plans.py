"""Servers to be put into containers: from a small one to one that no single machine holds."""

from __future__ import annotations

from dataclasses import replace

from packager.serving.shape import ModelShape
from packager.serving.value import Origin, ServedAdapter, ServedBase, ServedMerge, ServingPlan

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIGEST = "sha256:" + "ab" * 32
DIGESTS = {
    "pirate": "sha256:" + "1" * 64, "poet": "sha256:" + "2" * 64, "cook": "sha256:" + "3" * 64,
    "Über_dora": "sha256:" + "4" * 64,
}  # fmt: skip

# Source: the configuration of Qwen2.5-7B-Instruct and Llama-3.1-70B-Instruct.
QWEN_7B = ModelShape(28, 3584, 28, 4, 128, 18944, 152064, 32768)
LLAMA_70B = ModelShape(80, 8192, 64, 8, 128, 28672, 128256, 131072)


def make_plan(
    *,
    name: str = "Qwen/Qwen2.5-7B-Instruct",
    repo: str | None = "Qwen/Qwen2.5-7B-Instruct",
    nbytes: int = 15_231_233_024,
    shape: ModelShape | None = QWEN_7B,
    gated: bool = False,
    baked: bool = False,
    template: str | None = None,
    gpu_bytes: int | None = None,
) -> ServingPlan:
    """Returns a server of a base with two adapters."""
    base = ServedBase(
        name=name,
        origin=Origin(repo, COMMIT if repo else None, DIGEST, gated),
        license="apache-2.0",
        architecture="Qwen2ForCausalLM",
        nbytes=nbytes,
        dtype="bfloat16",
        quantization=None,
        context=None,
        shape=shape,
        baked=baked,
        chat=True,
    )
    pirate = ServedAdapter("pirate", 8, 40_000_000, DIGESTS["pirate"])
    poet = ServedAdapter("poet", 16, 80_000_000, DIGESTS["poet"], template=template)
    return ServingPlan(
        vllm_version="0.32.0",
        base=base,
        adapters=(pirate, poet),
        max_lora_rank=16,
        max_loras=2,
        max_cpu_loras=2,
        gpu_memory_bytes=gpu_bytes,
    )


def make_merged(name: str, service: str, share: float | None, like: ServingPlan) -> ServingPlan:
    """Returns a server of a merged model; it has a service's name beside another server alone."""
    merged = ServedMerge(adapter=name, digest=DIGESTS[name], folder=f"merged/{name}", reason="DoRA")
    return replace(
        like,
        base=replace(like.base, name=name, merged=merged),
        adapters=(),
        max_loras=0,
        max_cpu_loras=0,
        gpu_share=share,
        service=service,
    )


def make_mixed(front: ServingPlan, share: float | None = 0.3) -> ServingPlan:
    """Returns a server beside which two merged models are served."""
    neighbours = (
        make_merged("cook", "qwen2-5-7b-instruct-cook", share, front),
        make_merged("Über_dora", "qwen2-5-7b-instruct-uber-dora", share, front),
    )
    return replace(front, gpu_share=share, neighbours=neighbours)


SMALL = make_plan()
GATED = make_plan(gated=True)
FOLDER = make_plan(name="mein Modell $HOME", repo=None, template="{{ messages }}")
BAKED = make_plan(baked=True)
LARGE = make_plan(
    name="meta-llama/Llama-3.1-70B-Instruct",
    repo="meta-llama/Llama-3.1-70B-Instruct",
    nbytes=141_107_412_992,
    shape=LLAMA_70B,
    gated=True,
)
HUGE = replace(LARGE, gpu_memory_bytes=16_000_000_000)
MIXED = make_mixed(SMALL)
MERGED = make_merged("cook", "", None, SMALL)
PLANS = {
    "small": SMALL, "gated": GATED, "folder": FOLDER, "baked": BAKED, "large": LARGE, "huge": HUGE,
    "mixed": MIXED, "mixed-baked": make_mixed(BAKED), "merged": MERGED,
    "all-merged": replace(MERGED, gpu_share=0.45, neighbours=MIXED.neighbours[1:]),
}  # fmt: skip
