"""The Modelfile's text: writer and parser of the value."""

from __future__ import annotations

import re

from packager.modelfile.grammar import Command, Style, parse_commands, render_command
from packager.modelfile.value import (
    IGNORED_PARAMETERS,
    PARAMETER_TYPES,
    Message,
    Modelfile,
    ModelfileError,
    Parameter,
    ParameterValue,
    check_modelfile,
    check_parameter,
    check_role,
    check_version,
)

_STYLES: dict[str, Style] = {
    "from": "bare",
    "parameter": "bare",
    "requires": "bare",
    "message": "line",
    "template": "text",
    "system": "text",
    "license": "text",
}
_INT = re.compile("[+-]?[0-9]{1,40}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,9})?")
# Source: Go, strconv.ParseBool.
_BOOLS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def render_modelfile(value: Modelfile) -> str:
    """Returns the text that `ollama create -f` takes.

    Raises:
        ModelfileError: Ollama would not take the value, or its grammar cannot carry it;
            `render_create` may still.
        UnsafeInputError: The model's file lies outside of the folder.
    """
    check_modelfile(value)
    return "".join(
        # Stops are quoted, so that blanks at their ends are seen.
        render_command(command, "line" if command.label == "stop" else _STYLES[command.name])
        for command in _commands(value)
    )


def parse_modelfile(text: str) -> Modelfile:
    """Returns the value of a Modelfile, as Ollama understands it.

    Of commands that replace each other, the last counts, and parameters that Ollama ignores are
    left out. Numbers are decimal: Go's other spellings are refused.

    Raises:
        ModelfileError: The text is no Modelfile, or asks for what the value has no place for
            (ADAPTER, DRAFT, RENDERER, PARSER, a second FROM).
    """
    commands = parse_commands(text)
    last = {command.name: command.value for command in commands}
    homeless = next((command.name for command in commands if command.name not in _STYLES), None)
    if homeless is not None:
        raise ModelfileError(
            "the Modelfile asks for more than a finished model",
            where=homeless.upper(),
            hint="merge the adapter, or leave the line out",
        )
    if sum(command.name == "from" for command in commands) != 1:
        raise ModelfileError(
            "a Modelfile has one FROM line",
            where="Modelfile",
            found=f"{sum(command.name == 'from' for command in commands)} of them",
            hint="name the model's file: FROM ./name.gguf",
        )
    return Modelfile(
        from_=last["from"],
        parameters=_parse_parameters(commands),
        template=last.get("template", ""),
        system=last.get("system", ""),
        messages=tuple(
            Message(check_role(command.label), command.value)
            for command in commands
            if command.name == "message"
        ),
        licenses=tuple(command.value for command in commands if command.name == "license"),
        requires=check_version(last["requires"]) if "requires" in last else "",
    )


def _commands(value: Modelfile) -> list[Command]:
    optional = (("template", value.template), ("system", value.system))
    return [
        Command("from", value.from_),
        *(Command(name, text) for name, text in optional if text),
        *(Command("parameter", _show(parameter), parameter.name) for parameter in value.parameters),
        *(Command("message", message.content, message.role) for message in value.messages),
        *(Command("license", text) for text in value.licenses),
        *([Command("requires", value.requires)] if value.requires else []),
    ]


def _show(parameter: Parameter) -> str:
    if isinstance(parameter.value, bool):
        return str(parameter.value).lower()
    return str(parameter.value)


def _parse_parameters(commands: tuple[Command, ...]) -> tuple[Parameter, ...]:
    parameters: list[Parameter] = []
    for command in commands:
        if command.name != "parameter" or command.label in IGNORED_PARAMETERS:
            continue
        if command.label != "stop":
            parameters = [item for item in parameters if item.name != command.label]
        parameters.append(_parse_parameter(command))
    return tuple(parameters)


def _parse_parameter(command: Command) -> Parameter:
    kind = PARAMETER_TYPES.get(command.label, "text")
    value: ParameterValue = command.value
    if kind == "int" and _INT.fullmatch(command.value):
        value = int(command.value)
    elif kind == "float" and _FLOAT.fullmatch(command.value):
        value = float(command.value)
    elif kind == "bool":
        value = _BOOLS.get(command.value, command.value)
    parameter = Parameter(command.label, value)
    check_parameter(parameter)
    return parameter
