"""Facts for cards, as a release gives them: one for each kind of card."""

from __future__ import annotations

from dataclasses import replace

from packager.card import (
    AdapterFacts,
    BaseFacts,
    CardFacts,
    GgufFacts,
    GgufFileFacts,
    LicenseFacts,
)
from packager.obligation import display_text, name_prefix, obligations
from packager.verify.proof import (
    BehaviourCheck,
    BlocksCheck,
    ChatCheck,
    EndingCheck,
    FilesCheck,
    TargetProof,
    TensorFigure,
    VariantProof,
    WeightsCheck,
)

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
BASE_DIGEST = "sha256:" + "a1" * 32
ADAPTER_DIGEST = "sha256:" + "b2" * 32

PROOF = TargetProof(
    target="merged",
    name="smol-pirate",
    files=FilesCheck(count=9, total_bytes=271_234_567, problems=()),
    weights=WeightsCheck(
        checked=272,
        total=272,
        by_rule={"lora": (210, 210), "copy": (62, 62)},
        adapter_tensors_used=420,
        adapter_tensors_total=420,
        figures=(
            TensorFigure("model.layers.0.self_attn.q_proj.weight", "lora", 0, 0.012, 0.0031, 0.5),
            TensorFigure("model.layers.1.self_attn.q_proj.weight", "lora", 1, 0.02, 0.0123, 0.498),
        ),
        problems=(),
    ),
    behaviour=BehaviourCheck(
        prompt_set="general-1",
        prompts=24,
        tokens=1536,
        kl_mean=0.000213,
        kl_max=0.0041,
        base_kl_mean=1.32,
        top1_agreement=0.9974,
        perplexity_ratio=1.00021,
        effect_lost=0.000161,
        kl_per_token=(),
        base_kl_per_token=(),
        thresholds={},
        problems=(),
    ),
    skipped={},
)

MERGED = CardFacts(
    name="SmolLM2-135M-Pirate",
    target="merged",
    base=BaseFacts(
        repo="HuggingFaceTB/SmolLM2-135M-Instruct",
        commit=COMMIT,
        digest=BASE_DIGEST,
        evidence="lock",
        architecture="LlamaForCausalLM",
    ),
    license=LicenseFacts("apache-2.0", documents=("LICENSE",), duties=obligations("apache-2.0")),
    adapter=AdapterFacts(
        peft_type="LORA",
        ranks=(8,),
        alphas=(16.0,),
        scales=(2.0,),
        target_modules=("k_proj", "q_proj", "v_proj"),
        trained_parameters=2_442_240,
        digest=ADAPTER_DIGEST,
    ),
    task_type="CAUSAL_LM",
    parameter_count=134_515_008,
    dtype="bfloat16",
    total_bytes=269_060_552,
    load_bytes=269_030_016,
    vocabulary_size=49_152,
    has_tokenizer=True,
    has_chat_template=True,
    languages=("en",),
    datasets=("org/pirate-talk",),
    tags=("pirate",),
    proof=PROOF,
    digests={"config.json": "c3" * 32, "model.safetensors": "d4" * 32},
    versions={"lorapack": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
)

LLAMA_LICENSE = LicenseFacts(
    "llama3.2",
    documents=("LICENSE.txt", "USE_POLICY.md"),
    duties=obligations("llama3.2"),
    name_prefix=name_prefix("llama3.2"),
    display=display_text("llama3.2"),
)

ADAPTER = replace(
    MERGED,
    name="Llama-海盗-🏴‍☠️",
    target="adapter",
    base=BaseFacts(
        repo="meta-llama/Llama-3.2-1B-Instruct",
        commit="9213176726f574b556790deb65791e0c5aa438b6",
        digest=BASE_DIGEST,
        evidence="name-and-shape",
        architecture="LlamaForCausalLM",
        gated=True,
    ),
    license=LLAMA_LICENSE,
    adapter=replace(
        MERGED.adapter,
        ranks=(8, 40),
        scales=(0.4, 2.0),
        features=("rslora", "rank_pattern"),
    ),
    parameter_count=1_238_256_640,
    total_bytes=9_790_000,
    load_bytes=2_481_000_000,
    vocabulary_size=128_256,
    has_tokenizer=False,
    languages=(),
    datasets=(),
    proof=replace(
        PROOF,
        target="adapter",
        weights=None,
        behaviour=None,
        skipped={"weights": "an adapter has no merged weights", "behaviour": "needs 12 GB"},
    ),
    repo="pirates/llama-pirate",
)

LOCAL = replace(
    MERGED,
    name="fernwald",
    base=BaseFacts(
        repo=None,
        commit=None,
        digest=BASE_DIGEST,
        evidence="name-and-shape",
        architecture="Qwen2ForCausalLM",
    ),
    license=LicenseFacts(
        "other",
        name="fernwald-terms",
        link="https://example.org/terms",
        documents=("LICENSE",),
        duties=obligations("other"),
    ),
    dtype="float16",
    keeps_dtype=False,
    has_chat_template=False,
    languages=("de", "no"),
    proof=None,
    limitations=("It was trained on forests only.",),
)

LOCAL_ADAPTER = replace(
    LOCAL,
    target="adapter",
    adapter=replace(MERGED.adapter, vllm_refusal="DoRA is refused at load (vLLM 0.32.0)"),
)


def make_variant(quant: str, size: int, kl: float, error: float) -> VariantProof:
    """One quantisation with figures around a mean KL, in nats, and an error of its weights."""
    assert PROOF.behaviour is not None
    return VariantProof(
        quant=quant,
        path=f"pirate-{quant}.gguf",
        total_bytes=size,
        weights=BlocksCheck(29, 272, {quant: (14, 211)}, 0.999999, error, error * 1.02, "BF16", ()),
        behaviour=replace(
            PROOF.behaviour,
            kl_mean=kl,
            kl_max=20 * kl,
            top1_agreement=1 - kl,
            perplexity_ratio=1 + kl / 5,
            effect_lost=kl / PROOF.behaviour.base_kl_mean,
            thresholds={"kl_mean": 1.5, "effect_lost": 0.8},
        ),
        ending=EndingCheck(3, 3, (15, 20, 40), 256, ()),
    )


OLLAMA = replace(
    MERGED,
    name="SmolLM2-135M-Pirate",
    target="ollama",
    dtype="Q4_K_M, Q8_0",
    total_bytes=250_265_344,
    load_bytes=105_454_208,
    proof=TargetProof(
        "ollama", "pirate", PROOF.files, None, None, {},
        variants=(
            make_variant("Q4_K_M", 105_454_208, 0.153, 0.0388),
            make_variant("Q8_0", 144_811_136, 0.01, 0.00567),
        ),
        chat=ChatCheck(8, 8, ()),
    ),
    digests={"pirate-Q4_K_M.gguf": "e5" * 32, "pirate-Q8_0.gguf": "f6" * 32},
    gguf=GgufFacts(
        files=(
            GgufFileFacts(
                "Q4_K_M", ("pirate-Q4_K_M.gguf",), 105_454_208, "Modelfile.Q4_K_M",
                "create.Q4_K_M.json",
            ),
            GgufFileFacts(
                "Q8_0", ("pirate-Q8_0.gguf",), 144_811_136, "Modelfile.Q8_0", "create.Q8_0.json"
            ),
        ),
        go_template=True,
        stops=("<|im_end|>",),
        capabilities=("tools",),
        context_length=8192,
        picture="size-against-kl.svg",
    ),
)  # fmt: skip

OLLAMA_LOCAL = replace(
    LOCAL,
    target="ollama",
    dtype="Q4_0",
    gguf=GgufFacts(
        files=(
            GgufFileFacts(
                "Q4_0", ("fernwald-Q4_0-00001-of-00002.gguf", "fernwald-Q4_0-00002-of-00002.gguf"),
                40_000_000_000, None, "create.Q4_0.json",
            ),
        ),
        requires="0.30.0",
    ),
)  # fmt: skip

GGUF_ADAPTER = replace(
    ADAPTER,
    target="gguf-adapter",
    dtype="F32",
    gguf=GgufFacts((GgufFileFacts("F32", ("pirate-lora-F32.gguf",), 9_790_000),)),
)

CARDS = {
    "merged": MERGED,
    "adapter": ADAPTER,
    "merged_local_base": LOCAL,
    "adapter_local_base": LOCAL_ADAPTER,
    "ollama": OLLAMA,
    "ollama_local_base": OLLAMA_LOCAL,
    "gguf_adapter": GGUF_ADAPTER,
}
