"""A Grafana dashboard: vLLM's engine, and a row for each model that is served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packager.container.deployment import Deployment

_WIDTH = 24
_HEIGHT = 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class _Panel:
    """A picture of some queries.

    Attributes:
        title: Over it.
        unit: Of Grafana: `reqps`, `s`, `short`, `percentunit` and the like.
        queries: (PromQL, legend) of each line.
        description: What a reader should know.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str = ""


# Source: vLLM 0.32.0, vllm/v1/metrics/loggers.py. Counters get `_total` from prometheus_client.
_ENGINE = (
    _Panel(
        "Requests in the engine",
        "short",
        (
            ("sum(vllm:num_requests_running{$pods})", "running"),
            ("sum(vllm:num_requests_waiting{$pods})", "waiting"),
        ),
        "Waiting requests are what the autoscaler looks at.",
    ),
    _Panel(
        "Tokens per second",
        "short",
        (
            ("sum(rate(vllm:prompt_tokens_total{$pods}[$__rate_interval]))", "read"),
            ("sum(rate(vllm:generation_tokens_total{$pods}[$__rate_interval]))", "written"),
        ),
    ),
    _Panel(
        "Time to first token",
        "s",
        tuple(
            (
                f"histogram_quantile({share}, sum by (le) "
                "(rate(vllm:time_to_first_token_seconds_bucket{$pods}[$__rate_interval])))",
                legend,
            )
            for share, legend in ((0.5, "half of them"), (0.95, "95 %"), (0.99, "99 %"))
        ),
    ),
    _Panel(
        "Time between tokens",
        "s",
        tuple(
            (
                f"histogram_quantile({share}, sum by (le) "
                "(rate(vllm:inter_token_latency_seconds_bucket{$pods}[$__rate_interval])))",
                legend,
            )
            for share, legend in ((0.5, "half of them"), (0.95, "95 %"))
        ),
    ),
    _Panel(
        "Keys and values",
        "percentunit",
        (
            ("max(vllm:kv_cache_usage_perc{$pods})", "in use, fullest replica"),
            (
                "sum(rate(vllm:prefix_cache_hits_total{$pods}[$__rate_interval])) / "
                "sum(rate(vllm:prefix_cache_queries_total{$pods}[$__rate_interval]))",
                "prefixes found",
            ),
        ),
        "At 100 % requests are put off and done over.",
    ),
    _Panel(
        "Put off and refused",
        "short",
        (
            ("sum(rate(vllm:num_preemptions_total{$pods}[$__rate_interval]))", "put off"),
            (
                "sum by (reason) (rate(lorapack_refused_total{$pods}[$__rate_interval]))",
                "refused: {{reason}}",
            ),
        ),
    ),
)


def render_dashboard(deployment: Deployment) -> str:
    """Returns the dashboard that Grafana imports."""
    plan = deployment.plan
    others = tuple(server.name for server in deployment.neighbours)
    panels: list[dict[str, Any]] = []
    rows = ((name, _model_panels(name, others)) for name in plan.names)
    for title, row in (("Engine", _ENGINE), *rows):
        panels += _lay_out(title, row, panels)
    document = {
        "uid": deployment.name,
        "title": deployment.title,
        "description": "vLLM, and each model that it answers as",
        "tags": ["vllm", "lorapack"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(_variables(deployment))},
        "panels": panels,
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _model_panels(name: str, neighbours: tuple[str, ...]) -> tuple[_Panel, ...]:
    """Returns the panels of one model, of a neighbour's too as the first server counts it."""
    label = json.dumps(name, ensure_ascii=False)
    probed = f"{{model={label}, $pods}}"
    counted = "|".join(f"{server}(-compose)?" for server in neighbours)
    of_it = f'{{model={label}, $pods, job!~"{counted}"}}' if counted else probed
    return (
        _Panel(
            "Requests",
            "reqps",
            (
                (
                    f"sum by (status) (rate(lorapack_requests_total{of_it}[$__rate_interval]))",
                    "{{status}}",
                ),
            ),
        ),
        _Panel("In flight", "short", ((f"sum(lorapack_requests_in_flight{of_it})", "requests"),)),
        _Panel(
            "Time to first byte",
            "s",
            tuple(
                (
                    f"histogram_quantile({share}, sum by (le) "
                    f"(rate(lorapack_first_byte_seconds_bucket{of_it}[$__rate_interval])))",
                    legend,
                )
                for share, legend in ((0.5, "half of them"), (0.95, "95 %"))
            ),
        ),
        _Panel(
            "Divergence from the proof",
            "short",
            (
                (f"max(lorapack_probe_divergence_nats{probed})", "measured at the start"),
                (f"max(lorapack_probe_bound_nats{probed})", "most that is let through"),
            ),
            "In nats a token. Above the bound the server is never ready.",
        ),
    )


def _lay_out(
    title: str, row: tuple[_Panel, ...], before: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yields a row's heading and its panels, two or more beside each other."""
    top = max((panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in before), default=0)
    number = len(before) + 1
    place = {"x": 0, "y": top, "w": _WIDTH, "h": 1}
    yield {
        "id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
        "gridPos": place,
    }  # fmt: skip
    columns = 3 if len(row) % 3 == 0 else 4
    width = _WIDTH // columns
    for index, panel in enumerate(row):
        at = {"x": index % columns * width, "y": top + 1 + index // columns * _HEIGHT}
        yield {
            "id": number + 1 + index,
            "type": "timeseries",
            "title": panel.title,
            "description": panel.description,
            "datasource": _SOURCE,
            "gridPos": {**at, "w": width, "h": _HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {
                    "refId": chr(ord("A") + letter),
                    "datasource": _SOURCE,
                    "expr": query.replace("$pods", 'job=~"$job"'),
                    "legendFormat": legend,
                }
                for letter, (query, legend) in enumerate(panel.queries)
            ],
        }


def _variables(deployment: Deployment) -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    yield {
        "name": "job",
        "label": "Server",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"qryType": 1, "query": "label_values(lorapack_ready, job)", "refId": "job"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": "|".join(f"{server.name}.*" for server in deployment.servers),
        "current": {"text": "All", "value": "$__all"},
    }
