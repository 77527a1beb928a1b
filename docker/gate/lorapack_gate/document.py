"""`gate.json` of a bundle: which models this server answers as, and which its neighbours do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lorapack_gate.address import Address, parse_address
from lorapack_gate.expected import Expected, ExpectedError, parse_expected
from lorapack_gate.file import SettingError, read_file

SCHEMA_VERSION = 1
DOCUMENT_NAME = "gate.json"


@dataclass(frozen=True)
class Model:
    """A name that a server answers to.

    Attributes:
        name: As clients give it.
        kind: `base`, `adapter`, or `merged` for a whole model.
        chat_template: Text of the model's own chat template, or None for the server's.
        stop_token_ids: Tokens that end its answers besides the server's own.
        chat: Whether there is a template that renders conversations for it.
    """

    name: str
    kind: str
    chat_template: str | None
    stop_token_ids: tuple[int, ...]
    chat: bool


@dataclass(frozen=True)
class Neighbour:
    """Another server of the same bundle, to which this one hands requests on.

    Attributes:
        name: Of it.
        address: Where it is reached.
        models: Names of the models that it answers as.
    """

    name: str
    address: Address
    models: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """The whole document, with the files that it names.

    Attributes:
        models: Of this server, in the bundle's order.
        base: The name of the base among them; empty where only whole models are served.
        version: Of vLLM, that the bundle was checked with.
        expected: The proof's answers, or None where the bundle has none.
        neighbours: The other servers.
    """

    models: tuple[Model, ...]
    base: str
    version: str
    expected: Expected | None
    neighbours: tuple[Neighbour, ...]


def read_document(home: Path) -> Document:
    """Reads `gate.json` of a folder, and the files below it that it names.

    Raises:
        SettingError: Something is missing, unreadable, or not what it should be.
    """
    path = home / DOCUMENT_NAME
    raw = _read_json(path)
    try:
        document = Document(
            models=tuple(_model(item, home) for item in raw["models"]),
            base=raw["base"] or "",
            version=_text(raw["vllm_version"]),
            expected=_read_expected(raw["expected"], home),
            neighbours=tuple(_neighbour(item) for item in raw.get("neighbours", ())),
        )
        _check_names(document)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise SettingError(f"{path} is damaged: {problem}") from problem
    return document


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_file(path))
    except (ValueError, RecursionError) as problem:
        raise SettingError(f"{path} is not JSON: {problem}") from problem
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise SettingError(
            f"{path} has another schema: expected schema_version {SCHEMA_VERSION}, found "
            f"{version!r:.40}; use the gate that came with the bundle"
        )
    return dict(document)


def _model(raw: Mapping[str, Any], home: Path) -> Model:
    template = raw["chat_template"]
    stops = raw["stop_token_ids"]
    if not all(type(token) is int for token in stops):
        raise ValueError(f"stop_token_ids {stops!r:.80}")
    return Model(
        name=_text(raw["name"]),
        kind=_text(raw["kind"]),
        chat_template=None if template is None else _read_inside(home, template).decode(),
        stop_token_ids=tuple(stops),
        chat=raw["chat"] is True,
    )


def _neighbour(raw: Mapping[str, Any]) -> Neighbour:
    # What its models need besides their names, its own gate knows.
    return Neighbour(
        name=_text(raw["name"]),
        address=parse_address(_text(raw["url"])),
        models=tuple(_text(item["name"]) for item in raw["models"]),
    )


def _check_names(document: Document) -> None:
    names = [model.name for model in document.models]
    names += [name for neighbour in document.neighbours for name in neighbour.models]
    others = [neighbour.name for neighbour in document.neighbours]
    for told in (names, others):
        if len(set(told)) != len(told):
            raise ValueError(f"a name stands twice among {told!r:.200}")
    if document.base and document.base not in names:
        raise ValueError(f"the base {document.base!r:.80} is none of its models")


def _read_expected(name: str | None, home: Path) -> Expected | None:
    if name is None:
        return None
    text = _read_inside(home, name)
    try:
        return parse_expected(json.loads(text))
    except (ExpectedError, ValueError, RecursionError) as problem:
        raise SettingError(f"{home / name} is damaged: {problem}") from problem


def _read_inside(home: Path, name: str) -> bytes:
    parts = PurePosixPath(_text(name)).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError(f"{name!r:.80} leads out of the bundle")
    return read_file(home / name)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected text, found {value!r:.80}")
    return value
