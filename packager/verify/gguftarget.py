"""The levels of a proof for one target in GGUF, in all its quantisations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from packager.digest import OnBytes
from packager.plan import GgufPlan, TargetPlan
from packager.verify.proof import TargetProof, VariantProof

if TYPE_CHECKING:
    from packager.verify.behaviour import OnStep, Truth
    from packager.verify.blocks import Importance
    from packager.verify.truthrows import TruthSources


def list_variants(target: TargetPlan) -> tuple[VariantProof, ...]:
    """Returns an empty proof of each quantisation, in the order of the plan; none without GGUF."""
    plan = target.gguf
    if plan is None:
        return ()
    return tuple(
        VariantProof(quant, _files(plan, quant)[0], _bytes_of(plan, quant))
        for quant in dict.fromkeys(file.quant for file in plan.files)
    )


def prove_blocks(
    proof: TargetProof,
    plan: GgufPlan,
    folder: Path,
    sources: TruthSources,
    *,
    importance: Importance | None,
    sample_values: int | None,
    on_bytes: OnBytes | None,
) -> TargetProof:
    """Adds level `weights` to every quantisation.

    Args:
        proof: With `variants`.
        plan: Of the target.
        folder: Of the target.
        sources: Base and adapter.
        importance: As given to the writer.
        sample_values: As of `check_blocks`, for each quantisation.
        on_bytes: Told of bytes checked.

    Raises:
        InputError: A source or a file cannot be read.
    """
    from packager.verify.blocks import check_blocks

    return _map_variants(
        proof,
        lambda variant: replace(
            variant,
            weights=check_blocks(
                plan,
                variant.quant,
                folder,
                sources,
                importance=importance,
                sample_values=sample_values,
                on_bytes=on_bytes,
            ),
        ),
    )


def prove_models(
    proof: TargetProof,
    folder: Path,
    truth: Truth,
    tokenizer: Path | None,
    *,
    parameters: int,
    progress: OnStep | None,
) -> TargetProof:
    """Adds level `behaviour`: every quantisation in llama.cpp, and the chat template of one.

    The template and the tokenizer are the same in all files; that their keys are, level `weights`
    has shown.

    Args:
        proof: With `variants`.
        folder: Of the target.
        truth: Of the adapter.
        tokenizer: Folder of the release's tokenizer, or None.
        parameters: Of the model.
        progress: Told about steps.

    Raises:
        ProofError: llama.cpp is missing, or cannot run a file.
        InputError: The chat template fails in transformers.
    """
    from packager.chat import render_chat
    from packager.verify.chat import check_chat
    from packager.verify.variant import check_gguf

    def measure(variant: VariantProof) -> VariantProof:
        behaviour, ending = check_gguf(
            truth, folder / variant.path, variant.quant, parameters=parameters, progress=progress
        )
        return replace(variant, behaviour=behaviour, ending=ending)

    measured = _map_variants(proof, measure)
    if tokenizer is None or not _has_template(tokenizer):
        return measured
    smallest = min(proof.variants, key=lambda variant: variant.total_bytes)
    if progress is not None:
        progress("compare the chat template", 0, 1)
    renderings, _ = render_chat(tokenizer)
    chat = check_chat(folder / smallest.path, renderings)
    if progress is not None:
        progress("compare the chat template", 1, 1)
    return replace(measured, chat=chat)


def _has_template(folder: Path) -> bool:
    from packager.untrusted import read_json_object

    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json_object(path).get("chat_template"))


def _map_variants(
    proof: TargetProof, change: Callable[[VariantProof], VariantProof]
) -> TargetProof:
    return replace(proof, variants=tuple(map(change, proof.variants)))


def _files(plan: GgufPlan, quant: str) -> list[str]:
    return [file.path for file in plan.files if file.quant == quant]


def _bytes_of(plan: GgufPlan, quant: str) -> int:
    return sum(file.size for file in plan.files if file.quant == quant)
