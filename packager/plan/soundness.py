"""What is asked of adapters and base whatever is released; every problem that there is."""

from __future__ import annotations

import re

from packager.base import BaseIndex
from packager.errors import AdapterError, BaseError, InputError, LorapackError
from packager.plan.rule import count_embedding_rows
from packager.plan.source import AdapterSource, BaseSource
from packager.quantisation.scheme import CONFIG_KEY, check_scheme

_NAME = re.compile(r"[^\W_](?:[\w.-]{0,94}[\w-])?")


def check_names(adapters: tuple[AdapterSource, ...]) -> list[LorapackError]:
    """Refuses names that no folder can have, or that two adapters have."""
    problems: list[LorapackError] = []
    names = [source.name for source in adapters]
    for name in dict.fromkeys(names):
        if not _NAME.fullmatch(name):
            problems.append(
                InputError(
                    "an adapter's name cannot be a folder and a repository name",
                    where=name[:100],
                    expected="letters, digits, '-', '_' and '.', beginning with a letter or digit",
                    hint="name it: lorapack release NAME=ADAPTER",
                )
            )
        if names.count(name) > 1:
            problems.append(
                InputError(
                    "two adapters have one name",
                    where=name,
                    hint="name them: lorapack release a=./A b=./B",
                )
            )
    return problems


def check_index(index: BaseIndex) -> list[LorapackError]:
    """Refuses a base whose quantised weights cannot be read."""
    problem = check_scheme(index.config, index.directory)
    if problem is not None:
        return [problem]
    if index.config.get(CONFIG_KEY) and not index.quantised_count:
        return [
            BaseError(
                "the base says that it is quantised, but none of its weights is",
                where=str(index.directory / "config.json"),
                expected="weights with their scales, or no quantization_config",
                found=f"{len(index.tensors)} plain tensors",
                hint="download the base again, or give its 16-bit original with --base",
            )
        ]
    return []


def check_source(source: AdapterSource, base: BaseSource) -> list[LorapackError]:
    """Refuses an adapter with tensors or tokens that nothing has a place for."""
    problems: list[LorapackError] = []
    spec = source.spec
    explained = any(item.support["merged"].status == "not possible" for item in spec.features)
    if spec.leftover and not explained:
        shown = ", ".join(repr(name) for name in spec.leftover[:3])
        problems.append(
            AdapterError(
                f"{len(spec.leftover)} tensors of the adapter are left over: no rule uses them",
                where=str(spec.directory),
                expected="names like 'base_model.model.<module>.lora_A.weight'",
                found=shown,
                hint="save the adapter again with PEFT's save_pretrained",
            )
        )
    rows = count_embedding_rows(source, base.index)
    count = source.token_count if source.token_count is not None else base.token_count
    if rows is not None and count is not None and count > rows:
        problems.append(
            AdapterError(
                "the tokenizer has more tokens than the embedding has rows",
                where=str(spec.directory),
                expected=f"at most {rows}",
                found=str(count),
                hint="the vocabulary was enlarged in training: save the embedding with the "
                "adapter (modules_to_save), or release with the tokenizer of the base",
            )
        )
    return problems
