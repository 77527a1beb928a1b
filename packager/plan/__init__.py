"""The plan of a release: every output tensor and file with its rule; pure, JSON in and out."""

from packager.plan.document import parse_plan, render_plan
from packager.plan.option import ReleaseOptions
from packager.plan.release import plan_release
from packager.plan.source import AdapterSource, BaseSource, GgufSource
from packager.plan.target import ReleasePlan, TargetPlan
from packager.plan.update import (
    Addition,
    Companion,
    Copy,
    Delta,
    Magnitude,
    ModuleUpdate,
    PartDelta,
    Residual,
    Rounding,
    RowReplacement,
    Update,
)
from packager.plan.value import (
    ConverterPlan,
    GgufLoraPlan,
    GgufPlan,
    LoraFactor,
    PlannedFile,
    PlannedShard,
    PlannedTensor,
)

__all__ = [
    "AdapterSource",
    "Addition",
    "BaseSource",
    "Companion",
    "ConverterPlan",
    "Copy",
    "Delta",
    "GgufLoraPlan",
    "GgufPlan",
    "GgufSource",
    "LoraFactor",
    "Magnitude",
    "ModuleUpdate",
    "PartDelta",
    "PlannedFile",
    "PlannedShard",
    "PlannedTensor",
    "ReleaseOptions",
    "ReleasePlan",
    "Residual",
    "Rounding",
    "RowReplacement",
    "TargetPlan",
    "Update",
    "parse_plan",
    "plan_release",
    "render_plan",
]
