"""Loading models for the proof: offline, without a stranger's code, without a word on the screen.

Both sides of a comparison run in float32 with the same attention code. The weights are taken as
they are stored: float32 holds every bfloat16 and float16 value exactly, so what differs between
two models is what is in their files, and not what a processor does with short floats.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from packager.dtype import MANTISSA_BITS
from packager.errors import AdapterError, BaseError, InputError, LorapackError, ProofError
from packager.quantisation.training import TrainingQuantisation
from packager.task import TASKS, Task
from packager.tensorfile import TensorRef, read_header
from packager.untrusted import read_json_object, resolve_inside
from packager.verify.enlarged import enlarge_vocabulary, is_repetition
from packager.verify.loftq import round_as_trained
from packager.verify.quantised import compute_in_float32, load_arguments, why_not_loaded

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_WRAPPER = "base_model.model."
_SHOWN_NAMES = 5
_LANGUAGE = TASKS["CAUSAL_LM"]
_HEAD_SEED = 0
"""A head that a base lacks is random; with a seed, the base without its adapter is always one."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, float32, on the CPU.

    Attributes:
        model: A transformers `PreTrainedModel`, or a `PeftModel` around one.
        vocabulary: Rows of the input embedding.
        max_tokens: Longest sequence that its position embeddings are made for.
        missing: Weights that the files do not have; transformers filled them with noise.
        unexpected: Tensors of the files that the model does not use.
    """

    model: Any
    vocabulary: int
    max_tokens: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_base(
    directory: Path,
    task: Task = _LANGUAGE,
    *,
    labels: int | None = None,
    training: TrainingQuantisation | None = None,
) -> LoadedModel:
    """Loads the base model, as one of a task; a head that it lacks is made anew.

    Args:
        directory: The base.
        task: What the adapter was trained for.
        labels: Classes of a head that is made anew, or None.
        training: How bitsandbytes quantises it meanwhile, or None for as it is stored.

    Raises:
        BaseError: It cannot be loaded, or weights are missing; where the task has a head, that is
            for `attach_adapter` to judge.
        UnsafeInputError: A weights file lies outside of the folder, or is a pickle.
    """
    loaded = _load(directory, BaseError, "the base cannot be loaded", task, labels, training)
    if task.heads:
        return loaded  # what it lacks, the adapter has to bring
    missing = tuple(name for name in loaded.missing if name.partition(".")[0] not in task.optional)
    if missing:
        raise BaseError(
            "the base has not all the weights of its architecture",
            where=str(directory),
            found=f"missing {list_names(missing)}",
            hint="download the base again",
        )
    return replace(loaded, missing=())


def load_artefact(directory: Path, task: Task = _LANGUAGE) -> LoadedModel:
    """Loads a merged model from disk, as its users will.

    Args:
        directory: The model.
        task: What it is for.

    Raises:
        ProofError: It cannot be loaded.
        UnsafeInputError: A weights file lies outside of the folder, or is a pickle.
    """
    return _load(directory, ProofError, "the merged model cannot be loaded", task)


def load_tokenizer(directory: Path) -> Any:
    """Loads a tokenizer from a folder, never from the network.

    Raises:
        InputError: There is none, or it is damaged.
    """
    with _loading(InputError, "the tokenizer cannot be loaded", directory):
        return AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )


def attach_adapter(base: LoadedModel, directory: Path) -> LoadedModel:
    """Puts a PEFT adapter onto a loaded base; `base.model` is changed in place.

    PEFT only warns about weights that are missing and says nothing about weights that it has no
    place for: an adapter with a wrong prefix loads and does nothing. Here both are errors.

    Source: PEFT 0.21.2, peft_model.py, PeftModel.from_pretrained and load_adapter: the first
    drops the load result that the second returns, so the weights are loaded once more for it.

    Raises:
        AdapterError: The weights do not fit, are missing, or are left over.
        UnsafeInputError: The weights are a pickle.
    """
    _check_adapter_files(directory)
    _check_brought(base.missing, directory)
    with _loading(AdapterError, "PEFT cannot load the adapter", directory):
        rows = enlarge_vocabulary(base.model, directory)
        config = round_as_trained(base.model, directory)
        model = PeftModel.from_pretrained(
            base.model, str(directory), is_trainable=False, config=config
        )
        result = model.load_adapter(str(directory), "default", is_trainable=False)
        model.eval()
    missing = tuple(result.missing_keys)
    unexpected = tuple(name for name in result.unexpected_keys if not is_repetition(name))
    if missing or unexpected:
        raise AdapterError(
            "the adapter's weights do not match the base",
            where=str(directory / _ADAPTER_WEIGHTS),
            expected=f"{list_names(missing)}" if missing else "no other tensor",
            found=f"{list_names(unexpected)}" if unexpected else "none of them",
            hint="the tensor names carry a wrong prefix, or this is another base",
        )
    return LoadedModel(model, rows or base.vocabulary, base.max_tokens, (), base.unexpected)


def _check_brought(missing: tuple[str, ...], directory: Path) -> None:
    """Refuses a base that lacks what the adapter does not bring either."""
    path = resolve_inside(directory, _ADAPTER_WEIGHTS, where=str(directory))
    saved = {ref.name.removeprefix(_WRAPPER) for ref in read_header(path).tensors}
    lost = tuple(name for name in missing if name not in saved)
    if lost:
        raise AdapterError(
            "weights are neither in the base nor in the adapter",
            where=str(path),
            expected="all that were new in training, by modules_to_save",
            found=f"missing {list_names(lost)}",
            hint="they were random in training: train again with them in modules_to_save",
        )


def stored_dtype(directory: Path) -> str:
    """Returns the coarsest of F32, F16 and BF16 that a model's tensors are stored in.

    Raises:
        ProofError: There is no tensor of these types.
    """
    found = {ref.dtype for ref in _read_refs(directory)} & set(MANTISSA_BITS)
    if found:
        return min(found, key=lambda dtype: MANTISSA_BITS[dtype])
    raise ProofError(
        "the model has no tensor of floating point",
        where=str(directory),
        hint="check that this is the folder of a model",
    )


def list_names(names: tuple[str, ...]) -> str:
    """Returns the first few names and how many more there are."""
    more = len(names) - _SHOWN_NAMES
    return ", ".join(sorted(names)[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers and PEFT from warning, logging and drawing progress bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(
    directory: Path,
    error: type[LorapackError],
    what: str,
    task: Task,
    labels: int | None = None,
    training: TrainingQuantisation | None = None,
) -> LoadedModel:
    refs = _read_refs(directory)
    raw = read_json_object(directory / "config.json")
    _check_config(raw, directory, error, training)
    with _loading(error, what, directory):
        given = {} if labels is None else {"num_labels": labels}
        config = AutoConfig.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False, **given
        )
        text = config.get_text_config()
        _check_layers(text, len(refs), directory, error)
        with torch.random.fork_rng():
            torch.manual_seed(_HEAD_SEED)
            model, info = getattr(transformers, task.auto_class).from_pretrained(
                str(directory),
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **load_arguments(raw, training),
            )
        model = compute_in_float32(model)
    return LoadedModel(
        model=model.eval(),
        vocabulary=model.get_input_embeddings().weight.shape[0],
        max_tokens=getattr(text, "max_position_embeddings", None) or 1 << 30,
        missing=tuple(sorted(info["missing_keys"])),
        unexpected=tuple(sorted(info["unexpected_keys"])),
    )


def _check_config(
    raw: dict[str, Any],
    directory: Path,
    error: type[LorapackError],
    training: TrainingQuantisation | None = None,
) -> None:
    # transformers would load the base that a stray adapter_config.json names instead.
    # Source: transformers 5.23, modeling_utils.py, from_pretrained, _adapter_model_path.
    if (directory / _ADAPTER_CONFIG).exists():
        raise error(
            "a model folder holds an adapter's configuration",
            where=str(directory / _ADAPTER_CONFIG),
            expected="an adapter and its base in folders of their own",
        )
    reason = why_not_loaded(raw, training)
    if reason:
        raise error(
            "the behaviour of this quantised checkpoint cannot be compared",
            where=str(directory / "config.json"),
            found=reason,
            hint="give the 16-bit original with --base, or skip the comparison: --no-behaviour",
        )


def _check_layers(config: Any, tensors: int, directory: Path, error: type[LorapackError]) -> None:
    layers = getattr(config, "num_hidden_layers", 0)
    if layers > tensors:
        raise error(
            "config.json names more layers than there are tensors",
            where=str(directory / "config.json"),
            expected=f"at most {tensors}",
            found=f"num_hidden_layers {layers}",
        )


def _check_adapter_files(directory: Path) -> None:
    config = read_json_object(directory / _ADAPTER_CONFIG)
    read_header(resolve_inside(directory, _ADAPTER_WEIGHTS, where=str(directory)))
    # X-LoRA loads further adapters from wherever its configuration says, and Megatron layers
    # import a module that it names. Source: PEFT 0.21.2, tuners/xlora/config.py,
    # tuners/lora/tp_layer.py.
    if config.get("peft_type") == "XLORA" or config.get("megatron_config") is not None:
        raise AdapterError(
            "the adapter loads other code or adapters",
            where=str(directory / _ADAPTER_CONFIG),
            found="XLORA" if config.get("peft_type") == "XLORA" else "megatron_config",
            hint="skip the comparison: --no-behaviour",
        )


def _read_refs(directory: Path) -> tuple[TensorRef, ...]:
    index = directory / _INDEX
    if (directory / _SINGLE).exists() or not index.exists():
        names = {_SINGLE}
    else:
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(
                "the index has no weight_map",
                where=str(index),
                hint="copy or download the folder again",
            )
        names = {str(name) for name in weight_map.values()}
    paths = [resolve_inside(directory, name, where=str(index)) for name in sorted(names)]
    return tuple(ref for path in paths for ref in read_header(path).tensors)


@contextmanager
def _loading(error: type[LorapackError], what: str, directory: Path) -> Iterator[None]:
    """Loads quietly, and turns whatever goes wrong into one error.

    The libraries raise what they like for a damaged or hostile file: ValueError, KeyError,
    ZeroDivisionError, errors of the file format, errors of configuration validators. All of them
    mean that the folder is not a model.
    """
    try:
        with quiet():
            yield
    except LorapackError:
        raise
    except Exception as problem:
        text = " ".join(str(problem).split())
        raise error(
            what,
            where=str(directory),
            found=f"{type(problem).__name__}: {text}"[:300],
            hint="load it with transformers alone to see whether the folder is complete",
        ) from problem
