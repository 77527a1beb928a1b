"""The arithmetic of merging: tensors in, tensors out; no files, no names."""

from packager.merge.block import apply_updates, arithmetic_dtype, cast_values, merge_rows
from packager.merge.bound import bound_error
from packager.merge.part import PartFactors, StackFactors, cut_pair
from packager.merge.update import Addition, Factors, RowMagnitude, RowUpdate, Scaling

__all__ = [
    "Addition",
    "Factors",
    "PartFactors",
    "RowMagnitude",
    "RowUpdate",
    "Scaling",
    "StackFactors",
    "apply_updates",
    "arithmetic_dtype",
    "bound_error",
    "cast_values",
    "cut_pair",
    "merge_rows",
]
