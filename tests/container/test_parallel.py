"""Over how many GPUs a base is spread, held against vLLM's own rules and figures that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.errors import InputError
from packager.serving.parallel import (
    DEFAULT_GPU_BYTES,
    Load,
    Parallel,
    plan_parallel,
    tensor_sizes,
)
from packager.serving.shape import ModelShape, read_shape
from tests.container.plans import LLAMA_70B, QWEN_7B

GB = 1_000_000_000
SEVEN = Load(15_231_233_024, 100_000_000, "bfloat16", QWEN_7B)
SEVENTY = Load(141_107_412_992, 100_000_000, "bfloat16", LLAMA_70B)
# Source: the configuration of Llama-3.1-405B-Instruct.
LLAMA_405B = ModelShape(126, 16384, 128, 8, 128, 53248, 128256, 131072)
FOUR_HUNDRED = Load(811_706_613_760, 0, "bfloat16", LLAMA_405B)


def sizes(load: Load, gigabytes: float) -> tuple[int, int]:
    made = plan_parallel(load, int(gigabytes * GB))
    return made.tensor, made.pipeline


@pytest.mark.parametrize(
    ("load", "gigabytes", "expected"),
    [
        (SEVEN, 80, (1, 1)),
        (SEVEN, 24, (1, 1)),
        (SEVEN, 20, (2, 1)),
        (SEVENTY, 80, (4, 1)),
        (SEVENTY, 141, (2, 1)),
        (SEVENTY, 288, (1, 1)),
        (SEVENTY, 40, (8, 1)),
        (FOUR_HUNDRED, 80, (8, 2)),
        (FOUR_HUNDRED, 192, (8, 1)),
    ],
)
def test_sizes_that_people_use(load: Load, gigabytes: float, expected: tuple[int, int]) -> None:
    assert sizes(load, gigabytes) == expected


def test_eighty_gigabytes_unless_told() -> None:
    assert plan_parallel(SEVENTY, None) == plan_parallel(SEVENTY, DEFAULT_GPU_BYTES)


def test_heads_that_only_some_sizes_divide() -> None:
    # Qwen2.5-7B: 28 heads, 4 of keys and values; SmolLM2-135M: 9 and 3.
    assert tensor_sizes(QWEN_7B) == (1, 2, 4)
    assert tensor_sizes(replace(QWEN_7B, heads=9, kv_heads=3)) == (1,)
    assert tensor_sizes(replace(LLAMA_70B, kv_heads=1)) == (1, 2, 4, 8)
    assert tensor_sizes(replace(LLAMA_70B, intermediate_size=28673)) == (1,)


def test_stages_where_heads_cannot_be_shared() -> None:
    odd = replace(LLAMA_70B, heads=63, kv_heads=7, intermediate_size=28672)
    made = plan_parallel(replace(SEVENTY, shape=odd), 80 * GB)
    assert (made.tensor, made.pipeline) == (1, 3)
    assert made.nodes == 1


@pytest.mark.parametrize("shape", [None, replace(QWEN_7B, layers=1, heads=7, kv_heads=7)])
def test_base_that_no_number_of_gpus_holds_is_refused(shape: ModelShape | None) -> None:
    with pytest.raises(InputError) as refused:
        plan_parallel(replace(SEVENTY, shape=shape), 8 * GB)
    assert refused.value.where == "--gpu-memory"
    assert "141.1 GB" in refused.value.expected
    assert refused.value.found == "8.0 GB a GPU"
    assert "--gpu-memory" in refused.value.hint


def test_shorter_requests_need_fewer_gpus() -> None:
    tight = Load(SEVEN.nbytes, 0, "bfloat16", replace(QWEN_7B, kv_heads=28))
    assert sizes(replace(tight, context=131072), 60) == (2, 1)
    assert sizes(replace(tight, context=4096), 60) == (1, 1)


@given(
    heads=st.integers(1, 128),
    kv=st.integers(1, 128),
    layers=st.integers(1, 128),
    inner=st.integers(1, 4096),
    nbytes=st.integers(10**6, 10**12),
    gpu=st.integers(4 * GB, 200 * GB),
)
def test_what_is_planned_is_legal_and_fits(
    heads: int, kv: int, layers: int, inner: int, nbytes: int, gpu: int
) -> None:
    shape = ModelShape(layers, 4096, heads, kv, 128, inner, 32000, 8192)
    try:
        made = plan_parallel(Load(nbytes, 0, "bfloat16", shape), gpu)
    except InputError:
        return
    assert heads % made.tensor == 0
    assert inner % made.tensor == 0
    assert kv % made.tensor == 0 or made.tensor % kv == 0
    assert made.pipeline <= layers
    assert made.tensor * made.pipeline <= 8 or made.nodes > 1
    assert made.weight_bytes + made.kv_bytes < gpu
    assert made.weight_bytes * made.gpus >= nbytes * 0.99
    assert (made.kv_tokens or 0) >= shape.context


def test_tokens_that_fit_follow_from_bytes() -> None:
    # Llama-3.1-70B: 80 layers of 8 heads of 128 keys and values in 2 bytes.
    made = Parallel(4, 1, 80 * GB, 35 * GB, 36 * GB, 80 * 2 * 2 * 128 * 2)
    assert plan_parallel(SEVENTY, 80 * GB).kv_bytes_per_token == made.kv_bytes_per_token
    assert made.kv_tokens == 36 * GB // 81920


@pytest.mark.parametrize(
    "name",
    ["LlamaConfig", "Qwen2Config", "Gemma3TextConfig", "MistralConfig", "GPT2Config", "Phi3Config"],
)
def test_shape_is_what_transformers_reads(name: str) -> None:
    import transformers

    config = getattr(transformers, name)(
        num_hidden_layers=3, hidden_size=96, num_attention_heads=6, vocab_size=500
    )
    written = config.to_dict()
    shape = read_shape(written)
    assert shape is not None
    assert shape.layers == config.num_hidden_layers == 3
    assert shape.hidden_size == config.hidden_size == 96
    assert shape.heads == config.num_attention_heads == 6
    assert shape.kv_heads == getattr(config, "num_key_value_heads", None) or 6
    assert shape.head_dim == (getattr(config, "head_dim", None) or 16)
    assert shape.vocabulary == 500
    assert shape.context == config.max_position_embeddings


def test_shape_of_a_model_of_pictures_is_that_of_its_text() -> None:
    import transformers

    config = transformers.Gemma3Config().to_dict()
    text = transformers.Gemma3TextConfig().to_dict()
    assert read_shape(config) == read_shape(text)


@pytest.mark.parametrize("value", [0, -1, "8", True, 1 << 40, 2.0, None, []])
def test_nonsense_is_no_shape(value: object) -> None:
    good = {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100,
        "max_position_embeddings": 64,
    }  # fmt: skip
    assert read_shape(good) is not None
    for name in good:
        assert read_shape({**good, name: value}) is None
