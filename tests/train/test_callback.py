"""The callback in transformers' own Trainer."""

from __future__ import annotations

from pathlib import Path

from packager.base.ref import read_local_base
from packager.lock import read_lock
from packager.train.callback import BaseLockCallback
from tests import models


def test_every_checkpoint_of_a_trainer_is_locked(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    directory = models.make_llama(tmp_path / "base")
    base = read_local_base(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    row = {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_only_model=True,
    )
    Trainer(tuned, arguments, train_dataset=[row] * 4, callbacks=[BaseLockCallback(base)]).train()
    for step in (1, 2):
        checkpoint = tmp_path / "out" / f"checkpoint-{step}"
        assert (checkpoint / "adapter_model.safetensors").is_file()
        lock = read_lock(checkpoint)
        assert lock is not None
        assert lock.digest == base.digest
