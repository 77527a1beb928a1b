"""What a plan is made from: values that other rooms read from disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packager.adapter import AdapterSpec
from packager.base import BaseIndex
from packager.manifest import Evidence


@dataclass(frozen=True)
class AdapterSource:
    """An adapter under its name in the release.

    Attributes:
        name: In the release; a file name.
        spec: The adapter.
        files: Tokenizer files and the like beside its weights: name → bytes.
        token_count: Largest token id of its tokenizer plus one, or None without a tokenizer.
        has_chat_template: Whether its tokenizer brings one, in a file of its own or not.
    """

    name: str
    spec: AdapterSpec
    files: Mapping[str, int]
    token_count: int | None
    has_chat_template: bool = False


@dataclass(frozen=True)
class BaseSource:
    """The base of a release.

    Attributes:
        title: What to call it.
        evidence: How it is known.
        license: Of the release.
        index: Its tensors.
        files: Configuration and tokenizer files: name → bytes.
        documents: Licence files that travel along: name → bytes.
        token_count: As of an adapter.
    """

    title: str
    evidence: Evidence
    license: str
    index: BaseIndex
    files: Mapping[str, int]
    documents: Mapping[str, int]
    token_count: int | None
