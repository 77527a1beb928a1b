"""A base checkpoint as an index: every tensor by name, from headers only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from packager.base.naming import Naming
from packager.errors import BaseError, InputError
from packager.quantisation.encoding import QuantisedRef
from packager.quantisation.logical import find_logical
from packager.tensorfile import TensorFile, TensorRef, check_not_pickle, read_header
from packager.untrusted import check_relative_name, read_json_object, resolve_inside

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
CONFIG_NAME = "config.json"

_MAX_INDEX_BYTES = 64 << 20

HEAD_NAMES = ("lm_head.weight", "language_model.lm_head.weight", "embed_out.weight")
# Source: transformers 5.x, models/*/modeling_*.py: the parameter that get_input_embeddings
# returns, by the name that checkpoints store.
_EMBEDDING_NAMES = (
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "gpt_neox.embed_in.weight",
    "embed_tokens.weight",
    "shared.weight",
    "model.embeddings.tok_embeddings.weight",
    "embeddings.tok_embeddings.weight",
    "embeddings.word_embeddings.weight",
    *(
        f"{family}.embeddings.word_embeddings.weight"
        for family in ("bert", "roberta", "distilbert", "electra", "deberta", "mpnet", "esm")
    ),
)
# Source: transformers 5.x, models/t5/configuration_t5.py and its copies: `tie_word_embeddings` is
# always true; what a checkpoint says there means whether the decoder's output is scaled.
ALWAYS_TIED = ("t5", "mt5", "umt5", "longt5")


@dataclass(frozen=True)
class BaseIndex:
    """A base directory, read from its configuration and headers only.

    Attributes:
        directory: Where it lies.
        config: `config.json`.
        tensors: Name → where its data lies, in file order; of weights that are stored quantised,
            what they stand for.
        files: The weight files in name order, parsed.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]
    files: tuple[TensorFile, ...]

    @property
    def architecture(self) -> str:
        """The first of `architectures`, or the model type."""
        names = self.config.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
        return str(self.config.get("model_type", "unknown"))

    @property
    def ties_embeddings(self) -> bool:
        """Whether the head shares the input embedding's weights.

        The default differs between the configuration classes of transformers, and a saved
        configuration leaves defaults out: where it is not stated, a missing head decides.
        """
        if self.config.get("model_type") in ALWAYS_TIED:
            return True
        nested = self.config.get("text_config")
        inner = nested.get("tie_word_embeddings") if isinstance(nested, dict) else None
        stated = self.config.get("tie_word_embeddings", inner)
        return self.head is None if stated is None else bool(stated)

    @property
    def head(self) -> TensorRef | None:
        """The stored output head, shape (rows, width), or None."""
        return next((self.tensors[name] for name in HEAD_NAMES if name in self.tensors), None)

    @property
    def embedding(self) -> TensorRef | None:
        """The input embedding, shape (rows, width), if it has a name that is known."""
        return next((self.tensors[name] for name in _EMBEDDING_NAMES if name in self.tensors), None)

    @cached_property
    def naming(self) -> Naming:
        """The parameters that its tensors become when the model is loaded."""
        return Naming(self.config, self.tensors)

    @property
    def parameter_count(self) -> int:
        """Elements of all tensors."""
        return sum(_elements(ref.shape) for ref in self.tensors.values())

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(ref.nbytes for file in self.files for ref in file.tensors)

    @property
    def quantised_count(self) -> int:
        """Number of tensors that are stored quantised."""
        return sum(isinstance(ref, QuantisedRef) for ref in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Element types in use, the one with the most bytes first."""
        totals: dict[str, int] = {}
        for ref in self.tensors.values():
            totals[ref.dtype] = totals.get(ref.dtype, 0) + ref.nbytes
        return tuple(sorted(totals, key=lambda dtype: (-totals[dtype], dtype)))

    @property
    def fingerprint(self) -> str:
        """`sha256:<hex>` over the sorted names, dtypes and shapes of all tensors as stored."""
        stored = sorted((ref for file in self.files for ref in file.tensors), key=_name_of)
        rows = [[ref.name, ref.dtype, list(ref.shape)] for ref in stored]
        text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_base(directory: Path) -> BaseIndex:
    """Reads the configuration and the headers of a base; no weights are read.

    Of a base in bitsandbytes' four bits, the small descriptions of its weights are read too.

    Raises:
        BaseError: The folder is no checkpoint, a shard is missing or contradicts the index, or
            what is stored quantised contradicts its description.
        UnsafeInputError: The weights are pickles, or a name leads outside the folder.
        InputError: A file is damaged.
    """
    if not directory.is_dir():
        raise BaseError(
            "there is no such base folder",
            where=str(directory),
            hint="give a folder with --base DIR, or a Hub model with --base org/name@revision",
        )
    config = read_json_object(resolve_inside(directory, CONFIG_NAME, where=str(directory)))
    files = tuple(read_header(path) for path in _weight_files(directory))
    tensors: dict[str, TensorRef] = {}
    for file in files:
        for ref in file.tensors:
            if ref.name in tensors:
                raise BaseError(
                    "a tensor of the base stands in two shards",
                    where=str(file.path),
                    found=f"{ref.name!r}, also in {tensors[ref.name].file.name}",
                    hint="download the base again into an empty folder",
                )
            tensors[ref.name] = ref
    _check_against_index(directory, tensors)
    return BaseIndex(directory, config, find_logical(config, tensors), files)


def weight_file_names(directory: Path) -> tuple[str, ...]:
    """Returns the names of the weight files of a base, as its index gives them.

    Raises:
        BaseError: There are none, or one that the index names is missing.
        UnsafeInputError: There are only pickles.
    """
    return tuple(path.relative_to(directory).as_posix() for path in _weight_files(directory))


def _weight_files(directory: Path) -> list[Path]:
    index_path = resolve_inside(directory, INDEX_NAME, where=str(directory))
    if index_path.exists():
        names = sorted(set(_weight_map(index_path).values()))
        paths = [resolve_inside(directory, name, where=str(index_path)) for name in names]
    else:
        paths = [resolve_inside(directory, SINGLE_NAME, where=str(directory))]
    for path in paths:
        check_not_pickle(path)
    missing = [path for path in paths if not path.exists()]
    if not missing:
        return paths
    if not index_path.exists():
        for other in sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt*")):
            check_not_pickle(other)
    raise BaseError(
        "a weights file of the base is missing",
        where=str(missing[0]),
        expected=f"{len(paths)} weight files",
        found=f"{len(paths) - len(missing)}",
        hint="download the base again: hf download org/name --local-dir DIR",
    )


def _weight_map(index_path: Path) -> dict[str, str]:
    raw = read_json_object(index_path, max_bytes=_MAX_INDEX_BYTES).get("weight_map")
    if (
        isinstance(raw, dict)
        and raw
        and all(isinstance(name, str) and isinstance(file, str) for name, file in raw.items())
    ):
        for file in set(raw.values()):
            check_relative_name(file, where=str(index_path))
        return raw
    raise InputError(
        "the weights index is damaged",
        where=str(index_path),
        expected='"weight_map" from tensor names to file names',
        found=type(raw).__name__,
        hint="download the base again",
    )


def _check_against_index(directory: Path, tensors: Mapping[str, TensorRef]) -> None:
    index_path = directory / INDEX_NAME
    if not index_path.exists():
        return
    for name, file in _weight_map(index_path).items():
        found = tensors[name].file.name if name in tensors else "nowhere"
        if found != Path(file).name:
            raise BaseError(
                f"tensor {name!r} is not where the index says",
                where=str(index_path),
                expected=file,
                found=found,
                hint="download the base again into an empty folder",
            )


def _name_of(ref: TensorRef) -> str:
    return ref.name


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
