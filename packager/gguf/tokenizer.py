"""The keys of a tokenizer, as llama.cpp's converter writes them for the same files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packager.errors import InputError
from packager.gguf.architecture import find_family
from packager.gguf.family import Family, SpacePrefix
from packager.gguf.piece import read_phi_pieces, read_pieces
from packager.gguf.pretokenizer import name_pretokenizer
from packager.gguf.special import merge_keys, special_keys, template_keys
from packager.gguf.tokenizerdocument import check_encodings, open_tokenizer
from packager.gguf.tokenizerfile import TokenizerFiles, list_tokenizer_files
from packager.gguf.value import GgufKey
from packager.gguf.vocabulary import (
    Vocabulary,
    is_llama_document,
    read_bpe,
    read_llama_document,
)

# Source: llama.cpp 0c1e57098, conversion/llama.py, `set_vocab`.
_CODE_LLAMA_ROWS = 32016
_CODE_LLAMA_EOT = 32010
_GRANITE_CODE_ROWS = 49152


def read_tokenizer_keys(
    source: Path | Mapping[str, Path], config: Mapping[str, Any], rows: int
) -> tuple[GgufKey, ...]:
    """Returns every key below `tokenizer.`.

    Args:
        source: The folder of the model, or the tokenizer's files by relative name, where they
            lie in several folders.
        config: `config.json` of the merged model.
        rows: Rows of the embedding; the vocabulary is filled up to as many.

    Raises:
        InputError: A file is damaged or missing, or there are more tokens than rows.
        UnsafeInputError: A file is a link that leads outside of the folder.
        UnsupportedFeatureError: llama.cpp does not know how the tokenizer splits text, or there
            is no mapper for the architecture.
    """
    family = find_family(config)
    files = list_tokenizer_files(source) if isinstance(source, Path) else TokenizerFiles(source)
    keys = (
        *family.tokenizer_defaults,
        *_space_keys(family.space_prefix, files),
        *_vocabulary_keys(family, files, config, rows),
        *_exception_keys(family, rows),
    )
    return tuple({key.name: key for key in keys}.values())


def _vocabulary_keys(
    family: Family, files: TokenizerFiles, config: Mapping[str, Any], rows: int
) -> tuple[GgufKey, ...]:
    for kind in family.vocabularies:
        if kind == "sentencepiece" and files.pieces is not None:
            return _llama_keys(read_pieces(files, rows), files, config)
        if kind == "sentencepiece-or-gpt2":
            if files.pieces is not None and not _is_gpt2(files):
                return _llama_keys(read_phi_pieces(files, rows), files, config)
            return _gpt2_keys(files, config, rows)
        if kind == "llama-hf" and is_llama_document(files):
            vocabulary = read_llama_document(open_tokenizer(files), files, rows)
            return _llama_keys(vocabulary, files, config)
        if kind == "bpe":
            return _gpt2_keys(files, config, rows)
    raise InputError(
        "the tokenizer's file is missing",
        where=", ".join(files.paths) or "the tokenizer's files",
        expected="tokenizer.model, which this architecture needs in a GGUF file",
        hint="copy tokenizer.model from the base's repository into the base's folder",
    )


def _llama_keys(
    vocabulary: Vocabulary, files: TokenizerFiles, config: Mapping[str, Any]
) -> tuple[GgufKey, ...]:
    return (
        GgufKey("tokenizer.ggml.model", "string", "llama"),
        GgufKey("tokenizer.ggml.pre", "string", "default"),
        GgufKey("tokenizer.ggml.tokens", "string", vocabulary.tokens),
        GgufKey("tokenizer.ggml.scores", "float32", vocabulary.scores),
        GgufKey("tokenizer.ggml.token_type", "int32", vocabulary.types),
        *special_keys(files, config, rows=len(vocabulary.tokens)),
        *template_keys(files),
    )


def _gpt2_keys(files: TokenizerFiles, config: Mapping[str, Any], rows: int) -> tuple[GgufKey, ...]:
    where = files.where("tokenizer.json")
    tokenizer = open_tokenizer(files)
    pre = name_pretokenizer(check_encodings(tokenizer, files), where=where)
    vocabulary = read_bpe(tokenizer, rows, where)
    return (
        GgufKey("tokenizer.ggml.model", "string", "gpt2"),
        GgufKey("tokenizer.ggml.pre", "string", pre),
        GgufKey("tokenizer.ggml.tokens", "string", vocabulary.tokens),
        GgufKey("tokenizer.ggml.token_type", "int32", vocabulary.types),
        *merge_keys(files),
        *special_keys(files, config),
        *template_keys(files),
    )


def _space_keys(prefix: SpacePrefix, files: TokenizerFiles) -> tuple[GgufKey, ...]:
    stated = (files.config or {}).get("add_prefix_space")
    known = {"unsaid": False, "stated": isinstance(stated, bool), "never": files.pieces is not None}
    if not known[prefix]:
        return ()
    value = prefix == "stated" and stated is True
    return (GgufKey("tokenizer.ggml.add_space_prefix", "bool", value),)


def _exception_keys(family: Family, rows: int) -> tuple[GgufKey, ...]:
    """Returns what two models get that are told by the size of their vocabulary."""
    if "llama-hf" not in family.vocabularies:
        return ()
    if rows == _CODE_LLAMA_ROWS:
        return (GgufKey("tokenizer.ggml.eot_token_id", "uint32", _CODE_LLAMA_EOT),)
    if rows == _GRANITE_CODE_ROWS:
        return (GgufKey("tokenizer.ggml.add_bos_token", "bool", value=False),)
    return ()


def _is_gpt2(files: TokenizerFiles) -> bool:
    return (files.config or {}).get("tokenizer_class") == "GPT2Tokenizer"
