"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from packager.combination import METHODS, Combination, parse_weights
from packager.errors import InputError
from packager.gguf.mixture import QUANTS, parse_quant
from packager.plan.option import DEFAULT_QUANTS, ReleaseOptions, parse_size
from packager.quantisation.training import LOADED_IN
from packager.verify.figure import printable

if TYPE_CHECKING:
    from packager.preparation import ReleaseRequest

Command = TypeVar("Command", bound=Callable[..., Any])
DIRECTORY = click.Path(path_type=Path)
MAX_THREADS = 1024

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
base_option = click.option(
    "--base", metavar="REF", help="The base: a folder, or org/name[@revision] on the Hub."
)


def release_options(function: Command) -> Command:
    """Adds what `plan` and `release` have in common."""
    for option in reversed(
        (
            click.argument("adapters", nargs=-1, required=True, metavar="[NAME=]ADAPTER..."),
            base_option,
            click.option("--require-lock", is_flag=True, help="Refuse an adapter without a lock."),
            click.option(
                "--target",
                "targets",
                multiple=True,
                type=click.Choice(["adapter", "merged", "ollama", "gguf-adapter", "vllm"]),
                help="What to emit; default: all that the preflight allows, gguf-adapter apart.",
            ),
            click.option(
                "--quant",
                "quants",
                multiple=True,
                metavar="QUANT",
                shell_complete=_complete_quant,
                help="Quantisation for ollama, such as Q4_K_M, Q8_0 or F16; several from one read. "
                "The first one is the default of the Modelfile.  [default: Q4_K_M]",
            ),
            click.option(
                "--imatrix",
                type=click.Path(path_type=Path),
                help="An importance matrix of llama-imatrix, for better low-bit quantisations.",
            ),
            click.option(
                "--threads",
                type=click.IntRange(1, MAX_THREADS),
                metavar="N",
                help="Threads that quantise; the files do not depend on it.  "
                "[default: all cores that may be used]",
            ),
            click.option(
                "--max-gguf-size",
                metavar="SIZE",
                help="Split GGUF models into files of at most this, such as 4GB.  "
                "[default: one file]",
            ),
            click.option(
                "--llama-cpp",
                type=DIRECTORY,
                metavar="DIR",
                help="A llama.cpp checkout of yours, whose converter is run where this program "
                "has none for the architecture or the tokenizer.",
            ),
            click.option(
                "--system",
                metavar="TEXT",
                default="",
                help="System message that Ollama gives to conversations without one.",
            ),
            click.option(
                "--gguf-adapter-type",
                "adapter_type",
                type=click.Choice(["F32", "F16", "BF16"]),
                default="F32",
                show_default=True,
                help="Type of the values of a GGUF LoRA.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["keep", "float32", "bfloat16", "float16"]),
                default="keep",
                show_default=True,
                help="Type of the merged weights.",
            ),
            click.option(
                "--merge-base",
                type=click.Choice(["16bit", "dequantized"]),
                help="What an adapter is merged onto that was trained on a base loaded in 4 or 8 "
                "bits: the base as it is stored, or as training saw it.  [default: what is "
                "measured as closer to training]",
            ),
            click.option(
                "--loaded-in",
                type=click.Choice(LOADED_IN),
                help="How the base was loaded in training, where the adapter does not say.",
            ),
            click.option(
                "--quantize-hub",
                "hub_quant",
                type=click.Choice(["nf4"]),
                help="Write the merged model for the Hub in bitsandbytes' 4 bits.",
            ),
            click.option(
                "--combine",
                type=click.Choice(METHODS),
                help="Make one adapter of several, as PEFT's add_weighted_adapter does.",
            ),
            click.option(
                "--weights",
                metavar="W,W",
                help="Of the adapters, for --combine, such as 0.7,0.3.  [default: 1 for each]",
            ),
            click.option(
                "--density",
                type=click.FloatRange(0, 1, min_open=True),
                metavar="D",
                help="Share of values that ties, dare and magnitude_prune keep.",
            ),
            click.option(
                "--majority-sign-method",
                "majority_sign",
                type=click.Choice(["total", "frequency"]),
                default="total",
                show_default=True,
                help="How ties elects a sign.",
            ),
            click.option(
                "--seed",
                type=click.IntRange(0, (1 << 32) - 1),
                default=0,
                show_default=True,
                metavar="N",
                help="Of what dare draws at random; the manifest keeps it.",
            ),
            click.option(
                "--svd-rank",
                type=click.IntRange(1, 1 << 16),
                metavar="N",
                help="Rank of what the methods with svd make.  [default: the largest of all]",
            ),
            click.option(
                "--stack",
                is_flag=True,
                help="Merge all adapters on top of each other, in the given order, into one model.",
            ),
            click.option(
                "--name",
                "combined_name",
                metavar="NAME",
                help="What --combine or --stack makes.  [default: all names with - between]",
            ),
            click.option(
                "--max-shard-size",
                default="5GB",
                show_default=True,
                metavar="SIZE",
                help="Largest weights file, such as 5GB or 500MiB.",
            ),
            click.option(
                "--license", "license_id", metavar="ID", help="Licence id, if the base tells none."
            ),
            click.option(
                "--bake-base",
                is_flag=True,
                help="Put the base's weights into the vllm folder, and so into its images.",
            ),
            click.option(
                "--accept-license",
                is_flag=True,
                help="With --bake-base: say that you may pass on a gated base.",
            ),
            click.option(
                "--max-model-len",
                type=click.IntRange(16, 1 << 24),
                metavar="N",
                help="Most tokens of a prompt with its answer for vllm.  "
                "[default: what fits, up to what the base was made for]",
            ),
            click.option(
                "--gpu-memory",
                metavar="SIZE",
                help="Memory of one GPU of the server, such as 80GB: vllm's context and the number "
                "of GPUs follow from it.",
            ),
            json_option,
        )
    ):
        function = option(function)
    return function


def parse_adapters(values: tuple[str, ...]) -> tuple[tuple[str | None, Path], ...]:
    """Splits `NAME=ADAPTER`; a folder whose path holds `=` is taken whole if it exists."""
    parsed: list[tuple[str | None, Path]] = []
    for value in values:
        name, sign, folder = value.partition("=")
        # Unlike Path.exists and Path.expanduser, these take any text.
        if sign and not os.path.lexists(value) and "/" not in name:
            parsed.append((name, Path(os.path.expanduser(folder))))  # noqa: PTH111
        else:
            parsed.append((None, Path(os.path.expanduser(value))))  # noqa: PTH111
    return tuple(parsed)


@dataclass(frozen=True)
class Given:
    """What a user gave to `plan` or `release`, as click has it; see `release_options`."""

    adapters: tuple[str, ...]
    base: str | None
    require_lock: bool
    targets: tuple[Any, ...]
    quants: tuple[str, ...]
    imatrix: Path | None
    threads: int | None
    max_gguf_size: str | None
    llama_cpp: Path | None
    system: str
    adapter_type: Any
    dtype: str
    max_shard_size: str
    license_id: str | None
    bake_base: bool = False
    accept_license: bool = False
    max_model_len: int | None = None
    gpu_memory: str | None = None
    merge_base: Any = None
    loaded_in: Any = None
    hub_quant: Any = None
    combine: Any = None
    weights: str | None = None
    density: float | None = None
    majority_sign: Any = "total"
    seed: int = 0
    svd_rank: int | None = None
    stack: bool = False
    combined_name: str | None = None


def parse_request(given: Given, out: Path, *, behaviour: bool = True) -> ReleaseRequest:
    """Reads what a user gave.

    Raises:
        InputError: A size, type or quantisation is not one.
    """
    from packager.preparation import ReleaseRequest

    return ReleaseRequest(
        adapters=parse_adapters(given.adapters),
        out=out,
        base=given.base,
        require_lock=given.require_lock,
        options=parse_options(given),
        behaviour=behaviour,
        threads=given.threads,
        imatrix=given.imatrix,
        combination=parse_combination(given),
        name=given.combined_name,
    )


def parse_combination(given: Given) -> Combination | None:
    """Reads how several adapters become one, or None where they stay apart.

    Raises:
        InputError: Options contradict each other, or weights are not numbers.
    """
    count = len(given.adapters)
    if given.stack and given.combine:
        raise _contradiction("--stack", "--combine", "one of the two")
    if given.stack and given.weights:
        raise _contradiction("--stack", "--weights", "--combine cat with --weights")
    if given.stack:
        # Pairs of factors add up: their stack is one pair of all ranks.
        return Combination("cat", (1.0,) * count)
    if given.combine is None:
        alone = {
            "--weights": given.weights,
            "--density": given.density,
            "--name": given.combined_name,
        }
        for option, value in alone.items():
            if value is not None:
                raise _contradiction(option, "no --combine", "--combine METHOD besides")
        return None
    weights = (1.0,) * count if given.weights is None else parse_weights(given.weights)
    return Combination(
        method=given.combine,
        weights=weights,
        density=given.density,
        majority_sign_method=given.majority_sign,
        seed=given.seed,
        svd_rank=given.svd_rank,
    )


def _contradiction(first: str, second: str, expected: str) -> InputError:
    return InputError(
        f"{first} does not go with {second}",
        where=first,
        expected=expected,
        hint="lorapack release a=./A b=./B --combine ties --weights 0.7,0.3 --density 0.5",
    )


def parse_options(given: Given) -> ReleaseOptions:
    """Reads the choices that a plan depends on.

    Raises:
        InputError: A size, type or quantisation is not one.
    """
    from packager.dtype import parse_torch_dtype

    size, memory = given.max_gguf_size, given.gpu_memory
    return ReleaseOptions(
        targets=tuple(dict.fromkeys(given.targets)) or None,
        dtype=None if given.dtype == "keep" else parse_torch_dtype(given.dtype),
        max_shard_bytes=parse_size(given.max_shard_size),
        merge_base=given.merge_base,
        loaded_in=given.loaded_in,
        hub_quant=given.hub_quant,
        license=given.license_id,
        quants=tuple(dict.fromkeys(map(parse_quant, given.quants))) or DEFAULT_QUANTS,
        max_gguf_bytes=None if size is None else parse_size(size, "--max-gguf-size"),
        adapter_type=given.adapter_type,
        llama_cpp="" if given.llama_cpp is None else str(given.llama_cpp),
        system=given.system,
        bake_base=given.bake_base,
        accept_license=given.accept_license,
        max_model_len=given.max_model_len,
        gpu_memory_bytes=None if memory is None else parse_size(memory, "--gpu-memory"),
    )


def _complete_quant(_context: Any, _parameter: Any, incomplete: str) -> list[str]:
    return [name for name in QUANTS if name.startswith(incomplete.upper())]


def print_json(document: dict[str, Any]) -> None:
    """Prints the one document that stdout carries."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=1))


def print_text(text: str) -> None:
    """Prints lines for a person; what would act on the terminal is shown instead of sent."""
    click.echo("\n".join(map(printable, text.split("\n"))))


def size_text(count: float) -> str:
    """Returns bytes in the unit that a person would use."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
