"""One cell of the matrix: train, merge, load again, and compare with PEFT."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from packager.mergefolder import merge_to_folder
from packager.progress import Silent
from tests.matrix.architecture import ARCHITECTURES, Architecture, Inputs, write_base
from tests.matrix.feature import FEATURES, Feature
from tests.matrix.stored import STORES

_SHARD_BYTES = 5 << 30
_STEPS = 3
_RATE = 3e-2


class UntrainableError(Exception):
    """PEFT itself does not take this feature on this architecture."""


@dataclass(frozen=True)
class Base:
    """A base on the disk and in memory.

    Attributes:
        folder: As the Hub would hold it.
        model: In float32, for the architecture's task.
        inputs: For training and for comparing.
    """

    folder: Path
    model: Any
    inputs: Inputs


@dataclass(frozen=True)
class Figures:
    """How a merged model compares with PEFT's.

    Attributes:
        tensors: Tensors of the model in memory that were compared.
        changed: Those that differ from the base's.
        worst: Largest ‖ours − truth‖ / ‖truth‖ of a tensor; the truth is PEFT's merge in float64.
        excess: Largest amount by which that exceeds the error of PEFT's float32 merge, rounded
            to the base's type.
        effect: ‖base − truth‖ / ‖truth‖ of the logits, without the adapter and with it.
        lost: ‖ours − truth‖ / ‖base − truth‖ of the logits; the truth is PEFT's unmerged model.
        lost_by_peft: The same of PEFT's own float32 merge.
    """

    tensors: int
    changed: int
    worst: float
    excess: float
    effect: float
    lost: float
    lost_by_peft: float


class Workshop:
    """Keeps bases between cells.

    Args:
        folder: To work in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bases: dict[tuple[str, str], Base] = {}

    def base(self, architecture: str, kind: str) -> Base:
        """Returns a base, made on first use."""
        key = (architecture, kind)
        if key not in self._bases:
            row, folder = ARCHITECTURES[architecture], self._folder / f"base-{architecture}-{kind}"
            if kind in STORES:
                model = STORES[kind](row, self.base(architecture, "bfloat16").folder, folder)
            else:
                model = row.load(write_base(row, folder, dtype=kind))
            self._bases[key] = Base(folder, model.eval(), row.inputs())
        return self._bases[key]

    def run(self, feature: str, architecture: str) -> Figures:
        """Runs a cell.

        Raises:
            LorapackError: The merge is refused.
            UntrainableError: PEFT does not take this feature on this architecture.
        """
        column, row = FEATURES[feature], ARCHITECTURES[architecture]
        with _quiet():
            base = self.base(architecture, column.base)
            place = self._folder / "cell"
            shutil.rmtree(place, ignore_errors=True)
            _train(row, column, base, place / "adapter")
            merge_to_folder(
                str(base.folder), place / "adapter", place / "out", _SHARD_BYTES, Silent()
            )
            return _compare(row, column, base, place)


def _train(row: Architecture, column: Feature, base: Base, out: Path) -> None:
    """Trains an adapter for a few steps and saves it."""
    model = copy.deepcopy(base.model)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        try:
            if column.prepare is not None:
                column.prepare(model)
            tuned = peft.get_peft_model(model, column.config(row))
            _fit(tuned, base.inputs)
        except _REFUSALS as problem:
            raise UntrainableError(" ".join(str(problem).split())) from problem
    tuned.save_pretrained(out)


_REFUSALS = (ValueError, TypeError, NotImplementedError, LookupError, AttributeError, RuntimeError)
"""What PEFT raises for what it does not take."""


def _fit(tuned: Any, inputs: Inputs) -> None:
    named = {name: item for name, item in tuned.named_parameters() if item.requires_grad}
    optimiser = torch.optim.AdamW(named.values(), lr=_RATE)
    tuned.train()
    for _ in range(_STEPS):
        tuned(**inputs).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    idle = [name for name, item in named.items() if not bool(item.any())]
    if idle:
        raise UntrainableError(f"without effect: {idle[0]}")


def _load_peft(column: Feature, base: Base, adapter: Path) -> Any:
    """Loads base + adapter with PEFT, as it was saved."""
    model = copy.deepcopy(base.model)
    if column.prepare is not None:
        column.prepare(model)
    # AdaLoRA asks in its forward pass which adapter is trained.
    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()


def _compare(row: Architecture, column: Feature, base: Base, place: Path) -> Figures:
    tuned = _load_peft(column, base, place / "adapter")
    merged = _load_merged(row, base, place / "out")
    expected = _logits(tuned, base.inputs)
    without = _logits(base.model, base.inputs)
    known = min(without.shape[-1], expected.shape[-1])  # new tokens have no counterpart
    effect = (without[..., :known] - expected[..., :known]).norm()
    error = (_logits(merged, base.inputs) - expected).norm()
    _untie(tuned)
    truth = copy.deepcopy(tuned).double().merge_and_unload().state_dict()
    peft_merged = tuned.merge_and_unload()
    peft_error = (_logits(peft_merged, base.inputs) - expected).norm()
    theirs = peft_merged.state_dict()
    ours, before = merged.state_dict(), base.model.state_dict()
    assert set(ours) == set(theirs)
    dtype = torch.float32 if column.base == "float32" else torch.bfloat16
    errors = {name: _distance(ours[name], truth[name]) for name in ours}
    rounded = {name: _distance(theirs[name].to(dtype), truth[name]) for name in ours}
    return Figures(
        tensors=len(ours),
        changed=sum(name not in before or not _same(before[name], ours[name]) for name in ours),
        worst=max(errors.values()),
        excess=max(errors[name] - rounded[name] for name in ours),
        effect=float(effect / expected.norm()),
        lost=float(error / effect),
        lost_by_peft=float(peft_error / effect),
    )


def _untie(tuned: Any) -> None:
    """Gives every layer weights of its own.

    PEFT merges in place, and what it merges into a tied head is then in the embedding as well, and
    into a replicated layer in its original: its merged model is another than its unmerged one,
    which is the truth.
    """
    seen: set[int] = set()
    for module in tuned.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in seen and not weight.requires_grad:
                setattr(module, name, torch.nn.Parameter(weight.detach().clone(), False))
            seen.add(id(weight))


def _load_merged(row: Architecture, base: Base, folder: Path) -> Any:
    """Loads a merged model from disk as a user does: by its Auto class, with nothing to tell it."""
    merged, info = row.auto_class.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    left = {name: sorted(map(str, found)) for name, found in info.items() if found}
    assert not left, f"does not load cleanly: {left}"
    assert type(merged) is type(base.model)
    return merged.eval()


def _logits(model: Any, inputs: Inputs) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(**inputs).logits.double()
    return logits


def _distance(found: Tensor, truth: Tensor) -> float:
    assert found.shape == truth.shape
    size = truth.double().norm()
    return float((found.double() - truth.double()).norm() / size) if size else float(found.any())


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
