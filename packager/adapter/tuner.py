"""Other tuners than LoRA: what is known of each without asking PEFT.

Those that are not named here are merged through PEFT's own layers, which are asked before a byte is
written: one that a later PEFT brings needs nothing here.

Source: PEFT 0.21, src/peft/utils/peft_types.py, and tuners/*/layer.py (merge).
"""

from __future__ import annotations

_PROMPT = "it trains input that stands before the prompt, and changes no weights"

UNMERGED: dict[str, str] = {
    "PROMPT_TUNING": _PROMPT,
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "P_TUNING": _PROMPT,
    "PREFIX_TUNING": _PROMPT,
    "CPT": _PROMPT,
    "CARTRIDGE": _PROMPT,
    "ADAPTION_PROMPT": "it adds attention to trained prompts, which no weights hold",
    "XLORA": "every token is routed to other adapters, which no weights can tell",
    "POLY": "it mixes its parts by the task that an input names",
    "LILY": "every token is routed to other parts, which no weights can tell",
    "SHADOW": "it runs a second model along the layers, which no weights hold",
}
"""Tuner → why its modules cannot be merged one by one."""

BY_ROWS = "TRAINABLE_TOKENS"
"""The tuner that trains rows of embeddings and heads, as `trainable_token_indices` of a LoRA do."""

KNOWN = ("LORA", BY_ROWS)
"""Tuners whose tensors are taken apart and merged here; all others go through PEFT's own layers."""

WHOLE_MODULE = "merged through PEFT's own layers, one module in memory at a time"

FIELDS = {
    "trainable_token_indices": "token rows beside this tuner are not merged by this version",
    "target_parameters": "parameters adapted by this tuner are not merged by this version",
    "layer_replication": "copies of layers are merged with LoRA only",
}
"""Fields of other tuners' configurations that are refused, and why."""


def why_not_merged(peft_type: str) -> str | None:
    """Returns why a tuner cannot be merged at all, or None where PEFT is to be asked."""
    return UNMERGED.get(peft_type)
