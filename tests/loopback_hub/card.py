"""The Hub's check of a model card's metadata, as far as its answers are known.

Source: huggingface.co/docs/hub/model-cards and repositories-licenses, and the error texts that
the site shows on model pages ("license" must be one of […]).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import yaml

LICENSES = frozenset(
    [
        "apache-2.0",
        "mit",
        "openrail",
        "bigscience-openrail-m",
        "creativeml-openrail-m",
        "bigscience-bloom-rail-1.0",
        "bigcode-openrail-m",
        "afl-3.0",
        "artistic-2.0",
        "bsl-1.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "c-uda",
        "cc",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cdla-sharing-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "wtfpl",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "agpl-3.0",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "isc",
        "h-research",
        "intel-research",
        "lppl-1.3c",
        "ms-pl",
        "apple-ascl",
        "apple-amlr",
        "mpl-2.0",
        "odc-by",
        "odbl",
        "openmdw-1.0",
        "openmdw-1.1",
        "openrail++",
        "osl-3.0",
        "postgresql",
        "ofl-1.1",
        "ncsa",
        "unlicense",
        "zlib",
        "pddl",
        "lgpl-lr",
        "deepfloyd-if-license",
        "fair-noncommercial-research-license",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "llama3.3",
        "llama4",
        "grok2-community",
        "gemma",
        "unknown",
        "other",
    ]
)
RELATIONS = ("adapter", "merge", "quantized", "finetune")
_BLOCK = re.compile(r"\A\s*---\r?\n(.*?)(?:\r?\n)---\s*(?:\r?\n|\Z)", re.DOTALL)
_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")


def check_card(content: str) -> tuple[list[str], list[str]]:
    """Returns the errors and the warnings for a README.md."""
    match = _BLOCK.match(content)
    if match is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as problem:
        return [f"bad YAML: {str(problem).splitlines()[0]}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["metadata must be an object"], []
    return [
        f'"{key}" {text}'
        for key, (is_valid, text) in _RULES.items()
        for value in _several(data.get(key))
        if not is_valid(value)
    ], []


def _several(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _fits(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "license": (lambda value: value in LICENSES, f"must be one of [{', '.join(sorted(LICENSES))}]"),
    "base_model": (_fits(_MODEL), "is not valid. Use a model id from https://hf.co/models"),
    "base_model_relation": (
        lambda value: value in RELATIONS,
        f"must be one of [{', '.join(RELATIONS)}]",
    ),
    "language": (_fits(_LANGUAGE), "must be an ISO 639 code, code, or multilingual"),
    "tags": (_is_text, "must be an array of strings"),
    "datasets": (_is_text, "must be an array of strings"),
    "library_name": (_is_text, "must be a string"),
    "pipeline_tag": (_is_text, "must be a string"),
}
