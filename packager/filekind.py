"""Which files of a model folder make the model, which describe it, and what each is for."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from packager.errors import InputError

# Source: transformers 5.x, tokenization_utils_base.py (file names and chat templates),
# tokenization_mistral_common.py (tekken.json), and the vocab_files_names of its tokenizers.
TOKENIZER_PATTERNS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
# Source: transformers 5.x, processing_utils.py and image_processing_base.py.
PROCESSOR_PATTERNS = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
CONFIG_PATTERNS = ("config.json", "generation_config.json")
DOCUMENT_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")
CARD_NAME = "README.md"


def list_model_files(directory: Path) -> list[str]:
    """Returns the relative paths of the files at the top of a model folder, sorted.

    Of the folders in it, only `additional_chat_templates` is looked into.

    Raises:
        InputError: The folder cannot be listed.
    """
    try:
        top = [path.name for path in directory.iterdir() if path.is_file()]
        nested = directory.glob("additional_chat_templates/*.jinja")
        return sorted([*top, *(path.relative_to(directory).as_posix() for path in nested)])
    except OSError as problem:
        raise InputError(
            "the folder cannot be listed",
            where=str(directory),
            found=problem.strerror or "an I/O error",
            hint="check the path and its permissions",
        ) from problem


def is_tokenizer_file(name: str) -> bool:
    """Tells whether a file belongs to the tokenizer or processor, by its relative path."""
    return _matches(name, (*TOKENIZER_PATTERNS, *PROCESSOR_PATTERNS))


def is_chat_template(name: str) -> bool:
    """Tells whether a file is a chat template of its own."""
    return name.startswith(("chat_template.", "additional_chat_templates/"))


def is_identity_file(name: str) -> bool:
    """Tells whether a file, weights apart, takes part in what the model computes."""
    return is_tokenizer_file(name) or _matches(name, CONFIG_PATTERNS)


def is_document(name: str) -> bool:
    """Tells whether a file is a licence or notice that travels with what is derived."""
    return _matches(name, DOCUMENT_PATTERNS)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
