"""What a user may choose about a release."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from packager.errors import InputError
from packager.gguf.mixture import Quant
from packager.gguf.value import GgufKey
from packager.manifest import Target
from packager.quantisation.training import LoadedIn

DEFAULT_QUANTS: tuple[Quant, ...] = ("Q4_K_M",)
DEFAULT_SHARD_BYTES = 5_000_000_000
_MIN_SHARD_BYTES = 1_000_000
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


LoraType = Literal["F32", "F16", "BF16"]
MergeBase = Literal["16bit", "dequantized"]
"""What an adapter is merged onto that was trained on a quantised load of a 16-bit base: the base
as it is stored, or the values that training saw."""
HubQuant = Literal["nf4"]


@dataclass(frozen=True)
class ReleaseOptions:
    """Choices of a release.

    Attributes:
        targets: Wanted targets, or None for all that the preflight allows.
        dtype: Output type of merged weights as safetensors names it, or None to keep each.
        max_shard_bytes: Largest weights file, header apart; a larger tensor gets its own.
        license: `--license`, or None for the base's.
        quants: Quantisations of GGUF models; the first one is what the plain Modelfile names.
        max_gguf_bytes: Likewise of a GGUF file, or None for a single file.
        imatrix_keys: What an importance matrix adds to a GGUF file, or None without one.
        adapter_type: Element type of a GGUF LoRA.
        bake_base: Whether the base's files are part of a server's folder.
        accept_license: Whether a gated base may be.
        max_model_len: Most tokens of a prompt with its answer on a server, or None.
        gpu_memory_bytes: Of one GPU of the server, or None.
        llama_cpp: Folder of a llama.cpp whose converter helps where we have none, or empty.
        system: A system message that Ollama gives to conversations without one.
        merge_base: `--merge-base`, or None for what is measured as closer to training.
        loaded_in: How the base was quantised in training, where the adapter does not say.
        hub_quant: How the merged model is quantised for the Hub, or None for not at all.
        combination: How the adapter was made of others, as a manifest keeps it, or empty.
    """

    targets: tuple[Target, ...] | None = None
    dtype: str | None = None
    max_shard_bytes: int = DEFAULT_SHARD_BYTES
    license: str | None = None
    quants: tuple[Quant, ...] = DEFAULT_QUANTS
    max_gguf_bytes: int | None = None
    imatrix_keys: tuple[GgufKey, ...] | None = None
    adapter_type: LoraType = "F32"
    bake_base: bool = False
    accept_license: bool = False
    max_model_len: int | None = None
    gpu_memory_bytes: int | None = None
    llama_cpp: str = ""
    system: str = ""
    merge_base: MergeBase | None = None
    loaded_in: LoadedIn | None = None
    hub_quant: HubQuant | None = None
    combination: str = ""


def parse_size(text: str, option: str = "--max-shard-size") -> int:
    """Returns the bytes of `5GB` (powers of 1000) or `5GiB` (powers of 1024).

    Args:
        text: What a user gave.
        option: For which option.

    Raises:
        InputError: Not a size, or below 1 MB.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is not None:
        unit = 1024 if match[3] else 1000
        size = int(float(match[1]) * unit ** _POWERS[match[2].upper()])
        if size >= _MIN_SHARD_BYTES:
            return size
    raise InputError(
        "this is not a size of a file",
        where=option,
        expected="such as 5GB or 500MiB, at least 1MB",
        found=repr(text)[:40],
        hint=f"give it as {option} 5GB",
    )
