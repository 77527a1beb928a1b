"""Facts for cards, as a release gives them: one for each kind of card."""

from __future__ import annotations

from dataclasses import replace

from packager.card import AdapterFacts, BaseFacts, CardFacts, LicenseFacts
from packager.obligation import display_text, name_prefix, obligations
from packager.verify.proof import (
    BehaviourCheck,
    FilesCheck,
    TargetProof,
    TensorFigure,
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
        skipped={"weights": "An adapter has no merged weights.", "behaviour": "It needs 12 GB."},
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

CARDS = {
    "merged": MERGED,
    "adapter": ADAPTER,
    "merged_local_base": LOCAL,
    "adapter_local_base": LOCAL_ADAPTER,
}
