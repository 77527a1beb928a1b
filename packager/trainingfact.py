"""How a base was quantised while an adapter was trained: from its lock, its card, or a user."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from packager.errors import BaseMismatchError
from packager.filekind import CARD_NAME
from packager.lock import LOCK_NAME, read_lock
from packager.quantisation.training import (
    LoadedIn,
    TrainingQuantisation,
    parse_card,
    parse_settings,
)
from packager.untrusted import read_bytes


def read_training(adapter: Path, loaded_in: LoadedIn | None) -> TrainingQuantisation | None:
    """Returns how the base was quantised in training, or None where nothing says that it was.

    Args:
        adapter: The adapter's folder.
        loaded_in: What a user says.

    Raises:
        BaseMismatchError: The user says otherwise than the lock.
        InputError: The lock is damaged, or what is written down cannot be read.
    """
    lock = read_lock(adapter)
    where = str(adapter / LOCK_NAME)
    found = None
    if lock is not None and lock.training_quantization is not None:
        found = parse_settings(lock.training_quantization, where=where)
        if found is not None and loaded_in not in (None, found.loaded_in):
            raise BaseMismatchError(
                "--loaded-in says otherwise than the adapter's lock",
                where=where,
                expected=found.loaded_in,
                found=str(loaded_in),
                hint="leave --loaded-in out; the lock was written while the adapter was trained",
            )
    if found is not None:
        return found
    card = _read_card(adapter)
    if loaded_in is None:
        return card
    if card is not None and card.loaded_in == loaded_in:
        return replace(card, evidence="option")
    return TrainingQuantisation(loaded_in)


def _read_card(adapter: Path) -> TrainingQuantisation | None:
    path = adapter / CARD_NAME
    if not path.is_file():
        return None
    text = read_bytes(path).decode("utf-8", "replace")
    return parse_card(text, where=str(path))
