"""What a bundle's own proof says that a GGUF model answers, so that llama.cpp can be asked again.

The questions are those of the bundle's server for vLLM: places of the proof's text, with what base
and adapter answer there. How far the file is from that is known of the same text: at no place more
than the largest divergence that the proof saw in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from packager.errors import InputError
from packager.manifest import Manifest
from packager.serve.source import VLLM_FOLDER, GgufSource, check_files, has_target
from packager.serving.answer import EXPECTED_NAME, NOISE, Expected, ExpectedModel, parse_expected
from packager.untrusted import read_bytes, read_json_object

PROOF_NAME = "report/VERIFY.json"

_MAX_PROOF_BYTES = 64 << 20


def expect_gguf(bundle: Path, manifest: Manifest, sources: Sequence[GgufSource]) -> Expected | None:
    """Returns what the served files have to answer, or None where the bundle does not tell.

    Args:
        bundle: Its folder.
        manifest: Of the bundle.
        sources: The files.

    Raises:
        BundleError: The server's folder is not as it was released, or damaged.
    """
    if not has_target(manifest, "vllm"):
        return None
    check_files(bundle, manifest, f"{VLLM_FOLDER}/")
    documents = list(_read_answers(bundle, manifest))
    asked = {model.name: model for document in documents for model in document.models}
    bounds = _read_bounds(bundle / PROOF_NAME)
    models = []
    for source in sources:
        model = asked.get(source.name)
        bound = bounds.get((source.name, source.path.name))
        if model is None or bound is None or not all(item.base for item in model.questions):
            return None
        models.append(_as_whole(model, bound))
    return replace(documents[0], models=tuple(models))


def _read_answers(bundle: Path, manifest: Manifest) -> Iterator[Expected]:
    for entry in manifest.files:
        if entry.path.startswith(f"{VLLM_FOLDER}/") and entry.path.endswith(f"/{EXPECTED_NAME}"):
            path = bundle / entry.path
            yield parse_expected(read_bytes(path), where=str(path))


def _as_whole(model: ExpectedModel, largest: float) -> ExpectedModel:
    # What the cache's type and the order of additions do besides is another server's matter too.
    return replace(model, kind="merged", kl_bound=largest + NOISE["bfloat16"])


def _read_bounds(path: Path) -> Mapping[tuple[str, str], float]:
    """Returns (adapter, file name) → largest divergence from the truth, in nats."""
    try:
        targets = read_json_object(path, max_bytes=_MAX_PROOF_BYTES)["targets"]
        return dict(_bounds(targets))
    except (InputError, KeyError, TypeError, AttributeError, ValueError):
        # A bundle may be handed on without its report.
        return {}


def _bounds(targets: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str], float]]:
    for target in targets:
        for variant in target["variants"]:
            behaviour = variant["behaviour"]
            largest = None if behaviour is None else behaviour["kl_max"]
            if isinstance(largest, float) and math.isfinite(largest):
                yield (target["name"], Path(variant["path"]).name), largest
