"""The class of a merged model is the one that transformers would make of the base's."""

from __future__ import annotations

import pytest
from transformers.models.auto import modeling_auto

from packager.task import TASKS, find_task, task_architecture

MAPPINGS = {
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QUESTION_ANS": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "FEATURE_EXTRACTION": modeling_auto.MODEL_MAPPING_NAMES,
}
BASES = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
# Families whose classes are not named after the family, or whose tasks have no class.
ODD = {
    "aria_text", "bert-generation", "clvp", "cohere_compass_text", "csm", "data2vec-text", "evolla",
    "flaubert", "fsmt", "funnel", "higgs_audio_v2", "hrm_text", "idefics", "llama4",
    "seamless_m4t", "seamless_m4t_v2", "vibevoice", "xlm", "xlnet",
}  # fmt: skip


@pytest.mark.parametrize("task", MAPPINGS)
def test_every_family_s_class_is_derived_from_the_base_s(task: str) -> None:
    compared = 0
    for kind, wanted in MAPPINGS[task].items():
        for bases in BASES:
            if kind in bases and kind not in ODD and isinstance(bases[kind], str):
                found = task_architecture(TASKS[task], bases[kind], {"model_type": kind})
                assert found == wanted or found in wanted, (kind, bases[kind])
                compared += 1
    assert compared > 100


@pytest.mark.parametrize(
    ("task_type", "architecture", "config", "expected"),
    [
        ("CAUSAL_LM", "GPT2LMHeadModel", {}, "CAUSAL_LM"),
        (None, "GPT2LMHeadModel", {}, "CAUSAL_LM"),
        ("CAUSAL_LM", "Qwen2_5_VLForConditionalGeneration", {"vision_config": {}}, "IMAGE_TEXT"),
        (None, "LlavaForConditionalGeneration", {"vision_config": {}}, "IMAGE_TEXT"),
        ("SEQ_2_SEQ_LM", "T5ForConditionalGeneration", {}, "SEQ_2_SEQ_LM"),
        (None, "T5ForConditionalGeneration", {}, "SEQ_2_SEQ_LM"),
        (None, "BertForTokenClassification", {}, "TOKEN_CLS"),
        ("SEQ_CLS", "LlamaForCausalLM", {}, "SEQ_CLS"),
        ("SEQ_CLS", "Qwen2VLForConditionalGeneration", {"vision_config": {}}, "SEQ_CLS"),
        ("NEW_TASK", "Unknown", {}, "UNKNOWN"),
    ],
)
def test_what_a_model_is_for(
    task_type: str | None, architecture: str, config: dict[str, object], expected: str
) -> None:
    assert find_task(task_type, architecture, config).name == expected


@pytest.mark.parametrize(
    ("task", "architecture"),
    [("CAUSAL_LM", "GPT2LMHeadModel"), ("IMAGE_TEXT", "Gemma3ForConditionalGeneration"),
     ("SEQ_CLS", "BertForSequenceClassification"), ("FEATURE_EXTRACTION", "BertModel")],
)  # fmt: skip
def test_a_class_that_fits_stays(task: str, architecture: str) -> None:
    assert task_architecture(TASKS[task], architecture, {}) == architecture
