"""Which modules a configuration means besides those that it adapts."""

from __future__ import annotations

from typing import Literal

from packager.adapter.config import AdapterConfig

ResidualKind = Literal["olora", "pissa", "kasa", "loftq-nf4", "loftq-int8"]
"""Initialisations that take something out of the base which its weights alone tell: a part of low
rank, or what a quantisation rounds off."""


def is_saved(config: AdapterConfig, module: str) -> bool:
    """Tells whether PEFT trains and saves a module as a whole, or one that it is part of.

    Source: PEFT 0.21, utils/other.py, _set_trainable.
    """
    stated = config.raw.get("modules_to_save")
    listed = stated if isinstance(stated, list) else [stated]
    names = [name for name in listed if isinstance(name, str) and name]
    parts = module.split(".")
    paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(path.endswith(name) for path in paths for name in names)


def is_shielded(config: AdapterConfig, module: str) -> bool:
    """Tells whether PEFT adapts no part of a module since it is saved as a whole.

    Source: PEFT 0.21, tuners/tuners_utils.py, check_target_module_exists.
    """
    stated = config.raw.get("modules_to_save")
    names = stated if isinstance(stated, list) else []
    return any(
        config.matcher.match(rf"(^|.*\.){name}($|\..*)", module) is not None
        for name in names
        if isinstance(name, str) and name
    )


def trains_rows(config: AdapterConfig, module: str, *, is_embedding: bool) -> bool:
    """Tells whether PEFT trains rows of a module by themselves.

    Args:
        config: Of the adapter.
        module: Dotted name.
        is_embedding: Whether it is the input embedding, which a list without a name means.

    Source: PEFT 0.21, utils/other.py, set_additional_trainable_modules.
    """
    stated = config.raw.get("trainable_token_indices")
    if isinstance(stated, dict):
        return any(name and module.endswith(name) and rows for name, rows in stated.items())
    return is_embedding and bool(stated)


def token_indices(config: AdapterConfig, module: str) -> tuple[int, ...]:
    """Returns the rows of a module that were trained by themselves.

    A head that is tied to the embedding follows it and has no indices of its own.

    Source: PEFT 0.21, utils/other.py, set_additional_trainable_modules.
    """
    stated = config.raw.get("trainable_token_indices") or config.raw.get("token_indices") or ()
    if isinstance(stated, dict):
        own = [value for key, value in stated.items() if module.endswith(key)]
        stated = own[0] if own else next(iter(stated.values()), ())
    valid = isinstance(stated, (list, tuple)) and all(
        type(index) is int and index >= 0 for index in stated
    )
    return tuple(stated) if valid else ()


def count_blocks(config: AdapterConfig, module: str) -> tuple[int, int]:
    """Returns of how many blocks on their diagonals A and B of a module consist.

    Source: PEFT 0.21, tuners/lora/variants.py, BdLoraLinearVariant.init.
    """
    stated = config.raw.get("use_bdlora")
    if not isinstance(stated, dict):
        return 1, 1
    count = stated.get("nblocks")
    count = count if type(count) is int and count > 0 else 1
    has_a, has_b = (
        any(isinstance(name, str) and name in module for name in stated.get(key) or ())
        for key in ("target_modules_bd_a", "target_modules_bd_b")
    )
    return count if has_a else 1, count if has_b else 1


def residual_kind(config: AdapterConfig) -> ResidualKind | None:
    """Returns what was taken out of the weights of linear layers, where it can be known again.

    Source: PEFT 0.21, tuners/lora/layer.py, LoraLayer.update_layer, and variants.py,
    KasaLinearVariant.init. `pissa_niter_…` begins at random.
    """
    if config.raw.get("kasa_config"):
        return "kasa"
    stated = config.raw.get("init_lora_weights")
    if isinstance(stated, str) and stated.lower() == "olora":
        return "olora"
    if stated == "loftq":
        return _rounding_kind(config.raw.get("loftq_config"))
    return "pissa" if stated == "pissa" else None


def _rounding_kind(stated: object) -> ResidualKind | None:
    """Returns how LoftQ quantised the weights, where that did not depend on a decomposition.

    Further iterations quantise what a singular value decomposition in float32 leaves over, and a
    value near a border falls to either side of it from machine to machine.

    Source: PEFT 0.21, utils/loftq_utils.py, loftq_init; tuners/lora/config.py, LoftQConfig.
    """
    settings = stated if isinstance(stated, dict) else {}
    if settings.get("loftq_iter", 1) != 1:
        return None
    bits = settings.get("loftq_bits", 4)
    return "loftq-nf4" if bits == 4 else "loftq-int8" if bits == 8 else None
