"""What the gate is told: `gate.json` of the bundle, key files, and limits from the environment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lorapack_gate.expected import Expected, ExpectedError, parse_expected

SCHEMA_VERSION = 1
DOCUMENT_NAME = "gate.json"

MIN_KEY_LENGTH = 16
DEFAULT_BODY_BYTES = 4 << 20
DEFAULT_CONCURRENCY = 256
DEFAULT_DRAIN_SECONDS = 60

_MAX_FILE_BYTES = 64 << 20
_MAX_KEY_FILE_BYTES = 1 << 16


class SettingError(Exception):
    """The gate cannot start: what is wrong, in words for who starts the server."""


@dataclass(frozen=True)
class Model:
    """A name that the server answers to.

    Attributes:
        name: As clients give it.
        kind: `base` or `adapter`.
        chat_template: Text of the model's own chat template, or None for the server's.
        stop_token_ids: Tokens that end its answers besides the base's own.
        chat: Whether there is a template that renders conversations for it.
    """

    name: str
    kind: str
    chat_template: str | None
    stop_token_ids: tuple[int, ...]
    chat: bool


@dataclass(frozen=True)
class Setting:
    """Everything that the gate goes by.

    Attributes:
        models: In the bundle's order.
        base: The name of the base among them; empty where only whole models are served.
        version: Of vLLM, that the bundle was checked with.
        expected: The proof's answers, or None where the bundle has none.
        allow_unproven: Whether to be ready without them.
        keys: SHA-256 of every API key; empty only where `without_key` is set.
        metrics_keys: SHA-256 of the keys that open the metrics and nothing else.
        without_key: Whether peers on this machine need no key, and nobody else is answered.
        max_body_bytes: Largest body of a request.
        max_concurrency: Most requests in flight.
        drain_seconds: The longest that requests in flight are waited for at the end.
    """

    models: tuple[Model, ...]
    base: str
    version: str
    expected: Expected | None
    allow_unproven: bool
    keys: tuple[bytes, ...]
    metrics_keys: tuple[bytes, ...]
    without_key: bool
    max_body_bytes: int
    max_concurrency: int
    drain_seconds: int

    def find_model(self, name: str) -> Model | None:
        """Returns the model of that name."""
        return next((model for model in self.models if model.name == name), None)


def read_setting(environment: Mapping[str, str], home: Path) -> Setting:
    """Reads what the gate goes by.

    Args:
        environment: LORAPACK_… as the README of the bundle lists them.
        home: The folder of `gate.json`.

    Raises:
        SettingError: A file or variable is missing, unreadable, or not what it should be.
    """
    document = _read_document(home / DOCUMENT_NAME)
    without_key = _switch(environment, "LORAPACK_INSECURE_NO_AUTH")
    key_file = environment.get("LORAPACK_API_KEY_FILE", "")
    if without_key and key_file:
        raise SettingError(
            "LORAPACK_API_KEY_FILE and LORAPACK_INSECURE_NO_AUTH contradict each other: "
            "take one away"
        )
    if not key_file and not without_key:
        raise SettingError(
            "no API key: name a file that holds one in LORAPACK_API_KEY_FILE "
            "(make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))')"
        )
    metrics_file = environment.get("LORAPACK_METRICS_KEY_FILE", "")
    try:
        return Setting(
            models=tuple(_model(item, home) for item in document["models"]),
            base=document["base"] or "",
            version=_text(document["vllm_version"]),
            expected=_read_expected(document["expected"], home),
            allow_unproven=_switch(environment, "LORAPACK_ALLOW_UNPROVEN"),
            keys=read_keys(Path(key_file)) if key_file else (),
            metrics_keys=read_keys(Path(metrics_file)) if metrics_file else (),
            without_key=without_key,
            max_body_bytes=_count(environment, "LORAPACK_MAX_BODY_BYTES", DEFAULT_BODY_BYTES),
            max_concurrency=_count(environment, "LORAPACK_MAX_CONCURRENCY", DEFAULT_CONCURRENCY),
            drain_seconds=_count(environment, "LORAPACK_DRAIN_SECONDS", DEFAULT_DRAIN_SECONDS),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise SettingError(f"{home / DOCUMENT_NAME} is damaged: {problem}") from problem


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Returns the SHA-256 of every key of a file, which holds one key a line.

    Raises:
        SettingError: The file is missing, unreadable or empty, or a key is short or not printable.
    """
    lines = _read(path, _MAX_KEY_FILE_BYTES).decode("ascii", errors="replace").splitlines()
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise SettingError(f"the key file {path} is empty: write a key into it")
    for key in keys:
        if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingError(
                f"the key file {path} holds a key that is not one: expected at least "
                f"{MIN_KEY_LENGTH} printable ASCII characters without spaces, one key a line"
            )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(path, _MAX_FILE_BYTES))
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
    return _read(home / name, _MAX_FILE_BYTES)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as problem:
        raise SettingError(f"{path} cannot be read: {problem.strerror or problem}") from problem
    if len(data) > limit:
        raise SettingError(f"{path} is larger than {limit} bytes")
    return data


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected text, found {value!r:.80}")
    return value


def _switch(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "")
    if value not in ("", "0", "1"):
        raise SettingError(f"{name} is {value!r:.40}: expected 1, or nothing")
    return value == "1"


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, "")
    if not value:
        return default
    if not value.isdecimal() or int(value[:18]) < 1:
        raise SettingError(f"{name} is {value!r:.40}: expected a whole number above 0")
    return int(value[:18])
