"""For people with a trainer of their own: every checkpoint gets the lock of its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from packager.base import BaseRef
from packager.lock import write_lock
from packager.train.quantisation import describe_quantisation


class BaseLockCallback(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """Writes `base.lock.json` into each checkpoint that transformers' Trainer (or TRL) saves.

    Where bitsandbytes holds the base in 4 or 8 bits, the lock says how, module by module, so that
    a release can merge onto the very weights that the adapter saw.

    ```python
    base = resolve_base("org/name@main", say=print)
    trainer = Trainer(..., callbacks=[BaseLockCallback(base)])
    ```

    An adapter that is saved by hand after training gets its lock from `lorapack lock`.

    Args:
        base: The exact base that is being trained on.
    """

    def __init__(self, base: BaseRef) -> None:
        self._base = base

    def on_save(self, args: Any, state: Any, *_: Any, model: Any = None, **__: Any) -> None:
        """Stamps the checkpoint that was just saved.

        Source: transformers 5.x, trainer.py, _save_checkpoint: `<output_dir>/checkpoint-<step>`,
        and on_save is called after its files are written.
        """
        write_lock(
            Path(args.output_dir) / f"checkpoint-{state.global_step}",
            self._base,
            training_quantization=None if model is None else describe_quantisation(model),
        )
