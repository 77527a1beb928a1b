"""The Modelfile: round trips, Ollama's reading of odd texts, and what is refused by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.errors import UnsafeInputError
from packager.modelfile import (
    Message,
    Modelfile,
    ModelfileError,
    Parameter,
    parse_create,
    parse_modelfile,
    render_create,
    render_modelfile,
)
from packager.modelfile.grammar import Command, parse_commands
from packager.modelfile.printable import is_printable
from packager.modelfile.value import PARAMETER_TYPES

T = TypeVar("T")

DIGEST = "sha256:" + "5" * 64
SMALL = Modelfile("./tiny.gguf")

# Full of what is hard to quote.
TEXTS = st.text(st.sampled_from('ab:#é🙂\'"" \t\n\r\\\u200d\u00a0'), max_size=12) | st.text()
NUMBERS = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(-3e38, 3e38, allow_nan=False),
    "bool": st.booleans(),
}


@st.composite
def modelfiles(draw: st.DrawFn) -> Modelfile:
    names = draw(st.lists(st.sampled_from(sorted(PARAMETER_TYPES)), unique=True))
    parameters = [
        Parameter(name, draw(NUMBERS[PARAMETER_TYPES[name]]))
        for name in names
        if name not in ("stop", "typical_p")
    ]
    parameters += [Parameter("stop", stop) for stop in draw(st.lists(TEXTS, max_size=3))]
    roles = st.sampled_from(["system", "user", "assistant"])
    return Modelfile(
        from_=draw(st.sampled_from(["./tiny.gguf", "./Ünïcode name.gguf", "llama3.2:1b", "o/n"])),
        parameters=tuple(draw(st.permutations(parameters))),
        template=draw(TEXTS),
        system=draw(TEXTS),
        messages=tuple(draw(st.lists(st.builds(Message, roles, TEXTS), max_size=2))),
        licenses=tuple(draw(st.lists(TEXTS, max_size=2))),
        requires=draw(st.sampled_from(["", "0.30.0", "0.14", "1.2.3-rc.1+b"])),
    )


def attempt(action: Callable[[], T]) -> tuple[T | None, ModelfileError | None]:
    try:
        return action(), None
    except ModelfileError as problem:
        return None, problem


@given(modelfiles())
def test_round_trip_or_refusal(value: Modelfile) -> None:
    text, problem = attempt(lambda: render_modelfile(value))
    if problem is not None:
        assert problem.found
        assert "create.json" in problem.hint
    else:
        assert text is not None
        assert text.endswith("\n")
        assert parse_modelfile(text) == value


@given(modelfiles())
def test_request_carries_everything(value: Modelfile) -> None:
    files = {value.from_[2:]: DIGEST} if value.from_.startswith("./") else {}
    read, digests = parse_create(render_create(value, files), where="create.json")
    singles = [parameter for parameter in value.parameters if parameter.name != "stop"]
    stops = [parameter for parameter in value.parameters if parameter.name == "stop"]
    assert read == replace(value, parameters=(*singles, *stops))
    assert digests == files


@given(st.text(st.sampled_from("FROM from SYSTEM \n\t\"'#x"), max_size=40) | st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    commands, problem = attempt(lambda: parse_commands(text))
    assert (problem is None) != (commands is None)
    kept = "".join(command.value for command in commands or ())
    assert all(is_printable(letter) or letter in "\t\r\n" for letter in kept)


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("FROM x", [Command("from", "x")]),
        ("  \n# a comment\r\n\tfRoM   x \t \r\n", [Command("from", "x")]),
        ("FROM x # no comment", [Command("from", "x # no comment")]),
        ("FROM 'x'", [Command("from", "'x'")]),
        ('SYSTEM "a\\n\\"b"', [Command("system", 'a\\n\\"b')]),
        ('SYSTEM "a" b"\n', [Command("system", 'a" b')]),
        ('SYSTEM """\na"""', [Command("system", "\na")]),
        ('SYSTEM """a""""', [Command("system", 'a"')]),
        ('SYSTEM "a\nb"  \n', [Command("system", "a\nb")]),
        ('SYSTEM """a"""\nFROM x', [Command("system", "a"), Command("from", "x")]),
        ('SYSTEM """a\r\nb\r"""', [Command("system", "a\r\nb\r")]),
        ("SYSTEM \nFROM x", [Command("system", ""), Command("from", "x")]),
        ("SYSTEM a\u200db\u00a0c", [Command("system", "abc")]),
        ("\ufeffFROM x", [Command("from", "x")]),
        ("\u200bFROM x", [Command("from", "x")]),
        ("PARAMETER stop  a b ", [Command("parameter", "a b", "stop")]),
        ("PARAMETER  stop a", [Command("parameter", "stop a", "")]),
        ("MESSAGE user a: b", [Command("message", "a: b", "user")]),
        ("adapter y\nrenderer z", [Command("adapter", "y"), Command("renderer", "z")]),
    ],
)
def test_reads_as_ollama_does(text: str, commands: list[Command]) -> None:
    assert list(parse_commands(text)) == commands


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("FROM x\nQUANTIZE q4", "no such command", "line 2"),
        ("FROM\n", "a space is missing", "line 1"),
        ("FROM", "a space is missing", "line 1"),
        ("K \n", "no such command", "line 1"),
        ('FROM x\n\nSYSTEM """a\n', "never|not closed", "line 3"),
        ('SYSTEM """"a"', "not closed", "line 1"),
        ("MESSAGE User a", "role", "MESSAGE"),
        ("PARAMETER top-p 1", "a space is missing", "line 1"),
    ],
)
def test_refuses_as_ollama_does(text: str, what: str, where: str) -> None:
    with pytest.raises(ModelfileError, match=what) as caught:
        parse_commands(text)
    assert where in caught.value.where


def test_the_last_of_a_kind_counts() -> None:
    text = (
        "FROM x\nSYSTEM a\nSYSTEM b\nTEMPLATE c\nTEMPLATE d\nLICENSE e\nLICENSE f\n"
        "PARAMETER top_k 1\nPARAMETER stop g\nPARAMETER mirostat 1\nPARAMETER stop h\n"
        "PARAMETER top_k 2\nPARAMETER use_mmap T\nPARAMETER temperature .5e1\nREQUIRES v0.30.1\n"
    )
    assert parse_modelfile(text) == Modelfile(
        from_="x",
        parameters=(
            Parameter("stop", "g"),
            Parameter("stop", "h"),
            Parameter("top_k", 2),
            Parameter("use_mmap", True),
            Parameter("temperature", 5.0),
        ),
        template="d",
        system="b",
        licenses=("e", "f"),
        requires="0.30.1",
    )


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("PARAMETER tfs_z 1", "no such parameter"),
        ("PARAMETER  top_k 1", "no such parameter"),
        ("PARAMETER top_k 1.5", "not of its type"),
        ("PARAMETER top_k 9223372036854775808", "not of its type"),
        ("PARAMETER temperature hot", "not of its type"),
        ("PARAMETER temperature 1e39", "not of its type"),
        ("PARAMETER use_mmap yes", "not of its type"),
        ("REQUIRES 0.30.00", "semantic version"),
        ("REQUIRES latest", "semantic version"),
        ("FROM y", "one FROM"),
        ("ADAPTER ./lora.gguf", "more than a finished model"),
        ("DRAFT ./draft.gguf", "more than a finished model"),
        ("PARSER qwen3", "more than a finished model"),
    ],
)
def test_refused_lines(line: str, what: str) -> None:
    with pytest.raises(ModelfileError, match=what):
        parse_modelfile(f"FROM x\n{line}\n")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (replace(SMALL, system='a\n"""\nb'), '"""'),
        (replace(SMALL, system='"a"""\nb'), '"""'),
        (replace(SMALL, system="family: 👩\u200d👧"), "U+200D"),
        (replace(SMALL, template="a\u00a0b"), "U+00A0"),
        (replace(SMALL, licenses=("GNU\x0c",)), "U+000C"),
        (replace(SMALL, messages=(Message("user", "\u3000"),)), "U+3000"),
        (replace(SMALL, parameters=(Parameter("stop", "\u2028"),)), "U+2028"),
        (replace(SMALL, system="\ud83d"), "U+D83D"),
        (replace(SMALL, from_="./a\u200bb.gguf"), "U+200B"),
    ],
)
def test_what_the_grammar_cannot_carry_is_named(value: Modelfile, found: str) -> None:
    with pytest.raises(ModelfileError) as caught:
        render_modelfile(value)
    assert found in caught.value.found
    assert "create.json" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["", "tiny.gguf", "~/x.gguf", "/x.gguf", "\\x", "a b", "./", "./../x.gguf", "'x'", "~"]
)
def test_paths_that_would_be_taken_for_names_are_refused(name: str) -> None:
    with pytest.raises((ModelfileError, UnsafeInputError)):
        render_modelfile(Modelfile(name))


@pytest.mark.parametrize(
    "parameters",
    [
        (Parameter("tfs_z", 1.0),),
        (Parameter("mirostat", 1),),
        (Parameter("typical_p", 0.5),),
        (Parameter("top_k", 1.5),),
        (Parameter("top_k", True),),
        (Parameter("temperature", float("nan")),),
        (Parameter("temperature", 1e39),),
        (Parameter("stop", 1),),
        (Parameter("top_k", 1), Parameter("top_k", 2)),
    ],
)
def test_parameters_are_checked_before_they_are_written(parameters: tuple[Parameter]) -> None:
    value = replace(SMALL, parameters=parameters)
    with pytest.raises(ModelfileError):
        render_modelfile(value)
    with pytest.raises(ModelfileError):
        render_create(value, {"tiny.gguf": DIGEST})


def test_request_is_what_the_server_takes() -> None:
    value = Modelfile(
        "./tiny.gguf",
        parameters=(Parameter("num_ctx", 2048), Parameter("stop", "<|im_end|>")),
        system='a\n"""\nb 👩\u200d👧',
        licenses=("MIT",),
    )
    assert json.loads(render_create(value, {"tiny.gguf": DIGEST}, model="me/tiny")) == {
        "model": "me/tiny",
        "files": {"tiny.gguf": DIGEST},
        "system": 'a\n"""\nb 👩\u200d👧',
        "parameters": {"num_ctx": 2048, "stop": ["<|im_end|>"]},
        "license": ["MIT"],
    }


@pytest.mark.parametrize("files", [{}, {"other.gguf": DIGEST}, {"tiny.gguf": "sha256:5"}])
def test_request_needs_the_files_that_it_names(files: dict[str, str]) -> None:
    with pytest.raises(ModelfileError):
        render_create(SMALL, files)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"from": 1}',
        '{"from": "x", "adapters": {}}',
        '{"from": "x", "files": []}',
        '{"from": "x", "messages": [1]}',
        '{"from": "x", "messages": [{"role": "tool", "content": "a"}]}',
        '{"from": "x", "license": [1]}',
        '{"from": "x", "parameters": {"top_k": "1"}}',
        '{"from": "x", "parameters": {"stop": 1}}',
        '{"from": "x", "requires": "new"}',
        '{"files": {"../x.gguf": "sha256:' + "5" * 64 + '"}}',
    ],
)
def test_strange_requests_are_refused(text: str) -> None:
    with pytest.raises((ModelfileError, UnsafeInputError)):
        parse_create(text, where="create.json")


def test_one_licence_may_stand_alone() -> None:
    value, _ = parse_create('{"from": "x", "license": "MIT"}', where="create.json")
    assert value.licenses == ("MIT",)


def test_reading_is_linear() -> None:
    start = time.perf_counter()
    with pytest.raises(ModelfileError):
        parse_commands('SYSTEM """' + '"\n' * 500_000)
    assert time.perf_counter() - start < 10
