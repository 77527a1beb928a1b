"""What a plan is made from: values that other rooms read from disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packager.adapter import AdapterSpec
from packager.adapter.spec import CONFIG_NAME, WEIGHTS_NAME
from packager.base import BaseIndex
from packager.errors import LorapackError
from packager.gguf.general import GeneralFacts
from packager.gguf.value import GgufKey
from packager.manifest import Evidence
from packager.plan.option import MergeBase
from packager.quantisation.training import TrainingQuantisation
from packager.serving.value import Chat, Origin


@dataclass(frozen=True)
class GgufSource:
    """What a GGUF model holds besides what its configuration and weights tell.

    Attributes:
        facts: Where the model comes from.
        keys: Of its sampling and its tokenizer, in order.
        problems: Why no GGUF can be made of it at all.
        unmapped: Why its tokenizer cannot be written here, though another converter might.
    """

    facts: GeneralFacts
    keys: tuple[GgufKey, ...] = ()
    unmapped: tuple[LorapackError, ...] = ()
    problems: tuple[LorapackError, ...] = ()


@dataclass(frozen=True)
class AdapterSource:
    """An adapter under its name in the release.

    Attributes:
        name: In the release; a file name.
        spec: The adapter.
        files: Tokenizer files and the like beside its weights: name → bytes.
        token_count: Largest token id of its tokenizer plus one, or None without a tokenizer.
        has_chat_template: Whether its tokenizer brings one, in a file of its own or not.
        chat: How it is talked to, where a server is wanted.
        digest: `sha256:<hex>` over its files, likewise.
        gguf: What a GGUF of it holds, where one is wanted.
        training: How the base was quantised while it was trained, or None where nothing says so.
        labels: Names of its classes, where a `config.json` beside its weights gives them.
        problem_type: Of its classes, likewise.
    """

    name: str
    spec: AdapterSpec
    files: Mapping[str, int]
    token_count: int | None
    has_chat_template: bool = False
    chat: Chat | None = None
    digest: str = ""
    gguf: GgufSource | None = None
    training: TrainingQuantisation | None = None
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of all files of the adapter that take part in a release."""
        return (CONFIG_NAME, WEIGHTS_NAME, *self.files)


@dataclass(frozen=True)
class BaseSource:
    """The base of a release.

    Attributes:
        title: What to call it.
        evidence: How it is known.
        license: Of the release.
        index: Its tensors, as adapters are merged onto them.
        files: Configuration and tokenizer files: name → bytes.
        documents: Licence files that travel along: name → bytes.
        origin: Where it can be had, where a server is wanted.
        chat: As of an adapter.
        token_count: As of an adapter.
        merge_base: Which form of the base `index` is, or None where there is only one.
        training: How bitsandbytes makes the form `dequantized` of a 16-bit base; else None.
    """

    title: str
    evidence: Evidence
    license: str
    index: BaseIndex
    files: Mapping[str, int]
    documents: Mapping[str, int]
    token_count: int | None
    origin: Origin | None = None
    chat: Chat | None = None
    merge_base: MergeBase | None = None
    training: TrainingQuantisation | None = None
