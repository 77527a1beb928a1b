"""How far two merges are from training: onto the base in 16 bits, and onto what training saw.

The truth is the base as bitsandbytes held it in training, with the adapter on it. Both merges are
PEFT's own, in float32, and rounded as a release rounds them: this says which base to merge onto,
and nothing of how a release merges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from packager.dtype import TORCH_NAMES
from packager.quantisation.training import TrainingQuantisation
from packager.verify.behaviour import OnStep, Truth, artefact_rows, compare
from packager.verify.judge import MERGED_BOUNDS
from packager.verify.model import LoadedModel, attach_adapter, load_base, quiet
from packager.verify.proof import BehaviourCheck, MergeBaseCheck


@dataclass(frozen=True)
class MergeSources:
    """What both merges are made from.

    Attributes:
        base: The base's folder, in 16 bits.
        adapter: The adapter's folder.
        training: How the base was held in training.
        labels: Classes of the adapter's own head, or None.
        dtype: Of the merged weights, as safetensors names it.
    """

    base: Path
    adapter: Path
    training: TrainingQuantisation
    labels: int | None
    dtype: str


def measure_merge_bases(
    truth: Truth, sources: MergeSources, chosen: str, *, progress: OnStep
) -> MergeBaseCheck:
    """Compares both merges with training.

    Args:
        truth: Base as in training + adapter, from `measure_truth`.
        sources: What to merge.
        chosen: Which of both the release merges onto.
        progress: Told about every passage.

    Raises:
        LorapackError: As of `measure_truth`.
    """
    plain = _compare(truth, sources, None, progress)
    seen = _compare(truth, sources, sources.training, progress)
    return MergeBaseCheck(
        loaded_in=sources.training.loaded_in,
        evidence=sources.training.evidence,
        chosen=chosen,
        tokens=plain.tokens,
        kl_16bit=plain.kl_mean,
        kl_dequantized=seen.kl_mean,
        top1_16bit=plain.top1_agreement,
        top1_dequantized=seen.top1_agreement,
        base_kl=plain.base_kl_mean,
    )


def _compare(
    truth: Truth, sources: MergeSources, training: TrainingQuantisation | None, progress: OnStep
) -> BehaviourCheck:
    base = load_base(sources.base, truth.reading.task, labels=sources.labels, training=training)
    with quiet(), torch.inference_mode():
        if training is not None and getattr(base.model, "is_loaded_in_4bit", False):
            base.model.dequantize(torch.float32)
        tuned = attach_adapter(base, sources.adapter)
        merged = _round(tuned.model.merge_and_unload(), sources.dtype)
    loaded: LoadedModel = replace(tuned, model=merged)
    rows = artefact_rows(loaded, truth, progress)
    return compare(truth, rows, bounds=MERGED_BOUNDS[sources.dtype])


def _round(model: Any, dtype: str) -> Any:
    """Rounds every weight to a type, and computes with it in float32."""
    short: torch.dtype = getattr(torch, TORCH_NAMES[dtype])
    for weight in model.parameters():
        weight.data = weight.data.to(short).float()
    return model.eval()
