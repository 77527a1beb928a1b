"""What the gate counts, for each served name, as Prometheus reads it.

Source: Prometheus, exposition format 0.0.4: `# TYPE`, one sample a line, labels in quotes with
backslash, quote and line feed escaped, buckets cumulative up to `+Inf`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass
class Histogram:
    """Durations in buckets."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one duration."""
        place = next((at for at, most in enumerate(_SECONDS) if seconds <= most), len(_SECONDS))
        self.counts[place] += 1
        self.total += seconds

    def samples(self, name: str, labels: str) -> Iterator[str]:
        """Yields the lines of this histogram."""
        seen = 0
        for most, count in zip((*map(str, _SECONDS), "+Inf"), self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{labels},le="{most}"}} {seen}'
        yield f"{name}_sum{{{labels}}} {self.total:.6f}"
        yield f"{name}_count{{{labels}}} {seen}"


class Metrics:
    """All counters of one gate.

    Args:
        models: The served names.

    Attributes:
        waiting: Requests whose bodies arrive or whose answers are made.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self.ready = False
        self.waiting = 0
        self.requests: Counter[tuple[str, int]] = Counter()
        self.in_flight: Counter[str] = Counter(dict.fromkeys(models, 0))
        self.first_byte = {name: Histogram() for name in models}
        self.duration = {name: Histogram() for name in models}
        self.refused: Counter[str] = Counter()
        self.divergence: dict[str, float] = {}
        self.bound: dict[str, float] = {}
        self.neighbours: dict[str, bool] = {}

    def render(self) -> str:
        """Returns all samples, each on a line."""
        return "\n".join([*self._counters(), *self._durations(), *self._figures(), ""])

    def _counters(self) -> Iterator[str]:
        yield "# HELP lorapack_ready Whether the probe has passed."
        yield "# TYPE lorapack_ready gauge"
        yield f"lorapack_ready {int(self.ready)}"
        if self.neighbours:
            yield "# HELP lorapack_neighbour_ready Whether another server of the bundle is ready."
            yield "# TYPE lorapack_neighbour_ready gauge"
        for name, ready in sorted(self.neighbours.items()):
            yield f'lorapack_neighbour_ready{{neighbour="{_escape(name)}"}} {int(ready)}'
        yield "# HELP lorapack_requests_total Requests that reached a model, by HTTP status."
        yield "# TYPE lorapack_requests_total counter"
        for (model, status), count in sorted(self.requests.items()):
            yield f'lorapack_requests_total{{{_model(model)},status="{status}"}} {count}'
        yield "# HELP lorapack_requests_in_flight Requests that a model is answering."
        yield "# TYPE lorapack_requests_in_flight gauge"
        for model, count in sorted(self.in_flight.items()):
            yield f"lorapack_requests_in_flight{{{_model(model)}}} {count}"
        yield "# HELP lorapack_refused_total Requests that the gate refused, by reason."
        yield "# TYPE lorapack_refused_total counter"
        for reason, count in sorted(self.refused.items()):
            yield f'lorapack_refused_total{{reason="{_escape(reason)}"}} {count}'

    def _durations(self) -> Iterator[str]:
        yield "# HELP lorapack_first_byte_seconds From a whole request to its answer's first byte."
        yield "# TYPE lorapack_first_byte_seconds histogram"
        for model, histogram in sorted(self.first_byte.items()):
            yield from histogram.samples("lorapack_first_byte_seconds", _model(model))
        yield "# HELP lorapack_duration_seconds From a whole request to its answer's end."
        yield "# TYPE lorapack_duration_seconds histogram"
        for model, histogram in sorted(self.duration.items()):
            yield from histogram.samples("lorapack_duration_seconds", _model(model))

    def _figures(self) -> Iterator[str]:
        yield "# HELP lorapack_probe_divergence_nats From the proof, as measured at the start."
        yield "# TYPE lorapack_probe_divergence_nats gauge"
        for model, value in sorted(self.divergence.items()):
            yield f"lorapack_probe_divergence_nats{{{_model(model)}}} {value:.6g}"
        yield "# HELP lorapack_probe_bound_nats The most that is agreement with the proof."
        yield "# TYPE lorapack_probe_bound_nats gauge"
        for model, value in sorted(self.bound.items()):
            yield f"lorapack_probe_bound_nats{{{_model(model)}}} {value:.6g}"


def _model(name: str) -> str:
    return f'model="{_escape(name)}"'


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
