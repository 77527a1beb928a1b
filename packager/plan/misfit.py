"""Why modules of an adapter do not fit a base: one error for each reason."""

from __future__ import annotations

from packager.adapter import LoraModule
from packager.base import BaseIndex
from packager.errors import AdapterError, LorapackError, UnsupportedFeatureError
from packager.plan.source import AdapterSource
from packager.plan.trained import has_prefix, trains_alone
from packager.quantisation.layer import CONV1D_MODELS
from packager.tensorfile import TensorRef

_SHOWN = 3


def untold_layout(source: AdapterSource, module: LoraModule, base: BaseIndex) -> LorapackError:
    """Refuses a square weight of which nothing says which way round it is stored."""
    return AdapterError(
        f"it cannot be told which way round the base stores the weight of {module.module!r}",
        where=str(source.spec.directory),
        expected="fan_in_fan_out only on " + ", ".join(CONV1D_MODELS),
        found=f"model_type {base.config.get('model_type')!r}"[:80],
        hint="if the layer is torch's Linear, set fan_in_fan_out to false in adapter_config.json",
    )


def unscaled_rows(source: AdapterSource, module: LoraModule, ref: TensorRef) -> LorapackError:
    """Refuses more than a pair, such as DoRA, where a weight is stored within another tensor."""
    return UnsupportedFeatureError(
        f"what is on {module.module!r} besides a pair, such as DoRA, cannot be merged: the base "
        f"stores its weight as some rows of {ref.name!r}",
        where=str(source.spec.directory),
        hint="keep the adapter separate: --target adapter",
    )


def unrepeated_residual(source: AdapterSource, module: LoraModule) -> LorapackError:
    """Refuses what was taken out of a weight that is not as it was in the base's 16 bits."""
    return UnsupportedFeatureError(
        f"what {module.residual!r} took out of the weight of {module.module!r} cannot be known "
        "again: the weight is stored quantised or transposed",
        where=str(source.spec.directory),
        expected="the weight of a linear layer in 16 or 32 bits",
        hint="save the adapter converted: save_pretrained with "
        "path_initial_model_for_weight_conversion",
    )


def rescaled_expert(source: AdapterSource, module: LoraModule) -> LorapackError:
    """Refuses what PEFT now takes otherwise than it was trained.

    Source: PEFT 0.21, utils/transformers_weight_conversion.py, _convert_peft_config_moe: rank and
    alpha are doubled, which leaves alpha/r as it was, but not alpha/√r.
    """
    return UnsupportedFeatureError(
        "rsLoRA on experts one by one: PEFT with transformers 5 gives it √2 times the scale that "
        "it was trained with",
        where=str(source.spec.directory),
        expected="experts adapted as one parameter (target_parameters), or use_rslora false",
        found=repr(module.module)[:120],
        hint="set use_rslora to false and lora_alpha to alpha·√r in adapter_config.json, which is "
        "the scale of the training",
    )


def is_dropped(source: AdapterSource, module: str, base: BaseIndex) -> bool:
    """Tells whether a module's name lacks the prefix that it has in the class of the training.

    PEFT and vLLM pass over tensors of such names without a word. Only an adapter of the base model
    by itself has none, and one of a class that holds its parts without a prefix.

    Source: PEFT 0.21, utils/save_and_load.py, set_peft_model_state_dict: not strict.
    """
    if base.naming.omits_prefix:
        return has_prefix(source, base) and base.naming.is_bare(module)
    return not trains_alone(source, base) and base.naming.lacks_prefix(module)


def unknown_modules(source: AdapterSource, base: BaseIndex, unknown: list[str]) -> AdapterError:
    """Refuses modules that the base does not have."""
    total = len(source.spec.modules)
    if base.naming.unmapped is not None:
        return _unmapped_modules(source, base, unknown)
    like = next((name for name in base.tensors if name.endswith("proj.weight")), None)
    like = like or next(iter(base.tensors), "nothing")
    return AdapterError(
        f"{len(unknown)} of {total} adapted modules are not in the base; PEFT and vLLM would "
        "drop them without a word and answer as the base",
        where=str(source.spec.directory),
        expected=f"names like {like.removesuffix('.weight')!r}",
        found=_listed(unknown),
        hint="wrong base or a wrong prefix: give the base trained on with --base, or save the "
        "adapter again from the model class that it was trained with",
    )


def _unmapped_modules(source: AdapterSource, base: BaseIndex, unknown: list[str]) -> AdapterError:
    return AdapterError(
        f"{len(unknown)} adapted modules are not in the base under their names, and for "
        f"{base.naming.unmapped!r} this version does not know how transformers names what it loads",
        where=str(source.spec.directory),
        expected="modules under the names that the checkpoint has",
        found=_listed(unknown),
        hint="load base and adapter with PEFT, merge there (merge_and_unload), and save the model",
    )


def unselected_modules(source: AdapterSource, unselected: list[str]) -> AdapterError:
    """Refuses modules that the configuration does not select."""
    return AdapterError(
        f"{len(unselected)} modules of the adapter are left over: adapter_config.json does not "
        "select them, so PEFT would not apply them",
        where=str(source.spec.directory),
        expected="every module in target_modules",
        found=_listed(unselected),
        hint="restore the adapter_config.json that was saved with these weights",
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
