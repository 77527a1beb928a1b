"""What an adapter does to each stored tensor besides its pairs of factors.

Parameters that were saved whole, rows of tokens, biases, and what PEFT saved along: the base's own
weights, which have to be the base's, or are its embedding with more rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from packager.adapter import LoraModule, TokenRows
from packager.adapter.module import FACTOR_DTYPES
from packager.base import BaseIndex
from packager.errors import AdapterError, LorapackError, UnsupportedFeatureError
from packager.plan.source import AdapterSource
from packager.plan.update import Addition, Copy, RowReplacement, Update
from packager.tensorfile import TensorRef

HEAD_NAME = "lm_head.weight"
# Source: PEFT 0.21, peft_model.py, classes with classifier_module_names: heads that the base has
# not, and that are saved whole.
_TASKS_WITH_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


@dataclass(frozen=True)
class Change:
    """What an adapter does to one stored tensor.

    Attributes:
        source: Tensor of the adapter that takes the base's place, or None.
        trained: Whether that was trained, and is not the base's own with other rows.
        updates: In order.
        copies: Tensors of the adapter that repeat others.
    """

    source: TensorRef | None = None
    trained: bool = False
    updates: tuple[Update, ...] = ()
    copies: tuple[Copy, ...] = ()


@dataclass
class Changes:
    """Changes by name of the output tensor, as they are found.

    Attributes:
        source: The adapter.
        base: The base.
        by_name: What was found.
        problems: Why something does not fit.
    """

    source: AdapterSource
    base: BaseIndex
    by_name: dict[str, Change] = field(default_factory=dict)
    problems: list[LorapackError] = field(default_factory=list)

    def find(self, name: str) -> Change:
        """Returns the change of a tensor, perhaps none."""
        return self.by_name.get(name, Change())

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of an output tensor, or None of one that there is not."""
        source = self.find(name).source
        ref = source or stored_tensor(name, self.base)
        return None if ref is None else ref.shape

    def update(self, name: str, *updates: Update) -> None:
        """Adds updates to a tensor."""
        change = self.find(name)
        self.by_name[name] = replace(change, updates=(*change.updates, *updates))


def find_changes(source: AdapterSource, base: BaseIndex) -> Changes:
    """Finds what is saved whole or by rows; pairs of factors come on top of it."""
    changes = Changes(source, base)
    spec = source.spec
    for parameter, refs in spec.frozen.items():
        _keep(changes, parameter, refs)
    for parameter, refs in spec.saved.items():
        _replace(changes, parameter, refs)
    for rows in spec.token_rows.values():
        if not _repeats_rows(changes, rows):
            _replace_rows(changes, rows)
    for module in spec.modules.values():
        if module.bias is not None:
            _add_bias(changes, module, module.bias)
    return changes


def stored_tensor(name: str, base: BaseIndex) -> TensorRef | None:
    """Returns the base's tensor of an output name; of a head without one, the embedding."""
    if name == HEAD_NAME and base.head is None and base.ties_embeddings:
        return base.embedding
    return base.tensors.get(name)


def output_name(parameter: str, base: BaseIndex) -> str | None:
    """Returns the name of the stored tensor that a parameter of the model is, whole."""
    ref = base.naming.find_tensor(parameter)
    if ref is not None:
        return ref.name
    tied = base.head is None and base.ties_embeddings
    return HEAD_NAME if tied and base.naming.spell(parameter) == HEAD_NAME else None


def is_vocabulary(name: str, base: BaseIndex) -> bool:
    """Tells whether a tensor has a row for each token: the embedding, the head, its bias."""
    known = [ref.name for ref in (base.embedding, base.head) if ref is not None]
    heads = [HEAD_NAME, *known]
    return name in heads or name in [head.removesuffix("weight") + "bias" for head in heads]


def _has_other_rows(name: str, saved: TensorRef, stored: TensorRef, base: BaseIndex) -> bool:
    """Tells whether a tensor is the embedding or the head of a resized vocabulary."""
    rows = len(saved.shape) == len(stored.shape) and saved.shape[1:] == stored.shape[1:]
    return rows and is_vocabulary(name, base) and saved.dtype in FACTOR_DTYPES


def _keep(changes: Changes, parameter: str, refs: tuple[TensorRef, ...]) -> None:
    name = output_name(parameter, changes.base)
    stored = None if name is None else stored_tensor(name, changes.base)
    if name is None or stored is None:
        changes.problems.append(_unknown(changes, parameter, refs[0]))
        return
    first, adapter = refs[0], changes.source.name
    change = changes.find(name)
    if first.shape == stored.shape:
        copies = tuple(Copy(adapter, ref.name, stored.name, in_base=True) for ref in refs)
        change = replace(change, copies=(*change.copies, *copies))
    elif _has_other_rows(name, first, stored, changes.base):
        copies = tuple(Copy(adapter, ref.name, first.name) for ref in refs[1:])
        change = replace(change, source=first, copies=(*change.copies, *copies))
    else:
        changes.problems.append(_misfit(changes, first, stored))
    changes.by_name[name] = change


def _is_original(ref: TensorRef) -> bool:
    """Tells whether a tensor lies below a layer that was saved whole, and is not read any more.

    Source: PEFT 0.21, utils/other.py, ModulesToSaveWrapper; with bias="all" it is saved as well.
    """
    return ".original_module." in ref.name


def find_saved(source: AdapterSource, parameter: str) -> TensorRef | None:
    """Returns the tensor that an adapter holds in the place of a parameter, or None."""
    refs = source.spec.saved.get(parameter, ())
    return min(refs, key=_is_original, default=None)


def _replace(changes: Changes, parameter: str, refs: tuple[TensorRef, ...]) -> None:
    """A parameter that was saved whole; what PEFT kept of the base's own is of no use then."""
    name = output_name(parameter, changes.base)
    refs = tuple(sorted(refs, key=_is_original))
    first, adapter = refs[0], changes.source.name
    stored = None if name is None else stored_tensor(name, changes.base)
    if name is None or stored is None:
        if changes.source.spec.config.task_type not in _TASKS_WITH_HEADS:
            changes.problems.append(_unknown(changes, parameter, first))
            return
        name, stored = parameter, first
    fits = first.shape == stored.shape or _has_other_rows(name, first, stored, changes.base)
    if not fits or first.dtype not in FACTOR_DTYPES:
        changes.problems.append(_misfit(changes, first, stored))
        return
    before = changes.find(name)
    copies = [
        Copy(adapter, ref.name, None if _is_original(ref) else first.name) for ref in refs[1:]
    ]
    if before.source is not None:  # the base's own with other rows, which nothing else reads
        copies.append(Copy(adapter, before.source.name, None))
    changes.by_name[name] = Change(first, True, before.updates, (*before.copies, *copies))


def _replace_rows(changes: Changes, rows: TokenRows) -> None:
    name = output_name(f"{rows.module}.weight", changes.base)
    shape = None if name is None else changes.shape(name)
    if name is None or shape is None:
        changes.problems.append(_unknown(changes, rows.module, rows.rows))
        return
    most = max(rows.indices, default=0)
    if rows.rows.shape[1:] != shape[1:] or most >= shape[0]:
        changes.problems.append(
            AdapterError(
                f"the trained token rows of {rows.module!r} do not fit the base",
                where=str(changes.source.spec.directory),
                expected=f"rows below {shape[0]}, of {shape[-1]} values",
                found=f"row {most}, of {rows.rows.shape[-1]} values",
                hint="the vocabulary was enlarged in training and not saved: save the adapter "
                "with save_embedding_layers=True, or give another base with --base",
            )
        )
    if len(set(rows.indices)) < len(rows.indices):
        changes.problems.append(
            AdapterError(
                f"a token of {rows.module!r} was trained twice, and PEFT leaves open which counts",
                where=str(changes.source.spec.directory),
                expected="every index once in trainable_token_indices",
                found=str(sorted(rows.indices))[:80],
                hint="remove one of the two from adapter_config.json and the weights",
            )
        )
    adapter = changes.source.name
    changes.update(name, RowReplacement(adapter, rows.module, rows.rows.name, rows.indices))


def _repeats_rows(changes: Changes, rows: TokenRows) -> bool:
    """Takes rows under the name of a module that the checkpoint has under another one only.

    PEFT saves rows that several modules share for each of them, such as the two embeddings of T5.
    """
    base = changes.base
    if output_name(f"{rows.module}.weight", base) is not None:
        return False
    for other in changes.source.spec.token_rows.values():
        name = output_name(f"{other.module}.weight", base)
        same = (other.indices, other.rows.shape) == (rows.indices, rows.rows.shape)
        if name is not None and same:
            copy = Copy(changes.source.name, rows.rows.name, other.rows.name)
            change = changes.find(name)
            changes.by_name[name] = replace(change, copies=(*change.copies, copy))
            return True
    return False


def _add_bias(changes: Changes, module: LoraModule, bias: TensorRef) -> None:
    name = output_name(f"{module.module}.bias", changes.base)
    where = str(changes.source.spec.directory)
    if name is None or changes.shape(name) != bias.shape:
        changes.problems.append(
            UnsupportedFeatureError(
                f"lora_bias cannot be merged into {module.module!r}: the base has no bias there",
                where=where,
                expected=f"{module.module}.bias of shape {bias.shape}",
                found="none" if name is None else str(changes.shape(name)),
                hint="keep the adapter separate: --target adapter; PEFT cannot merge it either",
            )
        )
        return
    if module.magnitude is not None:
        changes.problems.append(
            UnsupportedFeatureError(
                f"DoRA with lora_bias on {module.module!r} has no merge: PEFT adds the bias to the "
                "weights whose norm it takes",
                where=where,
                expected="use_dora or lora_bias",
                found="both",
                hint="keep the adapter separate: --target adapter",
            )
        )
    adapter = changes.source.name
    changes.update(name, Addition(adapter, module.module, bias.name, module.scale))


def _unknown(changes: Changes, name: str, ref: TensorRef) -> AdapterError:
    return AdapterError(
        f"the adapter carries {name!r}, which is not in the base",
        where=str(changes.source.spec.directory),
        expected="names of the base's parameters",
        found=ref.name,
        hint="wrong base or a wrong prefix: give the base trained on with --base, or save the "
        "adapter again from the model class that it was trained with",
    )


def _misfit(changes: Changes, ref: TensorRef, stored: TensorRef) -> AdapterError:
    return AdapterError(
        f"the adapter carries {ref.name!r} of another shape or type than the base has",
        where=str(changes.source.spec.directory),
        expected=f"shape {stored.shape} in {', '.join(FACTOR_DTYPES)}",
        found=f"{ref.shape} in {ref.dtype}",
        hint="this adapter was trained on another base; give that one with --base",
    )


def add_updates(changes: Changes, targets: Mapping[str, tuple[Update, ...]]) -> None:
    """Puts pairs of factors on top of what is saved; rows of tokens take the place of theirs."""
    for name, updates in targets.items():
        change = changes.find(name)
        changes.by_name[name] = replace(change, updates=(*updates, *change.updates))
