"""The Modelfile of a release."""

from __future__ import annotations

from dataclasses import replace

import pytest

from packager.chat import ChatChoice
from packager.errors import InputError
from packager.modelfile import parse_modelfile, plan_modelfile, render_modelfile

JINJA = ChatChoice(
    family="",
    go_template="",
    stops=("<|im_end|>", "</s>"),
    end_ids=(2,),
    requires="0.30.0",
    jinja="{{ x }}",
    named=(),
    guarded=False,
    adds_bos=False,
    capabilities=(),
    checked=("question", "system"),
    refused=(),
)
GO = replace(JINJA, family="chatml", go_template="{{ .Prompt }}\n", requires="")


def test_own_chat_template_needs_an_ollama_that_runs_it() -> None:
    value = plan_modelfile("tiny-q8_0.gguf", JINJA, context_length=2048, system="Be brief.")
    text = render_modelfile(value)
    assert text == (
        "FROM ./tiny-q8_0.gguf\n"
        'SYSTEM """Be brief."""\n'
        "PARAMETER num_ctx 2048\n"
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "</s>"\n'
        "REQUIRES 0.30.0\n"
    )
    assert parse_modelfile(text) == value


def test_proved_template_is_given() -> None:
    text = render_modelfile(plan_modelfile("a.gguf", GO, context_length=131_072))
    assert 'TEMPLATE """{{ .Prompt }}\n"""\nPARAMETER num_ctx 8192\n' in text
    assert "REQUIRES" not in text


def test_licences_keep_every_word() -> None:
    lgpl = "GNU LESSER\u00a0GENERAL PUBLIC LICENSE\n\x0c\ufeffVersion 3\n"
    value = plan_modelfile("a.gguf", GO, context_length=512, licenses=(lgpl, "© Ünï\n"))
    assert value.licenses == ("GNU LESSER GENERAL PUBLIC LICENSE\nVersion 3\n", "© Ünï\n")
    assert parse_modelfile(render_modelfile(value)) == value


def test_a_system_message_needs_a_template_that_takes_one() -> None:
    refusing = replace(JINJA, refused=("system",))
    with pytest.raises(InputError, match="no system message"):
        plan_modelfile("a.gguf", refusing, context_length=512, system="Be brief.")
    assert plan_modelfile("a.gguf", refusing, context_length=512).system == ""
