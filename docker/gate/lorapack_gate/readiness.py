"""Whether the server may answer for its models, and if not, why."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from lorapack_gate.answer import RefusedError
from lorapack_gate.judge import Verdict
from lorapack_gate.metric import Metrics
from lorapack_gate.neighbour import Seen
from lorapack_gate.probe import Ask, ProbeError, probe
from lorapack_gate.setting import Setting

State = Literal["starting", "probing", "ready", "failed", "waiting", "stopping"]
"""What one server is by itself, and besides: waiting for a neighbour, or about to end."""

_UNPROVEN = (
    "the bundle holds no expected answers, so nothing shows that its models are served right: "
    "release it again with its proof, or start with LORAPACK_ALLOW_UNPROVEN=1"
)


class Readiness:
    """From starting over probing to ready or failed; a failed server stays that.

    Args:
        setting: What the gate goes by.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._state: State = "starting"
        self._reason = "the server is starting"
        self._verdicts: tuple[Verdict, ...] = ()
        self._was_whole = False

    @property
    def is_ready(self) -> bool:
        """Whether models may be asked."""
        return self._state == "ready"

    async def probe(self, ask: Ask) -> None:
        """Asks the server behind the gate and settles the state."""
        expected = self._setting.expected
        if expected is None:
            if self._setting.allow_unproven:
                self._state, self._reason = "ready", ""
            else:
                self.fail(_UNPROVEN)
            return
        self._state, self._reason = "probing", "its models are being asked"
        try:
            self._verdicts = await probe(expected, self._setting.base, ask)
        except ProbeError as problem:
            self.fail(str(problem))
            return
        asked = {verdict.name for verdict in self._verdicts}
        reasons = [verdict.reason for verdict in self._verdicts if verdict.reason]
        reasons += [
            f"{model.kind} {model.name!r} is not in the proof"
            for model in self._setting.models
            if model.name not in asked
        ]
        if reasons:
            self.fail("; ".join(reasons))
        else:
            self._state, self._reason = "ready", ""

    def fail(self, reason: str) -> None:
        """Settles that the server is not to be used."""
        self._state, self._reason = "failed", reason

    def check(self) -> None:
        """Refuses a request for a model before the server is ready.

        Raises:
            RefusedError: With the reason.
        """
        if not self.is_ready:
            retry = () if self._state == "failed" else ((b"retry-after", b"1"),)
            raise RefusedError(
                503,
                f"the server is not ready: {self._reason}",
                kind="service_unavailable_error",
                code="not_ready",
                headers=retry,
            )

    def document(self, seen: Sequence[Seen] = (), *, stopping: bool = False) -> dict[str, Any]:
        """Returns what `GET /ready` tells.

        A server becomes ready once it and all its neighbours are. A neighbour that is lost later
        takes its own models with it, and no others: `reason` says so, and the server stays ready.

        Args:
            seen: How the neighbours are.
            stopping: Whether the server is about to end.
        """
        state, reason = self._state, self._reason
        absent = [f"neighbour {each.name!r} is not ready: {each.reason}" for each in seen
                  if not each.ready]  # fmt: skip
        if stopping:
            state, reason = "stopping", "the server is being stopped"
        elif self.is_ready and absent:
            state = "ready" if self._was_whole else "waiting"
            reason = "; ".join(absent)
        elif self.is_ready:
            self._was_whole = True
        proven = bool(self._verdicts) and self.is_ready and all(each.proven for each in seen)
        own = [verdict.to_json() for verdict in self._verdicts]
        return {
            "ready": state == "ready",
            "state": state,
            "proven": proven,
            "reason": reason or None,
            "models": [*own, *(model for each in seen for model in each.models)],
            "neighbours": {each.name: each.ready for each in seen},
        }

    def tell(self, log: logging.Logger) -> None:
        """Logs how the probe went, model by model."""
        for verdict in self._verdicts:
            log.log(
                logging.ERROR if verdict.reason else logging.INFO,
                "lorapack: %s %r is %.3g nats from the proof, bound %.3g: %s",
                verdict.kind,
                verdict.name,
                verdict.divergence,
                verdict.bound,
                verdict.reason or "served as proven",
            )
        if self.is_ready:
            log.info("lorapack: ready%s", "" if self._verdicts else ", unproven")
        elif self._state == "failed":
            log.error("lorapack: not ready: %s", self._reason)

    def record(self, metrics: Metrics) -> None:
        """Puts the outcome where Prometheus reads it."""
        metrics.ready = self.is_ready
        metrics.divergence = {verdict.name: verdict.divergence for verdict in self._verdicts}
        metrics.bound = {verdict.name: verdict.bound for verdict in self._verdicts}
