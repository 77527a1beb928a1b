"""The arithmetic of merging: tensors in, tensors out; no files, no names."""

from packager.merge.block import apply_updates, arithmetic_dtype, cast_values, merge_rows
from packager.merge.bound import bound_error
from packager.merge.module import ModuleRows
from packager.merge.part import PartFactors, StackFactors, cut_pair
from packager.merge.residual import cut_singular, project_columns
from packager.merge.update import (
    Factors,
    Replacement,
    RowMagnitude,
    RowUpdate,
    Scaling,
    StoredRows,
    VectorAddition,
)

__all__ = [
    "Factors",
    "ModuleRows",
    "PartFactors",
    "Replacement",
    "RowMagnitude",
    "RowUpdate",
    "Scaling",
    "StackFactors",
    "StoredRows",
    "VectorAddition",
    "apply_updates",
    "arithmetic_dtype",
    "bound_error",
    "cast_values",
    "cut_pair",
    "cut_singular",
    "merge_rows",
    "project_columns",
]
