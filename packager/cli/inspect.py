"""`lorapack inspect`: no torch, no weights, no network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from packager.adapter import AdapterSpec, read_adapter
from packager.adapter.support import TARGETS
from packager.cli.option import (
    DIRECTORY,
    base_option,
    json_option,
    print_json,
    print_text,
    size_text,
)
from packager.errors import InputError, UnsupportedFeatureError
from packager.gguf.architecture import find_family
from packager.lock import BaseLock, read_lock
from packager.manifest import Target
from packager.plan.release import EMITTED
from packager.untrusted import find_folder, read_json_object

SCHEMA_VERSION = 1
_GGUF_TARGETS: tuple[Target, ...] = ("ollama", "gguf-adapter")


@click.command("inspect")
@click.argument("adapter", type=DIRECTORY)
@base_option
@json_option
def command(adapter: Path, base: str | None, as_json: bool) -> None:
    """Say what ADAPTER is, what is known of its base, and which target can carry it."""
    spec = read_adapter(adapter)
    document = inspect_document(spec, read_lock(adapter), base)
    if as_json:
        print_json(document)
    else:
        print_text(_render(document))


def inspect_document(spec: AdapterSpec, lock: BaseLock | None, base: str | None) -> dict[str, Any]:
    """Returns everything that `inspect` shows."""
    config = spec.config
    config_of_base = _read_base_config(base or config.base_name)
    return {
        "schema_version": SCHEMA_VERSION,
        "adapter": str(spec.directory),
        "peft_type": config.peft_type,
        "task_type": config.task_type,
        "ranks": list(spec.ranks),
        "alpha": config.alpha,
        "scales": list(spec.scales),
        "target_modules": list(spec.targets),
        "modules": spec.pair_count,
        "parameters": spec.parameter_count,
        "dtypes": list(spec.dtypes),
        "bytes": spec.weights_bytes,
        "tokenizer": spec.has_tokenizer,
        "leftover_tensors": list(spec.leftover),
        "base": _base_document(spec, lock, base),
        "features": [asdict(feature) for feature in spec.features],
        "targets": {target: _target_document(spec, target, config_of_base) for target in TARGETS},
    }


def _target_document(
    spec: AdapterSpec, target: Target, config_of_base: dict[str, Any] | None
) -> dict[str, Any]:
    """What the features allow; a base that is here also tells whether its architecture does."""
    status, reason = _worst(spec, target), ""
    if target in _GGUF_TARGETS and config_of_base is not None and status != _SEVERITY[-1]:
        try:
            find_family(config_of_base)
        except UnsupportedFeatureError as problem:
            status, reason = _SEVERITY[-1], f"{problem.what}; {problem.hint}"
    if target == "vllm" and status == "merge-only":
        reason = "with --target merged beside it, its merged model is served as a whole"
    return {"status": status, "reason": reason, "written_by_this_version": target in EMITTED}


def _read_base_config(name: str | None) -> dict[str, Any] | None:
    """`config.json` of a base that is a folder here, if it can be read."""
    folder = find_folder(name) if name else None
    if folder is None:
        return None
    try:
        return read_json_object(folder / "config.json")
    except InputError:
        return None


def _base_document(spec: AdapterSpec, lock: BaseLock | None, base: str | None) -> dict[str, Any]:
    config = spec.config
    return {
        "given": base,
        "trained_on": config.base_name,
        "revision": config.base_revision,
        "locked": lock is not None,
        "repo": lock.repo if lock else None,
        "commit": lock.commit if lock else None,
        "digest": lock.digest if lock else None,
    }


_SEVERITY = ("works", "normalised", "merge-only", "not possible")


def _worst(spec: AdapterSpec, target: Any) -> str:
    return max((feature.support[target].status for feature in spec.features), key=_SEVERITY.index)


def _render(document: dict[str, Any]) -> str:
    ranks = ", ".join(map(str, document["ranks"])) or "none"
    scales = ", ".join(f"{scale:g}" for scale in document["scales"][:6]) or "none"
    rows = [
        ("adapter", document["adapter"]),
        ("tuner", f"{document['peft_type']}, task {document['task_type'] or 'not stated'}"),
        ("rank", f"{ranks}; alpha {document['alpha']:g}; scale {scales}"),
        ("targets", f"{', '.join(document['target_modules'])} ({document['modules']} modules)"),
        ("trained", f"{document['parameters']:,} parameters, {', '.join(document['dtypes'])}, "
                    f"{size_text(document['bytes'])}"),
        ("tokenizer", "its own" if document["tokenizer"] else "the base's"),
        ("base", _base_text(document["base"])),
    ]  # fmt: skip
    if document["leftover_tensors"]:
        names = document["leftover_tensors"]
        rows.append(("not plain LoRA", f"{len(names)} tensors, such as {names[0]}"))
    text = [f"{title:<15} {value}" for title, value in rows]
    return "\n".join([*text, "", *_feature_lines(document)])


def _base_text(base: dict[str, Any]) -> str:
    name = base["given"] or base["repo"] or base["trained_on"] or "not stated"
    if base["locked"]:
        return f"{name}, locked to {base['commit'] or base['digest']}"
    revision = f" at {base['revision']}" if base["revision"] else ", revision not stated"
    return f"{name}{revision}; not locked (lorapack lock ADAPTER --base REF)"


def _feature_lines(document: dict[str, Any]) -> list[str]:
    width = max(24, *(len(feature["name"]) + 2 for feature in document["features"]))
    lines = [f"{'feature':<{width}}" + "".join(f"{target:<14}" for target in TARGETS)]
    reasons: list[str] = []
    for feature in document["features"]:
        support = feature["support"]
        cells = "".join(f"{support[target]['status']:<14}" for target in TARGETS)
        lines.append(f"{feature['name']:<{width}}{cells}")
        reasons += [
            f"  {feature['name']} ({feature['detail']}) in {target}: {support[target]['reason']}"
            for target in TARGETS
            if support[target]["status"] != "works"
        ]
    lines.append("")
    lines += reasons
    lines += [
        f"  {target}: {item['reason']}"
        for target, item in document["targets"].items()
        if item["reason"]
    ]
    return lines
