"""Which names and cuts a checkpoint has that the loaded model has otherwise, by family.

A transcription of what transformers does while it loads a checkpoint, so that a plan needs no
transformers. Tests hold it against the installed one: a family that transformers adds or changes
makes them fail.

Source: transformers 5.23, conversion_mapping.py (rules, by class or model type; which submodules
have rules of their own), models/*/modeling_*.py (`base_model_prefix`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from packager.base.renaming import NameRule, Operation, add_prefix, remove_prefix, rename

Rules = tuple[NameRule, ...]


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


def _experts(start: str, gate: str, up: str, down: str) -> Rules:
    """Experts that are stored one by one, gate above up, and held as two stacks."""
    return (
        NameRule(
            (f"{start}.*.{gate}.weight", f"{start}.*.{up}.weight"),
            (f"{start}.gate_up_proj",),
            "experts",
        ),
        NameRule((f"{start}.*.{down}.weight",), (f"{start}.down_proj",), "experts"),
    )


def _composite(*towers: str) -> Rules:
    """A composite model whose towers were once at the top."""
    return (
        rename("^language_model.lm_head", "lm_head"),
        rename("^language_model", "model.language_model"),
        *(rename(f"^{tower}", f"model.{tower}") for tower in towers),
    )


def _convert(operation: Operation, sources: str, targets: str) -> NameRule:
    return NameRule(tuple(sources.split()), tuple(targets.split()), operation)


_QKV = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
_QWEN_EXPERTS = _experts("mlp.experts", "gate_proj", "up_proj", "down_proj")
_MIXTRAL = (rename(".block_sparse_moe.", ".mlp."), *_experts(".experts", "w1", "w3", "w2"))
_LLAVA = _composite("vision_tower", "multi_modal_projector")
_LLAVA_NEXT = (*_LLAVA, rename("^image_newline", "model.image_newline"))
_INNER = (rename("^language_model.model", "language_model"),)
_VISION = (remove_prefix("vision_model"),)
_GRANITE = tuple(
    rename(rf"block_sparse_moe\.{stored}\.weight", f"block_sparse_moe.{held}")
    for stored, held in (
        ("input_linear", "experts.gate_up_proj"),
        ("output_linear", "experts.down_proj"),
        (r"router\.layer", "router.weight"),
    )
)
_BERT_LIKE = (
    rename("emb_ln", "embeddings.LayerNorm"),
    rename("encoder.layers", "layers"),
    rename("norm1", "post_attention_layernorm"),
    rename("norm2", "post_mlp_layernorm"),
)

LEGACY: Rules = (
    rename("LayerNorm.gamma", "LayerNorm.weight"),
    rename("LayerNorm.beta", "LayerNorm.bias"),
    rename(".weight_g", ".parametrizations.weight.original0"),
    rename(".weight_v", ".parametrizations.weight.original1"),
    NameRule(
        (r"^model\.language_model\.model", r"^language_model\.model\.model"),
        ("model.language_model",),
    ),
)
"""For every model, after its own rules."""

_SHARED: tuple[tuple[str, Rules], ...] = (
    ("mixtral minimax", _MIXTRAL),
    (
        "qwen2_moe qwen3_moe afmoe cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 "
        "flex_olmo glm4_moe glm4_moe_lite glm4v_moe glm_moe_dsa hunyuan_v1_moe longcat_flash "
        "mellum olmoe qwen3_next solar_open",
        _QWEN_EXPERTS,
    ),
    ("llava aria aya_vision gemma3 got_ocr2 internvl mistral3 paligemma vipllava", _LLAVA),
    ("llava_next llava_next_video llava_onevision", _LLAVA_NEXT),
    ("qwen2_audio audioflamingo3 voxtral", _composite("audio_tower", "multi_modal_projector")),
    ("granitemoe granitemoehybrid granitemoeshared", _GRANITE),
    (
        "AriaModel AyaVisionModel FuyuModel Gemma3Model GotOcr2Model InternVLModel LlavaModel "
        "LlavaNextModel LlavaNextVideoModel LlavaOnevisionModel Mistral3Model MllamaModel "
        "PaliGemmaModel VideoLlavaModel VipLlavaModel Qwen2AudioModel AudioFlamingo3Model "
        "VoxtralModel",
        _INNER,
    ),
    ("CLIPVisionModel SiglipVisionModel Siglip2VisionModel", _VISION),
    ("Qwen2VLModel Qwen2_5_VLModel", (add_prefix("language_model", "model"),)),
    (
        "Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration",
        (
            rename(r"^visual", "model.visual"),
            rename(r"^model(?!\.(language_model|visual))", "model.language_model"),
        ),
    ),
    ("gemma3n_text qwen3_5_text", (remove_prefix("language_model", "model"),)),
)

RULES: Mapping[str, Rules] = MappingProxyType(
    {name: rules for names, rules in _SHARED for name in names.split()}
    | {
        "minimax_m2": (
            *_MIXTRAL,
            rename(".block_sparse_moe.e_score_correction_bias", ".mlp.e_score_correction_bias"),
        ),
        "ernie4_5_moe": (
            *_QWEN_EXPERTS,
            rename(
                "mlp.moe_statics.e_score_correction_bias",
                "mlp.gate.moe_statics.e_score_correction_bias",
            ),
        ),
        "exaone_moe": (
            *_QWEN_EXPERTS,
            rename("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
        ),
        "qwen3_5_moe_text": (remove_prefix("language_model", "model"), *_QWEN_EXPERTS),
        "qwen3_vl_moe": (
            _convert("transpose", "mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj"),
            _convert("transpose", "mlp.experts.down_proj", "mlp.experts.down_proj"),
        ),
        "phimoe": (
            _MIXTRAL[0],
            rename(".gate.weight", ".router.weight"),
            *_MIXTRAL[1:],
        ),
        "lfm2_moe": _experts("feed_forward.experts", "w1", "w3", "w2"),
        "jamba": _experts("feed_forward.experts", "gate_proj", "up_proj", "down_proj"),
        "nemotron_h": (
            rename("backbone.", "model."),
            _convert("experts", "mixer.experts.*.up_proj.weight", "mixer.experts.up_proj"),
            _convert("experts", "mixer.experts.*.down_proj.weight", "mixer.experts.down_proj"),
        ),
        "aria_text": (
            rename(r"mlp\.experts\.fc1\.weight", "mlp.experts.gate_up_proj"),
            rename(r"mlp\.experts\.fc2\.weight", "mlp.experts.down_proj"),
        ),
        "olmo_hybrid": (
            rename("attention_layer_norm", "input_layernorm"),
            rename("feedforward_layer_norm", "post_attention_layernorm"),
            _convert(
                "concatenate",
                "linear_attn.q_conv1d.weight linear_attn.k_conv1d.weight "
                "linear_attn.v_conv1d.weight",
                "linear_attn.conv1d.weight",
            ),
        ),
        "video_llava": _composite("image_tower", "video_tower", "multi_modal_projector"),
        "fuyu": _composite("vision_embed_tokens"),
        "mllama": _composite("vision_model", "multi_modal_projector"),
        "paddleocr_vl": (
            rename("^mlp_AR", "model.projector"),
            rename("^visual", "model.visual"),
            rename(r"^model(?!(\.visual|\.projector|\.language_model))", "model.language_model"),
        ),
        "GPTNeoXForCausalLM": (rename(r"^embed_out\.", "lm_head."),),
        "nomic_bert": (
            rename("encoder.layers", "layers"),
            rename("emb_ln", "embeddings.LayerNorm"),
            rename("attn.out_proj", "self_attn.o_proj"),
            rename("fc11", "up_proj"),
            rename("fc12", "gate_proj"),
            rename("fc2", "down_proj"),
            *_BERT_LIKE[2:],
            _convert("chunk", "attn.Wqkv", _QKV),
        ),
        "gte": (
            remove_prefix("new"),
            rename("encoder.layer", "layers"),
            rename("attention.o_proj", "self_attn.o_proj"),
            rename("attn_ln", "post_attention_layernorm"),
            rename("mlp_ln", "post_mlp_layernorm"),
            rename("lm_head.norm", "lm_head.layer_norm"),
            _convert("chunk", "attention.qkv_proj", _QKV),
            _convert("chunk", "mlp.up_gate_proj", "mlp.up_proj mlp.gate_proj"),
        ),
        "jina_embeddings_v3": (
            *_BERT_LIKE[:2],
            rename("mixer.out_proj", "self_attn.o_proj"),
            *_BERT_LIKE[2:],
            _convert("chunk", "mixer.Wqkv", _QKV),
        ),
    }
)
"""Model type or class → its rules, in order; without an entry, names are what they are."""

UNMAPPED = _words(
    "axk1 axk2 bailing_hybrid beam colqwen2 cosmos3_edge cosmos3_omni deepseek_ocr2 deepseek_v4",
    "dots3_note emu3 ernie4_5_vl_moe flint gemma4_unified glm5_next granite_speech",
    "granite_speech_plus hrm_text hunyuan_vl hy_v3 hy_v4 hyperclovax_vision_v2 inkling2",
    "inkling2_text inkling_mm_model kimi_k25 kimi_linear kolibri1 laguna lfm3 mimo_v2_flash",
    "minimax_m3_vl mistral_large4 molmo2 pi0 pp_chart2table qianfan_ocr qwen2_5_omni_thinker",
    "qwen3_omni_moe_thinker qwen4_exp_text shieldgemma2 step3p7 unlimited_ocr glmasr musicflamingo",
    "nemo_speechlm nemotron_h_omni ultrabert ultravbert vibevoice_asr voxtral_realtime",
)
"""Model types with rules that are not here: what is stored under other names is not found."""

VISION_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "clip_vision_model": "CLIPVisionModel",
        "siglip_vision_model": "SiglipVisionModel",
        "siglip2_vision_model": "Siglip2VisionModel",
    }
)
"""Model type of a vision tower → its class, where that has rules."""

_OTHER_PREFIXES = (
    (
        "transformer",
        "bloom codegen ctrl dbrx falcon flaubert gpt-sw3 gpt2 gpt_bigcode gpt_neo gptj longt5",
        "mpt mt5 openai-gpt squeezebert t5 udop umt5 xlm xlnet",
    ),
    ("backbone", "falcon_mamba mamba mamba2 xlstm"),
    ("bert", "bert bert-generation big_bird megatron-bert"),
    ("roberta", "camembert jina_embeddings_v3 roberta xlm-roberta xlm-roberta-xl xmod"),
    ("blip", "blip blip-2 instructblip instructblipvideo"),
    ("deberta", "deberta deberta-v2"),
    ("language_model", "llama4_text"),
)
_OWN_PREFIXES = _words(
    "albert biogpt bros canine convbert cpmant data2vec-text distilbert electra encoder-decoder",
    "ernie esm esmc fnet funnel git gpt_neox gpt_neox_japanese gte ibert layoutlm layoutlmv2",
    "layoutlmv3 led lilt longformer luke markuplm mobilebert mpnet mra nomic_bert nystromformer",
    "perceiver prophetnet reformer rembert roberta-prelayernorm roc_bert roformer rwkv",
    "seamless_m4t seamless_m4t_v2 switch_transformers tapas vision-encoder-decoder yoso",
)
PREFIXES: Mapping[str, str] = MappingProxyType(
    {name: prefix for prefix, *names in _OTHER_PREFIXES for name in _words(*names)}
    | {name: name.replace("-", "_") for name in _OWN_PREFIXES}
)
"""Model type → what stands before the names of the base model within one for a task; `model`
without an entry. A checkpoint may leave it out or have it too many."""

FLAT_CLASSES = _words(
    "T5ForConditionalGeneration MT5ForConditionalGeneration UMT5ForConditionalGeneration",
    "LongT5ForConditionalGeneration SwitchTransformersForConditionalGeneration",
    "T5ForQuestionAnswering MT5ForQuestionAnswering UMT5ForQuestionAnswering Llama4ForCausalLM",
    "BlipForConditionalGeneration Blip2ForConditionalGeneration UdopForConditionalGeneration",
    "InstructBlipForConditionalGeneration InstructBlipVideoForConditionalGeneration",
)
"""Classes for a task that hold the parts of the base model themselves, without its prefix, although
its type has one in `PREFIXES`."""
FLAT_TYPES = _words("encoder-decoder vision-encoder-decoder seamless_m4t seamless_m4t_v2")
"""Model types of which every class is like that."""
