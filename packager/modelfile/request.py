"""The body of POST /api/create: what a Modelfile says, as JSON, which carries every text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from packager.modelfile.value import (
    Message,
    Modelfile,
    ModelfileError,
    Parameter,
    check_modelfile,
    check_parameter,
    check_role,
    check_version,
)
from packager.untrusted import parse_json_object

_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_FIELDS = frozenset(
    {
        "model", "from", "files", "template", "system", "parameters", "messages", "license",
        "requires",
    }
)  # fmt: skip


def render_create(value: Modelfile, files: Mapping[str, str], *, model: str = "") -> str:
    """Returns the request that creates the model, once its files have been uploaded as blobs.

    Source: ollama v0.33.0, api/types.go, `CreateRequest`; server/create.go.

    Args:
        value: What the Modelfile says.
        files: The name of every file → `sha256:<64 hex digits>`. Empty where `value` names a
            model instead.
        model: What to call it, or empty: whoever sends the request fills it in.

    Raises:
        ModelfileError: Ollama would not take the value, or `files` and FROM do not agree.
    """
    check_modelfile(value)
    _check_files(value.from_, files)
    parameters = {item.name: item.value for item in value.parameters if item.name != "stop"}
    stops = [item.value for item in value.parameters if item.name == "stop"]
    fields: dict[str, Any] = {
        "model": model,
        "from": "" if files else value.from_,
        "files": dict(files),
        "template": value.template,
        "system": value.system,
        "parameters": {**parameters, **({"stop": stops} if stops else {})},
        "messages": [
            {"role": message.role, "content": message.content} for message in value.messages
        ],
        "license": list(value.licenses),
        "requires": value.requires,
    }
    present = {name: field for name, field in fields.items() if field}
    return json.dumps(present, ensure_ascii=False, indent=2) + "\n"


def parse_create(text: str, *, where: str) -> tuple[Modelfile, dict[str, str]]:
    """Returns what a request of `render_create` says: the value, and digests by file name.

    Args:
        text: The request.
        where: Its name, for errors.

    Raises:
        InputError: It is not such a request.
    """
    fields = parse_json_object(text, where=where, constants=False)
    files = _mapping(fields, "files", where)
    try:
        if not fields.keys() <= _FIELDS:
            raise ModelfileError("unknown fields", found=str(sorted(fields.keys() - _FIELDS)))
        value = Modelfile(
            from_=f"./{next(iter(files))}" if files else _text(fields, "from"),
            parameters=tuple(_parameters(_mapping(fields, "parameters", where))),
            template=_text(fields, "template"),
            system=_text(fields, "system"),
            messages=tuple(
                Message(check_role(item["role"]), _text(item, "content"))
                for item in fields.get("messages", [])
            ),
            licenses=_licenses(fields.get("license", [])),
            requires=check_version(_text(fields, "requires")) if "requires" in fields else "",
        )
        check_modelfile(value)
        _check_files(value.from_, files)
    except (ModelfileError, AttributeError, KeyError, TypeError) as problem:
        raise ModelfileError(
            "this is no request that creates a model",
            where=where,
            found=str(problem)[:200],
            hint="take it from a bundle as it was written",
        ) from problem
    return value, files


def _licenses(found: Any) -> tuple[str, ...]:
    """Takes one licence or a list of them.

    Source: ollama v0.33.0, server/create.go, createModel: a string or an array.
    """
    return tuple(map(_plain_text, [found] if isinstance(found, str) else found))


def _check_files(from_: str, files: Mapping[str, str]) -> None:
    local = from_.startswith("./")
    if local != bool(files) or (local and from_[2:] not in files):
        raise ModelfileError(
            "FROM and the files of the model do not agree",
            where="files",
            expected=from_[:200] if local else "no files",
            found=str(sorted(files))[:200],
        )
    wrong = next((name for name, digest in files.items() if not _is_digest(digest)), None)
    if wrong is not None:
        raise ModelfileError(
            "a digest is not one",
            where=f"files, {wrong}"[:200],
            expected="sha256: and 64 hex digits",
            found=repr(files[wrong])[:200],
        )


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _parameters(values: Mapping[str, Any]) -> list[Parameter]:
    listed = [
        Parameter(name, item)
        for name, value in values.items()
        for item in (value if name == "stop" else [value])
    ]
    for parameter in listed:
        check_parameter(parameter)
    return listed


def _mapping(fields: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = fields.get(name, {})
    if isinstance(value, dict):
        return value
    raise ModelfileError(
        "a field of the request is no object", where=f"{where}, {name}", found=repr(value)[:200]
    )


def _text(fields: Mapping[str, Any], name: str) -> str:
    return _plain_text(fields.get(name, ""))


def _plain_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{value!r:.100} is no text")
