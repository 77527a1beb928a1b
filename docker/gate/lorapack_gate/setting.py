"""What the gate is told: the bundle's document, key files, and limits from the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lorapack_gate.address import parse_address
from lorapack_gate.document import Model, Neighbour, read_document
from lorapack_gate.expected import Expected
from lorapack_gate.file import SettingError
from lorapack_gate.keyfile import read_keys
from lorapack_gate.origin import ANY, parse_origins

DEFAULT_BODY_BYTES = 4 << 20
DEFAULT_CONCURRENCY = 256
DEFAULT_DRAIN_SECONDS = 60


@dataclass(frozen=True)
class Setting:
    """Everything that the gate goes by.

    Attributes:
        models: Of this server, in the bundle's order.
        base: The name of the base among them; empty where only whole models are served.
        version: Of vLLM, that the bundle was checked with.
        expected: The proof's answers, or None where the bundle has none.
        neighbours: Other servers of the bundle, to which requests for their models are handed on.
        allow_unproven: Whether to be ready without the proof's answers.
        keys: SHA-256 of every API key; empty only where `without_key` is set.
        metrics_keys: SHA-256 of the keys that open the metrics and nothing else.
        without_key: Whether peers on this machine need no key, and nobody else is answered.
        origins: Web sites whose pages may ask this server from within a browser.
        max_body_bytes: Largest body of a request.
        max_concurrency: Most requests in flight.
        drain_seconds: The longest that requests in flight are waited for at the end.
    """

    models: tuple[Model, ...]
    base: str
    version: str
    expected: Expected | None
    neighbours: tuple[Neighbour, ...]
    allow_unproven: bool
    keys: tuple[bytes, ...]
    metrics_keys: tuple[bytes, ...]
    without_key: bool
    origins: tuple[str, ...]
    max_body_bytes: int
    max_concurrency: int
    drain_seconds: int

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that may be asked for: this server's models, then its neighbours'."""
        own = [model.name for model in self.models]
        return (*own, *(name for neighbour in self.neighbours for name in neighbour.models))

    def find_model(self, name: str) -> Model | None:
        """Returns this server's model of that name."""
        return next((model for model in self.models if model.name == name), None)

    def find_neighbour(self, name: str) -> Neighbour | None:
        """Returns the neighbour that answers as the model of that name."""
        return next((each for each in self.neighbours if name in each.models), None)


def read_setting(environment: Mapping[str, str], home: Path) -> Setting:
    """Reads what the gate goes by.

    Args:
        environment: LORAPACK_… as the README of the bundle lists them.
        home: The folder of `gate.json`.

    Raises:
        SettingError: A file or variable is missing, unreadable, or not what it should be.
    """
    document = read_document(home)
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
    return Setting(
        models=document.models,
        base=document.base,
        version=document.version,
        expected=document.expected,
        neighbours=tuple(_placed(document.neighbours, environment)),
        allow_unproven=_switch(environment, "LORAPACK_ALLOW_UNPROVEN"),
        keys=read_keys(Path(key_file)) if key_file else (),
        metrics_keys=read_keys(Path(metrics_file)) if metrics_file else (),
        without_key=without_key,
        origins=_origins(environment, without_key=without_key),
        max_body_bytes=_count(environment, "LORAPACK_MAX_BODY_BYTES", DEFAULT_BODY_BYTES),
        max_concurrency=_count(environment, "LORAPACK_MAX_CONCURRENCY", DEFAULT_CONCURRENCY),
        drain_seconds=_count(environment, "LORAPACK_DRAIN_SECONDS", DEFAULT_DRAIN_SECONDS),
    )


def _placed(
    neighbours: tuple[Neighbour, ...], environment: Mapping[str, str]
) -> Iterator[Neighbour]:
    """Yields the neighbours where the environment says that they are: `name=url,name=url`."""
    variable = "LORAPACK_NEIGHBOURS"
    told = [item for item in environment.get(variable, "").split(",") if item]
    places = {}
    for name, _, url in (item.partition("=") for item in told):
        if name not in {neighbour.name for neighbour in neighbours}:
            raise SettingError(f"{variable} names {name!r:.80}, which is no neighbour")
        try:
            places[name] = parse_address(url)
        except ValueError as problem:
            raise SettingError(f"{variable}: {problem}") from problem
    for neighbour in neighbours:
        yield replace(neighbour, address=places.get(neighbour.name, neighbour.address))


def _origins(environment: Mapping[str, str], *, without_key: bool) -> tuple[str, ...]:
    variable = "LORAPACK_ALLOWED_ORIGINS"
    try:
        origins = parse_origins(environment.get(variable, ""))
    except ValueError as problem:
        raise SettingError(f"{variable}: {problem}") from problem
    if without_key and ANY in origins:
        raise SettingError(
            f"{variable} is {ANY}: without an API key, every page that a browser on this machine "
            "shows could ask; list the pages that may"
        )
    return origins


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
