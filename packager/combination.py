"""Several adapters as one: what a user asks for, and what a manifest keeps of it.

Source: PEFT 0.21, tuners/lora/model.py, add_weighted_adapter: methods and their arguments.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from packager.errors import BundleError, InputError
from packager.record import build_record

Method = Literal[
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties",
    "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd",
]  # fmt: skip
METHODS: tuple[Method, ...] = get_args(Method)
MajoritySign = Literal["total", "frequency"]
_PRUNING = ("ties", "dare", "magnitude_prune")
_SVD = "_svd"


@dataclass(frozen=True)
class Combination:
    """How adapters become one.

    Attributes:
        method: Of PEFT's `add_weighted_adapter`.
        weights: One for each adapter, in their order.
        density: Share of values that pruning keeps, or None for methods that prune none.
        majority_sign_method: Of the methods with `ties`.
        seed: Of the methods with `dare`, which draw at random.
        svd_rank: Rank of what the methods with `svd` make, or None for the largest of all.
    """

    method: Method
    weights: tuple[float, ...]
    density: float | None = None
    majority_sign_method: MajoritySign = "total"
    seed: int = 0
    svd_rank: int | None = None

    @property
    def pruning(self) -> str:
        """The method without its decomposition."""
        return self.method.removesuffix(_SVD)

    @property
    def decomposes(self) -> bool:
        """Whether updates are combined, and not their factors."""
        return self.method == "svd" or self.method.endswith(_SVD)


@dataclass(frozen=True)
class CombinedSource:
    """One of the adapters that became one.

    Attributes:
        name: As given.
        directory: Where it was.
        digest: `sha256:<hex>` over its configuration and weights.
    """

    name: str
    directory: str
    digest: str


@dataclass(frozen=True)
class CombinationRecord:
    """What is kept of a combination, to make it again.

    Attributes:
        combination: How.
        sources: Of what, in order.
    """

    combination: Combination
    sources: tuple[CombinedSource, ...]


def parse_weights(text: str) -> tuple[float, ...]:
    """Reads `0.7,0.3`.

    Raises:
        InputError: Not finite numbers.
    """
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if weights and all(map(math.isfinite, weights)):
        return weights
    raise InputError(
        "these are not weights of adapters",
        where="--weights",
        expected="numbers with commas between them, such as 0.7,0.3",
        found=repr(text)[:60],
        hint="give one for each adapter, in their order: --weights 0.7,0.3",
    )


def check_combination(combination: Combination, adapters: int) -> None:
    """Refuses what does not go together.

    Raises:
        InputError: The number of weights, the density or the rank.
    """
    if adapters < 2:
        raise _refused("one adapter alone is not combined", f"{adapters} adapter", "two or more")
    if len(combination.weights) != adapters:
        raise _refused(
            "every adapter needs a weight",
            f"{len(combination.weights)} weights",
            f"{adapters}, in the order of the adapters",
        )
    prunes = combination.pruning.startswith(_PRUNING)
    density = combination.density
    if prunes and (density is None or not 0 < density <= 1):
        found = "none" if density is None else f"{density:g}"
        raise _refused(f"{combination.method} prunes", found, "--density above 0, at most 1")
    if not prunes and density is not None:
        raise _refused(f"{combination.method} prunes nothing", f"{density:g}", "no --density")
    if combination.svd_rank is not None and not combination.decomposes:
        raise _refused(
            f"{combination.method} has the rank of its adapters",
            f"{combination.svd_rank}",
            "--svd-rank with the methods that end in svd only",
        )


def _refused(what: str, found: str, expected: str) -> InputError:
    return InputError(
        what,
        where="--combine",
        expected=expected,
        found=found,
        hint="lorapack release a=./A b=./B --combine ties --weights 0.7,0.3 --density 0.5",
    )


def render_record(record: CombinationRecord) -> str:
    """Returns the text that a manifest keeps."""
    return json.dumps(asdict(record), ensure_ascii=False, sort_keys=True)


def parse_record(text: str, *, where: str) -> CombinationRecord:
    """Reads what `render_record` wrote.

    Raises:
        BundleError: It is something else.
    """
    try:
        record = build_record(CombinationRecord, json.loads(text))
        check_combination(record.combination, len(record.sources))
    except (InputError, TypeError, ValueError, AttributeError, KeyError) as problem:
        raise BundleError(
            "the manifest is damaged",
            where=where,
            expected="a combination as a release writes it",
            found=str(problem)[:200],
            hint="copy the bundle again, or release it again",
        ) from problem
    return record


def combination_notes(text: str) -> tuple[str, ...]:
    """Returns one line of what was combined, or nothing.

    Args:
        text: As a manifest keeps it, or empty.
    """
    if not text:
        return ()
    record = parse_record(text, where="--combine")
    how = record.combination
    parts = ", ".join(
        f"{weight:g} of {source.name}"
        for weight, source in zip(how.weights, record.sources, strict=True)
    )
    details = [
        f"density {how.density:g}" if how.density is not None else "",
        f"majority sign by {how.majority_sign_method}" if "ties" in how.method else "",
        f"seed {how.seed}" if "dare" in how.method else "",
        f"rank {how.svd_rank}" if how.svd_rank is not None else "",
    ]
    return (f"combined by {', '.join([how.method, *filter(None, details)])}: {parts}",)


def combined_name(adapters: tuple[tuple[str | None, Path], ...], name: str | None) -> str:
    """Returns what a combination is called: as told, else by all its names."""
    names = [given or folder.resolve().name for given, folder in adapters]
    return name or "-".join(names)[:80]
