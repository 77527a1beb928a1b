"""A Modelfile as a value: what a model is made from and how it is run."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from packager.errors import InputError
from packager.untrusted import check_relative_name

ParameterValue = int | float | bool | str
ParameterType = Literal["int", "float", "bool", "text"]
Role = Literal["system", "user", "assistant"]

ROLES: tuple[Role, ...] = get_args(Role)

PARAMETER_TYPES: dict[str, ParameterType] = {
    **dict.fromkeys(
        (
            "num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch",
            "num_gpu", "main_gpu", "num_thread", "draft_num_predict",
        ),
        "int",
    ),
    **dict.fromkeys(
        (
            "top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty",
            "frequency_penalty",
        ),
        "float",
    ),
    "use_mmap": "bool",
    "stop": "text",
}  # fmt: skip
"""Every parameter that Ollama knows. `stop` may stand several times.

Source: ollama v0.33.0, api/types.go, `Options` and `Runner`.
"""

IGNORED_PARAMETERS = frozenset(
    {
        "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock",
        "mirostat", "mirostat_tau", "mirostat_eta",
    }
)  # fmt: skip
"""Parameters that Ollama reads past with a warning. Source: parser/parser.go."""

REFUSED_PARAMETERS = frozenset({"typical_p"})
"""Parameters that newer Ollama answers with an error. Source: ollama v0.34, server/create.go."""

_MAX_INT = 2**63 - 1
_MAX_FLOAT32 = 3.4028235677973366e38
_VERSION = re.compile(
    r"v?(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)"
    r"(-(?!0[0-9]+(?:\.|\+|$))[0-9A-Za-z-]+(\.(?!0[0-9]+(?:\.|\+|$))[0-9A-Za-z-]+)*)?"
    r"(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?)?)?"
)
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/-]*")


class ModelfileError(InputError):
    """A Modelfile is not one, or cannot carry what it should."""

    kind = "modelfile"


@dataclass(frozen=True)
class Parameter:
    """One PARAMETER line.

    Attributes:
        name: One of `PARAMETER_TYPES`.
        value: Of that parameter's type.
    """

    name: str
    value: ParameterValue


@dataclass(frozen=True)
class Message:
    """One MESSAGE line: a turn that stands before every conversation.

    Attributes:
        role: Who says it.
        content: The text.
    """

    role: Role
    content: str


@dataclass(frozen=True)
class Modelfile:
    """A model as `ollama create` makes it.

    Attributes:
        from_: A file beside the Modelfile, as `./name.gguf`, or the name of a model.
        parameters: In order; only `stop` more than once.
        template: Of Go's text/template, or empty: the model's own chat template.
        system: The system message, or empty.
        messages: Turns before every conversation.
        licenses: Whole texts.
        requires: The least version of Ollama, such as `0.30.0`, or empty.
    """

    from_: str
    parameters: tuple[Parameter, ...] = ()
    template: str = ""
    system: str = ""
    messages: tuple[Message, ...] = ()
    licenses: tuple[str, ...] = ()
    requires: str = ""


def check_modelfile(value: Modelfile) -> None:
    """Refuses a value that Ollama would not take, or take for something else.

    Raises:
        ModelfileError: The model's name or file, a parameter, role or version is not valid.
        UnsafeInputError: The file's name leads outside of the folder.
    """
    _check_from(value.from_)
    for parameter in value.parameters:
        check_parameter(parameter)
        if parameter.name in REFUSED_PARAMETERS:
            raise ModelfileError(
                f"newer Ollama refuses the parameter {parameter.name}",
                where="Modelfile",
                hint="leave it out",
            )
    counts = Counter(parameter.name for parameter in value.parameters)
    twice = next((name for name, count in counts.items() if count > 1 and name != "stop"), None)
    if twice is not None:
        raise ModelfileError("a parameter is given twice", where=f"PARAMETER {twice}")
    for message in value.messages:
        check_role(message.role)
    if value.requires:
        check_version(value.requires)


def check_parameter(parameter: Parameter) -> None:
    """Refuses an unknown parameter, or a value of the wrong type or out of range.

    Raises:
        ModelfileError: As said.
    """
    kind = PARAMETER_TYPES.get(parameter.name)
    if kind is None:
        raise ModelfileError(
            "Ollama knows no such parameter",
            where=f"PARAMETER {parameter.name}"[:200],
            expected=", ".join(PARAMETER_TYPES),
            hint="leave it out",
        )
    if not _fits(kind, parameter.value):
        raise ModelfileError(
            "a parameter's value is not of its type",
            where=f"PARAMETER {parameter.name}",
            expected={"int": "a 64-bit integer", "float": "a finite 32-bit float"}.get(kind, kind),
            found=repr(parameter.value)[:200],
        )


def check_role(role: str) -> Role:
    """Returns a role that Ollama knows.

    Raises:
        ModelfileError: It is another one.
    """
    for known in ROLES:
        if role == known:
            return known
    raise ModelfileError(
        "the role of a message is unknown",
        where="MESSAGE",
        expected=", ".join(ROLES),
        found=repr(role)[:200],
    )


def check_version(text: str) -> str:
    """Returns a version without its `v`.

    Source: golang.org/x/mod/semver, IsValid: major, or major.minor, or all three with suffixes.

    Raises:
        ModelfileError: It is not a semantic version.
    """
    if _VERSION.fullmatch(text):
        return text.removeprefix("v")
    raise ModelfileError(
        "the version of Ollama is no semantic version",
        where="REQUIRES",
        expected="such as 0.30.0",
        found=repr(text)[:200],
    )


def _fits(kind: ParameterType, value: ParameterValue) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and -_MAX_INT - 1 <= value <= _MAX_INT
    return isinstance(value, float | int) and math.isfinite(value) and abs(value) < _MAX_FLOAT32


def _check_from(text: str) -> None:
    """A path that does not exist is silently taken for a name, and then pulled from the network."""
    if text.startswith("./"):
        check_relative_name(text[2:], where="FROM")
    elif not _MODEL_NAME.fullmatch(text) or text.endswith((".gguf", ".bin", ".safetensors")):
        raise ModelfileError(
            "FROM names neither a file beside the Modelfile nor a model",
            where="FROM",
            expected="./name.gguf, or a model's name",
            found=repr(text)[:200],
            hint="begin the name of a file with ./",
        )
