"""The README of a server's folder: values in, Markdown out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from packager.container.deployment import plan_deployment
from packager.markup import card_environment
from packager.obligation import obligations
from packager.serving.answer import Expected, ExpectedModel
from packager.serving.document import PORT, GateModel, gate_config
from packager.serving.path import neighbour_path
from packager.serving.value import ServingPlan


@dataclass(frozen=True)
class _Shown:
    name: str
    kind: str
    what: str
    rank: int | None
    difference: float | None
    effect: float | None
    bound: float | None
    chat: bool
    chat_body: str
    text_body: str


def render_server_card(
    plan: ServingPlan,
    expected: Mapping[str, Expected],
    *,
    folded: frozenset[str],
    differences: Mapping[str, float | None],
) -> str:
    """Returns the text.

    Args:
        plan: Of the first server.
        expected: The answers that each server has to give, by what it loads; empty without a
            proof.
        folded: Adapters whose scale is part of their weights.
        differences: Adapter → relative difference of its ΔW from the one trained.

    Raises:
        InputError: A model cannot be spread over GPUs of the memory asked for.
    """
    servers = (plan, *plan.neighbours)
    answers = {model.name: model for item in expected.values() for model in item.models}
    models = tuple(
        _show(model, server, answers.get(model.name), folded, differences)
        for server in servers
        for model in gate_config(server, None).models
    )
    deployment = plan_deployment(plan)
    return (
        card_environment()
        .get_template("server.md.j2")
        .render(
            vllm_version=plan.vllm_version,
            base=plan.base,
            models=models,
            asked=[model for model in models if model.kind != "base"],
            merges=[server.base.merged for server in servers if server.base.merged is not None],
            neighbours=[neighbour_path(server.base.name) for server in plan.neighbours],
            addresses=",".join(
                f"{server.base.name}=http://127.0.0.1:{PORT + place}"
                for place, server in enumerate(plan.neighbours, 1)
            ),
            share=plan.gpu_share,
            proven=bool(expected),
            license=plan.base.license,
            duties=obligations(plan.base.license),
            parallel=deployment.parallel,
            together=deployment.fits_machine,
            one_machine=deployment.fits_machines,
        )
    )


def _show(
    model: GateModel,
    server: ServingPlan,
    answers: ExpectedModel | None,
    folded: frozenset[str],
    differences: Mapping[str, float | None],
) -> _Shown:
    what = "merged model" if model.kind == "merged" else model.kind
    ranks = {adapter.name: adapter.rank for adapter in server.adapters}
    return _Shown(
        name=model.name,
        kind=model.kind,
        what=f"{what}, scale folded in" if model.name in folded else what,
        rank=ranks.get(model.name),
        difference=differences.get(model.name),
        effect=None if answers is None or model.kind == "base" else answers.effect,
        bound=None if answers is None else answers.kl_bound,
        chat=model.chat,
        chat_body=_body(model.name, messages=[{"role": "user", "content": "Hello!"}]),
        text_body=_body(model.name, prompt="Hello", max_tokens=32),
    )


def _body(model: str, **rest: object) -> str:
    return json.dumps({"model": model, **rest}, ensure_ascii=False)
