"""Level `weights` of an adapter kept separate: the files as trained, and their normalised form."""

from __future__ import annotations

from pathlib import Path

from packager.adapter import AdapterSpec, read_adapter
from packager.adapter.spec import CONFIG_NAME
from packager.digest import content_digest, hash_files
from packager.manifest import FileEntry
from packager.plan import AdapterSource
from packager.plan.layout import needs_folding
from packager.sinks.peft import FOLDED_FIELDS, PINNED_FIELDS
from packager.verify.folded import check_folded
from packager.verify.proof import WeightsCheck

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def adapter_digest(source: AdapterSource) -> str:
    """Returns `sha256:<hex>` over configuration, weights and tokenizer of an adapter."""
    return content_digest(adapter_entries(source))


def adapter_entries(source: AdapterSource) -> tuple[FileEntry, ...]:
    """Hashes the files of an adapter that take part in a release."""
    names = ["adapter_config.json", ADAPTER_WEIGHTS, *source.files]
    return hash_files(source.spec.directory, names)


def check_adapter(source: AdapterSource, folder: Path) -> WeightsCheck:
    """The adapter is the one trained; its normalised form makes the same ΔW."""
    spec = source.spec
    kept = read_adapter(folder)
    count = len(spec.tensors)
    wanted, found = (hash_files(place, [ADAPTER_WEIGHTS])[0] for place in (spec.directory, folder))
    problems = [] if wanted == found else [f"{ADAPTER_WEIGHTS} is not the file as trained"]
    problems += _config_problems(spec, kept, PINNED_FIELDS)
    rules = {"copy": (len(kept.tensors), count)}
    if needs_folding(source):
        folded = read_adapter(folder / "normalised")
        problems += _config_problems(spec, folded, PINNED_FIELDS | FOLDED_FIELDS)
        problems += check_folded(spec, folded)
        rules["normalised"] = (len(folded.tensors), 2 * len(spec.modules))
    return WeightsCheck(count, count, rules, len(kept.tensors), count, (), tuple(problems))


def _config_problems(
    trained: AdapterSpec, kept: AdapterSpec, may_differ: frozenset[str]
) -> list[str]:
    wanted, found = trained.config.raw, kept.config.raw
    return [
        f"{kept.directory.name}/{CONFIG_NAME} has another {field!r} than as trained"
        for field in sorted({*wanted, *found} - may_differ)
        if wanted.get(field) != found.get(field)
    ]
