"""An input embedding and an output head that are one tensor: still one after merging, or two.

PEFT adapts the two modules, not the tensor. The head goes its own way as soon as one of them is
adapted or trained alone; trained token rows, more rows, and `ensure_weight_tying` keep them one.

Source: PEFT 0.21, utils/other.py (set_additional_trainable_modules), tuners/lora/model.py
(_add_modules_to_save_to_tie, _add_targets_to_tie), peft_model.py (save_pretrained: tensors that
share memory are saved under each of their names).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from packager.errors import AdapterError
from packager.plan.change import HEAD_NAME, Change, Changes
from packager.plan.update import Copy, Delta, RowReplacement, Update


def settle_head(changes: Changes) -> None:
    """Decides what head and embedding become; a head that follows has no change of its own."""
    base = changes.base
    if base.embedding is None:
        return
    name = HEAD_NAME if base.head is None else base.head.name
    embedding, head = changes.find(base.embedding.name), changes.find(name)
    if embedding == head == Change():
        return
    if not base.ties_embeddings:
        _check_rows(changes, name)
        return
    embedding, head = _share_source(changes, embedding, head)
    embedding, head, follows = _follow(changes, embedding, head)
    follows |= head.source is embedding.source and head.updates == embedding.updates
    if follows:
        embedding, head = _with_copies(embedding, head.copies), replace(embedding, copies=())
    changes.by_name[base.embedding.name] = embedding
    if follows and base.head is None:
        changes.by_name.pop(name, None)
    else:
        changes.by_name[name] = head


def _share_source(changes: Changes, embedding: Change, head: Change) -> tuple[Change, Change]:
    """The base's own tensor with other rows, saved under one of its names or under both."""
    if head.source is not None and not head.trained:
        if embedding.source is None:
            embedding = replace(embedding, source=head.source)
        elif not embedding.trained:
            copy = Copy(changes.source.name, head.source.name, embedding.source.name)
            head = replace(head, source=embedding.source, copies=(*head.copies, copy))
    elif head.source is None and embedding.source is not None and not embedding.trained:
        head = replace(head, source=embedding.source)
    return embedding, head


def _follow(changes: Changes, embedding: Change, head: Change) -> tuple[Change, Change, bool]:
    """Lets the head follow where PEFT ties the two adapters; says whether in everything."""
    raw = changes.source.spec.config.raw
    embedding, head = _follow_rows(changes, embedding, head)
    if not raw.get("ensure_weight_tying"):
        return embedding, head, False
    adapter = changes.source.name
    if embedding.trained and embedding.source is not None and not _deltas(head):
        own = [] if head.source is None else [head.source.name]
        copies = [Copy(adapter, name, embedding.source.name) for name in own]
        copies += [_moved(item, embedding.source.name) for item in head.copies]
        return embedding, replace(head, copies=tuple(copies)), True
    pairs = _deltas(embedding), _deltas(head)
    if len(pairs[0]) == len(pairs[1]) == 1 and pairs[0][0].scale == pairs[1][0].scale:
        of_embedding, of_head = pairs[0][0], pairs[1][0]
        copies = [
            *head.copies,
            Copy(adapter, of_head.lora_a, of_embedding.lora_b, transposed=True),
            Copy(adapter, of_head.lora_b, of_embedding.lora_a, transposed=True),
        ]
        return embedding, replace(head, copies=tuple(copies)), True
    return embedding, head, False


def _follow_rows(changes: Changes, embedding: Change, head: Change) -> tuple[Change, Change]:
    """Rows trained in the embedding are the head's too, but where it has other ones."""
    ours, theirs = _rows(embedding), _rows(head)
    if ours is None or head.trained or (theirs is not None and theirs.indices != ours.indices):
        return embedding, head
    others = tuple(item for item in head.updates if item is not theirs)
    if theirs is not None:
        copy = Copy(changes.source.name, theirs.rows, ours.rows)
        embedding = _with_copies(embedding, [copy])
    # The rows lie below the head's own pair, as PEFT wraps the layer that the pair is put around.
    return embedding, replace(head, updates=(ours, *others))


def _moved(copy: Copy, original: str) -> Copy:
    return copy if copy.original is None else replace(copy, original=original, in_base=False)


def _with_copies(change: Change, copies: Iterable[Copy]) -> Change:
    return replace(change, copies=(*change.copies, *copies))


def _rows(change: Change) -> RowReplacement | None:
    return next((item for item in change.updates if isinstance(item, RowReplacement)), None)


def _deltas(change: Change) -> tuple[Delta, ...]:
    found: tuple[Update, ...] = change.updates
    return tuple(item for item in found if isinstance(item, Delta))


def _check_rows(changes: Changes, head: str) -> None:
    """Refuses an embedding with more rows whose head was not saved, or the other way round."""
    embedding = changes.base.embedding
    stored = changes.base.tensors.get(head)
    if embedding is None or stored is None or embedding.shape[0] != stored.shape[0]:
        return
    rows = [shape[0] for shape in map(changes.shape, (embedding.name, head)) if shape]
    if len(set(rows)) > 1:
        lost = head if rows[0] != embedding.shape[0] else embedding.name
        changes.problems.append(
            AdapterError(
                f"the vocabulary was resized in training, and {lost!r} was not saved in its new "
                "size",
                where=str(changes.source.spec.directory),
                expected=f"{max(rows)} rows in embedding and head",
                found=f"{rows[0]} and {rows[1]}",
                hint="save the adapter again from the trained model, with "
                "save_embedding_layers=True, or with both layers in modules_to_save",
            )
        )
