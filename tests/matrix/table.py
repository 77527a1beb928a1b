"""What every cell of the matrix is expected to be; the one place where this is written down."""

from __future__ import annotations

from dataclasses import dataclass

from tests.matrix.architecture import ARCHITECTURES
from tests.matrix.feature import FEATURES


@dataclass(frozen=True)
class Merged:
    """The merged model is PEFT's, on every tensor and in its answers."""


@dataclass(frozen=True)
class Refused:
    """It is refused before a byte is written.

    Attributes:
        error: Name of the error's class.
        says: What its message has to say.
        reason: For the page.
    """

    error: str
    says: str
    reason: str


@dataclass(frozen=True)
class Absent:
    """There is no such adapter: PEFT does not train it.

    Attributes:
        reason: For the page.
        says: What PEFT says, or empty where the architecture has nothing to apply it to.
    """

    reason: str
    says: str = ""


Outcome = Merged | Refused | Absent

_EVERY = "every architecture"
_MIXTURES = ("mixtral", "qwen3-moe", "gpt-oss")
_TIED = ("qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "t5")

_OF_EXPERTS = ("experts", "experts-only")

_NO_EXPERTS = Absent("The architecture has no experts")
_NO_BIAS = Refused(
    "RejectedPlanError",
    "the base has no bias there",
    "The layers have no bias that the adapter's could be added to; PEFT does not merge it either",
)
_NOT_REPLICATED = Absent(
    "PEFT replicates layers of models that are built as Llama, BERT or Falcon",
    "Could not locate the layers",
)
_LISTED_LAYERS = Absent(
    "transformers lists the type of each layer in the configuration, and PEFT replicates layers "
    "without it: such a model does not run",
    "list index out of range",
)
_NOT_REACHED = Absent(
    "PEFT adapts `shared`, which encoder and decoder hold under other names: it has no effect",
    "without effect",
)
_TIED_ROWS = Absent(
    "PEFT does not train token rows beside a whole head that is tied to them",
    "TrainableTokensLayer wraps an unknown layer",
)
_NO_HEAD = Refused(
    "RejectedPlanError",
    "neither in the base nor in the adapter",
    "PEFT does not save the new head of a classifier with this tuner",
)
_NO_CONVOLUTION = Absent("The architecture has no convolutions")
_ONLY_GPT_OSS = Absent("transformers loads MXFP4 for gpt-oss only")
_LINEAR_ONLY = Absent("PEFT has this tuner for Linear layers only, and GPT-2 has none", "Conv1D")

EXCEPTIONS: dict[str, dict[str, Outcome]] = {
    "lora-bias": dict.fromkeys(
        ("llama", "mistral", "qwen3", "gemma2", "gemma3", "phi3", "mixtral", "qwen3-moe", "t5"),
        _NO_BIAS,
    ),
    "embedding": {"t5": _NOT_REACHED},
    "embedding-and-head": {"t5": _NOT_REACHED},
    "convolution": {_EVERY: _NO_CONVOLUTION, "qwen2.5-vl": Merged()},
    "convolution-dora": {_EVERY: _NO_CONVOLUTION, "qwen2.5-vl": Merged()},
    "token-tuner": {"bert": _NO_HEAD},
    "layer-replication": {
        **dict.fromkeys(("qwen2", "qwen3", "gemma2", "gemma3", "gpt-oss"), _LISTED_LAYERS),
        **dict.fromkeys(("gpt2", "t5", "qwen2.5-vl"), _NOT_REPLICATED),
    },
    "olora": {
        "gpt2": Absent("PEFT's OLoRA is for Linear layers only, and GPT-2 has none", "shapes"),
    },
    "mxfp4": {_EVERY: _ONLY_GPT_OSS, "gpt-oss": Merged()},
    "everything": dict.fromkeys(_TIED, _TIED_ROWS),
    **{
        tuner: {"gpt2": _LINEAR_ONLY}
        for tuner in (
            "loha", "lokr", "oft", "boft", "hra", "shira", "c3a", "road", "delora", "miss", "glora",
        )
    },
}  # fmt: skip
"""Feature → architecture, or every one → what it is instead of merged."""


def expect(feature: str, architecture: str) -> Outcome:
    """Returns what a cell is expected to be."""
    if feature in _OF_EXPERTS and architecture not in _MIXTURES:
        return _NO_EXPERTS
    found = EXCEPTIONS.get(feature, {})
    return found.get(architecture, found.get(_EVERY, Merged()))


def cells() -> list[tuple[str, str]]:
    """Returns every cell, an architecture's together, so that its base is made once."""
    return [(feature, architecture) for architecture in ARCHITECTURES for feature in FEATURES]
