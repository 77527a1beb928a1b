"""The proof as a page: `report/report.html`, one file that needs nothing and asks nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from packager.resource import read_resource
from packager.verify.figure import (
    describe_bytes,
    describe_count,
    describe_number,
    describe_share,
    describe_small_share,
    printable,
)
from packager.verify.ggufwording import describe_variant_kept
from packager.verify.picture import FRAME, Picture, plan_layer_picture, plan_token_picture
from packager.verify.proof import (
    BehaviourCheck,
    EmbeddingCheck,
    Proof,
    TargetProof,
    TensorFigure,
    VariantProof,
)
from packager.verify.sizepicture import FRAME as SIZE_FRAME
from packager.verify.sizepicture import plan_size_picture
from packager.verify.wording import CHOICES, LevelResult, describe_kept, judge_proof, level_results

_TEMPLATE = "templates/report.html.j2"
_UNKNOWN = "–"
_SHOWN_TENSORS = 100
_SHOWN_PROBLEMS = 200

EVIDENCE = {
    "lock": "The adapter carries a lock: this base is, byte for byte, the one it was trained on.",
    "name-and-shape": (
        "The adapter carries no lock. That it was trained on this base is known by its name and "
        "by the names and shapes of its tensors only."
    ),
}
"""How the base is known, in words; keys as in the manifest."""


@dataclass(frozen=True)
class Figure:
    """One figure of the behaviour check, with its bound and its meaning."""

    name: str
    value: str
    bound: str
    meaning: str


@dataclass(frozen=True)
class VariantRow:
    """One quantisation in the table: what was found, ready to be read."""

    quant: str
    size: str
    kl_mean: str
    kl_max: str
    same_token: str
    perplexity: str
    kept: str
    error: str
    detour: str


@dataclass(frozen=True)
class TargetView:
    """What the page shows of one target."""

    title: str
    results: tuple[LevelResult, ...]
    figures: tuple[Figure, ...]
    kept: str
    tokens: Picture | None
    change: Picture | None
    lost: Picture | None
    tensors: tuple[TensorFigure, ...]
    tensor_count: int
    rules: tuple[tuple[str, int, int], ...]
    variants: tuple[VariantRow, ...] = ()
    sizes: Picture | None = None
    base_kl: str = ""


def render_report(proof: Proof) -> str:
    """Returns the page as HTML text, to be written as UTF-8.

    Everything in it is text: names come from strangers' files.
    """
    environment = ImmutableSandboxedEnvironment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_show,
    )
    environment.filters.update(
        number=describe_number,
        share=describe_small_share,
        size=describe_bytes,
        count=describe_count,
    )
    return environment.from_string(read_resource(_TEMPLATE)).render(
        proof=proof,
        verdict=judge_proof(proof),
        evidence=EVIDENCE.get(proof.evidence, proof.evidence),
        targets=[_view_target(target) for target in sorted(proof.targets, key=_importance)],
        frame=FRAME,
        size_frame=SIZE_FRAME,
        shown_problems=_SHOWN_PROBLEMS,
    )


def _show(value: object) -> object:
    # Markup is a str too; it has been escaped and must stay what it is.
    return printable(value) if type(value) is str else value


def _importance(target: TargetProof) -> tuple[bool, bool]:
    """Sorts what failed to the top, then what was compared."""
    single = target.behaviour or target.embedding
    compared = single is not None or any(it.behaviour for it in target.variants)
    return target.passed, not compared


def _view_target(target: TargetProof) -> TargetView:
    figures = target.weights.figures if target.weights else ()
    behaviour = target.behaviour
    by_loss = sorted(figures, key=lambda figure: figure.lost_to_rounding, reverse=True)
    rules = target.weights.by_rule if target.weights else {}
    return TargetView(
        title=f"{target.target}/{target.name}",
        results=level_results(target),
        figures=_figures(target),
        kept=describe_kept(behaviour) if behaviour else "",
        tokens=plan_token_picture(behaviour) if behaviour else None,
        change=_layers(figures, "delta_ratio", "Size of the change, ‖ΔW‖ / ‖W‖, in"),
        lost=_layers(figures, "lost_to_rounding", "Share of the change lost to rounding in"),
        tensors=tuple(by_loss[:_SHOWN_TENSORS]),
        tensor_count=len(figures),
        rules=tuple((rule, done, of) for rule, (done, of) in rules.items()),
        variants=tuple(map(_variant_row, target.variants)),
        sizes=plan_size_picture(target.variants),
        base_kl=_base_kl(target),
    )


def _variant_row(variant: VariantProof) -> VariantRow:
    check, blocks = variant.behaviour, variant.weights
    return VariantRow(
        quant=variant.quant,
        size=describe_bytes(variant.total_bytes),
        kl_mean=describe_number(check.kl_mean) if check else _UNKNOWN,
        kl_max=describe_number(check.kl_max) if check else _UNKNOWN,
        same_token=describe_share(check.top1_agreement) if check else _UNKNOWN,
        perplexity=f"{check.perplexity_ratio:.4f}" if check else _UNKNOWN,
        kept=describe_variant_kept(check) if check else _UNKNOWN,
        error=describe_small_share(blocks.error) if blocks else _UNKNOWN,
        detour=describe_small_share(blocks.error_from_16bit) if blocks else _UNKNOWN,
    )


def _base_kl(target: TargetProof) -> str:
    checks = [variant.behaviour for variant in target.variants if variant.behaviour is not None]
    return describe_number(checks[0].base_kl_mean) if checks else ""


def _layers(figures: Sequence[TensorFigure], name: str, what: str) -> Picture | None:
    return plan_layer_picture(figures, lambda figure: float(getattr(figure, name)), what)


def _figures(target: TargetProof) -> tuple[Figure, ...]:
    if target.embedding is not None:
        return _vector_figures(target.embedding)
    return _behaviour_figures(target.behaviour) if target.behaviour is not None else ()


def _vector_figures(check: EmbeddingCheck) -> tuple[Figure, ...]:
    def bound(name: str) -> str:
        limit = check.thresholds.get(name)
        return f"at most {describe_number(limit)}" if limit is not None else "no bound"

    return (
        Figure(
            "Effect lost",
            describe_number(check.effect_lost),
            bound("effect_lost"),
            "Mean error of this release over that of the base without the adapter. 0 is the "
            "adapter in full, 1 is a release that has lost it.",
        ),
        Figure(
            "Mean error",
            describe_number(check.error_mean),
            bound("error_mean"),
            "How far a token's vector lies from that of base and adapter, as a share of its "
            f"length. The base without the adapter: {describe_number(check.base_error)}.",
        ),
        Figure(
            "Largest error",
            describe_number(check.error_max),
            bound("error_max"),
            "The token where they lie furthest apart.",
        ),
        Figure(
            "Least cosine",
            f"{check.cosine_min:.6f}",
            "no bound",
            "Of the angle between a token's vector and that of base and adapter; of the mean "
            f"vectors of whole prompts {check.text_cosine_min:.6f}.",
        ),
    )


def _behaviour_figures(check: BehaviourCheck) -> tuple[Figure, ...]:
    def bound(name: str) -> str:
        limit = check.thresholds.get(name)
        return f"at most {describe_number(limit)}" if limit is not None else "no bound"

    choice, _ = CHOICES[check.measure]
    return (
        Figure(
            "Effect lost",
            describe_number(check.effect_lost),
            bound("effect_lost"),
            "Mean KL of this release over mean KL of the base without the adapter. 0 is the "
            "adapter in full, 1 is a release that has lost it.",
        ),
        Figure(
            "Mean KL",
            f"{describe_number(check.kl_mean)} nats",
            bound("kl_mean"),
            "How far this release's predictions lie from those of base and adapter, averaged over "
            f"all positions. The base without the adapter: {describe_number(check.base_kl_mean)}.",
        ),
        Figure(
            "Largest KL",
            f"{describe_number(check.kl_max)} nats",
            bound("kl_max"),
            "The position where they lie furthest apart.",
        ),
        Figure(
            "Perplexity ratio",
            f"{check.perplexity_ratio:.4f}",
            _ratio_bound(check),
            "How much more (above 1) or less the text surprises this release than it surprises "
            "base and adapter.",
        ),
        Figure(
            f"Same {choice}",
            describe_share(check.top1_agreement),
            "no bound",
            f"Positions with the same most likely {choice}. Between near-ties the rounding of "
            "one digit decides, so this is shown, not judged.",
        ),
    )


def _ratio_bound(check: BehaviourCheck) -> str:
    limit = check.thresholds.get("perplexity_ratio")
    return f"{1 / limit:.4f} to {limit:.4f}" if limit else "no bound"
