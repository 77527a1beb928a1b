"""The README of a server's folder: values in, Markdown out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from packager.container.deployment import plan_deployment
from packager.markup import card_environment
from packager.obligation import obligations
from packager.serving.answer import Expected
from packager.serving.value import ServedAdapter, ServingPlan


@dataclass(frozen=True)
class _Shown:
    served: ServedAdapter
    folded: bool
    difference: float | None
    effect: float | None
    bound: float | None
    chat: bool
    chat_body: str
    text_body: str


def render_server_card(
    plan: ServingPlan,
    expected: Expected | None,
    *,
    folded: frozenset[str],
    differences: Mapping[str, float | None],
) -> str:
    """Returns the text.

    Args:
        plan: Of the server.
        expected: The answers that it has to give, or None without a proof.
        folded: Adapters whose scale is part of their weights.
        differences: Adapter → relative difference of its ΔW from the one trained.

    Raises:
        InputError: The base cannot be spread over GPUs of the memory asked for.
    """
    models = {} if expected is None else {model.name: model for model in expected.models}
    shown = []
    for adapter in plan.adapters:
        answers = models.get(adapter.name)
        shown.append(
            _Shown(
                served=adapter,
                folded=adapter.name in folded,
                difference=differences.get(adapter.name),
                effect=None if answers is None else answers.effect,
                bound=None if answers is None else answers.kl_bound,
                chat=plan.base.chat or adapter.template is not None,
                chat_body=_body(adapter.name, messages=[{"role": "user", "content": "Hello!"}]),
                text_body=_body(adapter.name, prompt="Hello", max_tokens=32),
            )
        )
    base = models.get(plan.base.name)
    return (
        card_environment()
        .get_template("server.md.j2")
        .render(
            vllm_version=plan.vllm_version,
            base=plan.base,
            base_from_folder=plan.base.origin.repo is None and not plan.base.baked,
            base_bound=None if base is None else base.kl_bound,
            adapters=shown,
            proven=expected is not None,
            license=plan.base.license,
            duties=obligations(plan.base.license),
            parallel=plan_deployment(plan).parallel,
        )
    )


def _body(model: str, **rest: object) -> str:
    return json.dumps({"model": model, **rest}, ensure_ascii=False)
