"""Tuners of PEFT other than LoRA: a module at a time through PEFT's own layers."""

from packager.tuner.host import ModuleJob, merge_module
from packager.tuner.trial import try_tuner

__all__ = ["ModuleJob", "merge_module", "try_tuner"]
