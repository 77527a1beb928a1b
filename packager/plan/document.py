"""A plan as a JSON document: writer and parser."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from packager.errors import InputError
from packager.plan.target import SCHEMA_VERSION, ReleasePlan
from packager.record import build_record
from packager.untrusted import parse_json_object


def plan_document(plan: ReleasePlan) -> dict[str, Any]:
    """Returns the plan as a JSON-ready mapping."""
    return asdict(plan)


def render_plan(plan: ReleasePlan) -> str:
    """Returns the plan as JSON text."""
    return json.dumps(plan_document(plan), ensure_ascii=False, indent=1) + "\n"


def parse_plan(text: str | bytes, *, where: str) -> ReleasePlan:
    """Parses what `render_plan` wrote.

    Raises:
        InputError: Not a plan of this schema.
    """
    raw = parse_json_object(text, where=where)
    try:
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {raw['schema_version']!r}")
        return build_record(ReleasePlan, raw)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise InputError(
            "the plan is damaged",
            where=where,
            found=str(problem)[:200],
            hint="make it again: lorapack plan --json",
        ) from problem
