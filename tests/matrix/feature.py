"""The columns of the matrix: what people train with PEFT, each as a way to wrap a model.

Every configuration is small and lies off its defaults, so that a rule that is not followed shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import peft

from tests.matrix.architecture import Architecture

Family = Literal["LoRA", "Whole tensors", "Experts", "Other tuners", "Bases", "Together"]
Configure = Callable[[Architecture], Any]

NEW_TOKENS = 5
_DECOMPOSED = 2.0**-15
"""What a decomposition in float32, which PEFT repeats at load, takes out of the base too much."""
_KINDS_OF_TOKENS = [3, 7, 20]


@dataclass(frozen=True)
class Feature:
    """One column.

    Attributes:
        title: On the page.
        family: Its section there.
        config: Makes PEFT's configuration for an architecture.
        prepare: Changes the base in memory before PEFT wraps it, or None.
        base: How the base is stored: a type, or a kind of quantisation.
        slack: How far PEFT's own float32 leads from the truth before anything is merged.
    """

    title: str
    family: Family
    config: Configure
    prepare: Callable[[Any], None] | None = None
    base: str = "float32"
    slack: float = 0.0


def _lora(**arguments: Any) -> Configure:
    def configure(architecture: Architecture) -> Any:
        found = {name: _fill(value, architecture) for name, value in arguments.items()}
        settings = {
            "r": 3, "lora_alpha": 7, "target_modules": list(architecture.attention), **found,
        }  # fmt: skip
        return peft.LoraConfig(task_type=architecture.task, **settings)

    return configure


def _tuner(name: str, **arguments: Any) -> Configure:
    def configure(architecture: Architecture) -> Any:
        found = {name: _fill(value, architecture) for name, value in arguments.items()}
        settings = {"target_modules": list(architecture.attention), **found}
        return getattr(peft, name)(task_type=architecture.task, **settings)

    return configure


def _fill(value: Any, architecture: Architecture) -> Any:
    """Gives a setting that depends on the architecture its value."""
    return value(architecture) if callable(value) else value


def _all(architecture: Architecture) -> list[str]:
    return list(architecture.linear)


def _biased(architecture: Architecture) -> list[str]:
    return list(architecture.biased or architecture.attention)


def _last(architecture: Architecture) -> str:
    return architecture.linear[-1]


def _head(architecture: Architecture) -> str:
    return architecture.head or "lm_head"


def _embedding(architecture: Architecture) -> str:
    return architecture.embedding


def _grow(model: Any) -> None:
    model.resize_token_embeddings(
        model.get_input_embeddings().weight.shape[0] + NEW_TOKENS, mean_resizing=False
    )


FEATURES: dict[str, Feature] = {
    "lora": Feature("LoRA", "LoRA", _lora(target_modules=_all)),
    "rslora": Feature("rsLoRA", "LoRA", _lora(use_rslora=True, r=5)),
    "patterns": Feature(
        "rank and alpha patterns",
        "LoRA",
        _lora(
            target_modules=_all,
            rank_pattern=lambda architecture: {_last(architecture): 2},
            alpha_pattern=lambda architecture: {rf".*\.1\..*{architecture.linear[0]}": 11},
        ),
    ),
    "dora": Feature("DoRA", "LoRA", _lora(use_dora=True, target_modules=_all)),
    "bias-all": Feature('bias="all"', "LoRA", _lora(bias="all")),
    "bias-lora": Feature('bias="lora_only"', "LoRA", _lora(bias="lora_only")),
    "lora-bias": Feature("lora_bias", "LoRA", _lora(lora_bias=True, target_modules=_biased)),
    "embedding": Feature(
        "LoRA on the embedding",
        "LoRA",
        _lora(target_modules=lambda architecture: [_embedding(architecture), _last(architecture)]),
    ),
    "head": Feature(
        "LoRA on the head",
        "LoRA",
        _lora(target_modules=lambda architecture: [_head(architecture), _last(architecture)]),
    ),
    "embedding-and-head": Feature(
        "LoRA on both",
        "LoRA",
        _lora(target_modules=lambda architecture: [_embedding(architecture), _head(architecture)]),
    ),
    "convolution": Feature(
        "LoRA on convolutions",
        "LoRA",
        _lora(target_modules=lambda architecture: [*architecture.convolutions, "q_proj"]),
    ),
    "convolution-dora": Feature(
        "DoRA on convolutions",
        "LoRA",
        _lora(
            use_dora=True,
            target_modules=lambda architecture: [*architecture.convolutions, "q_proj"],
        ),
    ),
    "layer-replication": Feature(
        "layer_replication", "LoRA", _lora(layer_replication=[[0, 2], [1, 2]])
    ),
    "pissa": Feature("PiSSA", "LoRA", _lora(init_lora_weights="pissa"), slack=_DECOMPOSED),
    "olora": Feature("OLoRA", "LoRA", _lora(init_lora_weights="olora"), slack=_DECOMPOSED),
    "saved-head": Feature(
        "modules_to_save: head",
        "Whole tensors",
        _lora(modules_to_save=lambda architecture: [_head(architecture)]),
    ),
    "saved-embedding": Feature(
        "modules_to_save: embedding",
        "Whole tensors",
        _lora(modules_to_save=lambda architecture: [_embedding(architecture)]),
    ),
    "saved-both": Feature(
        "modules_to_save: both",
        "Whole tensors",
        _lora(modules_to_save=lambda architecture: [_embedding(architecture), _head(architecture)]),
    ),
    "tokens": Feature(
        "trainable_token_indices",
        "Whole tensors",
        _lora(
            trainable_token_indices=lambda architecture: {
                _embedding(architecture): _KINDS_OF_TOKENS
            }
        ),
    ),
    "token-tuner": Feature(
        "Trainable tokens, a tuner by itself",
        "Whole tensors",
        _tuner(
            "TrainableTokensConfig",
            target_modules=lambda architecture: [_embedding(architecture)],
            token_indices=_KINDS_OF_TOKENS,
        ),
    ),
    "new-tokens": Feature(
        "enlarged vocabulary",
        "Whole tensors",
        _lora(modules_to_save=lambda architecture: [_embedding(architecture), _head(architecture)]),
        prepare=_grow,
    ),
    "experts": Feature(
        "target_parameters",
        "Experts",
        _lora(target_parameters=lambda architecture: list(architecture.experts)),
    ),
    "experts-only": Feature(
        "target_parameters alone",
        "Experts",
        _lora(
            target_modules=[],
            target_parameters=lambda architecture: list(architecture.experts),
        ),
    ),
    "loha": Feature("LoHa", "Other tuners", _tuner("LoHaConfig", r=3, alpha=5)),
    "lokr": Feature("LoKr", "Other tuners", _tuner("LoKrConfig", r=2, alpha=5, decompose_factor=4)),
    "ia3": Feature(
        "IA³",
        "Other tuners",
        _tuner(
            "IA3Config",
            target_modules=_all,
            feedforward_modules=lambda architecture: [_last(architecture)],
        ),
    ),
    "oft": Feature("OFT", "Other tuners", _tuner("OFTConfig", oft_block_size=8)),
    "boft": Feature(
        "BOFT",
        "Other tuners",
        _tuner("BOFTConfig", boft_block_size=4, boft_n_butterfly_factor=1),
    ),
    "vera": Feature("VeRA", "Other tuners", _tuner("VeraConfig", r=4)),
    "hra": Feature("HRA", "Other tuners", _tuner("HRAConfig", r=4)),
    "fourierft": Feature(
        "FourierFT", "Other tuners", _tuner("FourierFTConfig", n_frequency=20, scaling=20.0)
    ),
    "adalora": Feature(
        "AdaLoRA",
        "Other tuners",
        _tuner("AdaLoraConfig", init_r=4, target_r=2, lora_alpha=70, total_step=10),
    ),
    "randlora": Feature("RandLoRA", "Other tuners", _tuner("RandLoraConfig", r=4)),
    "shira": Feature("SHiRA", "Other tuners", _tuner("ShiraConfig", r=2)),
    "c3a": Feature("C3A", "Other tuners", _tuner("C3AConfig", block_size=8)),
    "road": Feature("RoAd", "Other tuners", _tuner("RoadConfig", group_size=8)),
    "waveft": Feature(
        "WaveFT", "Other tuners", _tuner("WaveFTConfig", n_frequency=20, scaling=5.0)
    ),
    "delora": Feature("DeLoRA", "Other tuners", _tuner("DeloraConfig", r=4)),
    "gralora": Feature(
        "GraLoRA", "Other tuners", _tuner("GraloraConfig", r=4, alpha=8, gralora_k=2)
    ),
    "miss": Feature("MiSS", "Other tuners", _tuner("MissConfig", r=4)),
    "vblora": Feature(
        "VB-LoRA",
        "Other tuners",
        _tuner("VBLoRAConfig", r=4, num_vectors=8, vector_length=8, topk=2),
    ),
    "hira": Feature("HiRA", "Other tuners", _tuner("HiraConfig", r=4)),
    "tinylora": Feature("TinyLoRA", "Other tuners", _tuner("TinyLoraConfig", r=2, u=8)),
    "glora": Feature("GLoRA", "Other tuners", _tuner("GloraConfig", r=4)),
    "frod": Feature(
        "FRoD", "Other tuners", _tuner("FrodConfig", sparse_rate=0.05, progressbar=False)
    ),
    "tuner-bias": Feature(
        'GraLoRA with bias="all"',
        "Other tuners",
        _tuner("GraloraConfig", r=4, alpha=8, gralora_k=2, bias="all"),
    ),
    "bfloat16": Feature("bfloat16", "Bases", _lora(target_modules=_all), base="bfloat16"),
    "nf4": Feature("4-bit checkpoint (NF4)", "Bases", _lora(target_modules=_all), base="nf4"),
    "int8": Feature("8-bit checkpoint", "Bases", _lora(target_modules=_all), base="int8"),
    "fp8": Feature("fp8 checkpoint", "Bases", _lora(target_modules=_all), base="fp8"),
    "mxfp4": Feature(
        "MXFP4 checkpoint",
        "Bases",
        _lora(target_parameters=lambda architecture: list(architecture.experts)),
        base="mxfp4",
    ),
    "everything": Feature(
        "rsLoRA, DoRA, patterns, saved head, token rows",
        "Together",
        _lora(
            use_rslora=True,
            use_dora=True,
            target_modules=_all,
            rank_pattern=lambda architecture: {_last(architecture): 2},
            modules_to_save=lambda architecture: [_head(architecture)],
            trainable_token_indices=lambda architecture: {
                _embedding(architecture): _KINDS_OF_TOKENS
            },
        ),
    ),
}
"""By the name that the table uses, in the order of the page."""
