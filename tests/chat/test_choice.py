"""The choice between a Go template and a model's own chat template, on token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packager.chat.choice import ChatChoice, choose, render_all
from packager.chat.conversation import CONVERSATIONS
from packager.chat.rendering import token_ids
from packager.errors import InputError
from packager.modelfile import parse_modelfile, plan_modelfile, render_modelfile
from tests.chat import tokenizer as small
from tests.chat.golang import render_go
from tests.chat.tokenizer import make_tokenizer
from tests.llamacpp_source import llamacpp_source

BY_NAME = {conversation.name: conversation for conversation in CONVERSATIONS}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IM = {"bos": None, "eos": "<|im_end|>", "special": ["<|im_start|>"]}


def published(name: str) -> str:
    """Returns a real chat template that llama.cpp carries for its own tests."""
    path = llamacpp_source() / "models" / "templates" / f"{name}.jinja"
    return path.read_text(encoding="utf-8")


def assert_go_says_the_same(tokenizer: Any, choice: ChatChoice) -> None:
    """Compares token ids of the chosen template, run by Go, with those of the model's own."""
    renderings, _ = render_all(tokenizer)
    template = parse_modelfile(
        render_modelfile(plan_modelfile("a.gguf", choice, context_length=64))
    ).template
    assert template == choice.go_template
    texts = render_go([(template, BY_NAME[item.conversation]) for item in renderings])
    for rendering, text in zip(renderings, texts, strict=True):
        bos = tokenizer.bos_token if choice.adds_bos else ""
        assert token_ids(tokenizer, bos + text) == rendering.ids, rendering.conversation
    assert choice.checked == tuple(rendering.conversation for rendering in renderings)


@pytest.mark.parametrize(
    ("family", "jinja", "options", "refused"),
    [
        ("chatml", CHATML, IM, ()),
        ("llama3", small.LLAMA3, {"special": ["<|eot_id|>", "<|start_header_id|>"]}, ()),
        ("llama2", small.LLAMA2, {}, ()),
        ("mistral", small.MISTRAL, {}, ("system", "turns", "blanks")),
        ("zephyr", small.ZEPHYR, {"eos": "<|endoftext|>"}, ()),
        ("command-r", small.COMMAND_R, {"special": ["<|END_OF_TURN_TOKEN|>"]}, ()),
        ("phi4", small.PHI4, {"special": ["<|im_end|>", "<|im_sep|>"]}, ()),
        ("alpaca", small.ALPACA, {}, ()),
        ("vicuna", small.VICUNA, {}, ()),
    ],
)
@pytest.mark.parametrize("plain_bos", [False, True])
def test_every_family(
    family: str, jinja: str, options: dict[str, Any], refused: tuple[str, ...], plain_bos: bool
) -> None:
    if plain_bos:
        options = {**options, "bos": options.get("bos") or "<s>", "plain_bos": True}
    tokenizer = make_tokenizer(jinja, **options)
    choice = choose(tokenizer, [])
    assert (choice.family, choice.refused) == (family, refused)
    assert (choice.requires, choice.guarded, choice.jinja) == ("", False, jinja)
    assert_go_says_the_same(tokenizer, choice)


@pytest.mark.parametrize(
    ("name", "family", "capabilities", "refused"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", "qwen2.5", ("tools",), ()),
        ("Qwen-Qwen3-0.6B", "qwen3", ("tools", "thinking"), ()),
        ("google-gemma-2-2b-it", "gemma", (), ("system", "turns", "blanks")),
        ("microsoft-Phi-3.5-mini-instruct", "phi3", (), ()),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral-tools", ("tools",), ()),
    ],
)
def test_published_templates(
    name: str, family: str, capabilities: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    special = ["<|im_start|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<think>"]
    tokenizer = make_tokenizer(published(name), special=special)
    choice = choose(tokenizer, [])
    assert (choice.family, choice.capabilities, choice.refused) == (family, capabilities, refused)
    assert_go_says_the_same(tokenizer, choice)


def test_real_tokenizer_with_its_own_system_message(smollm2_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_base, local_files_only=True)
    choice = choose(tokenizer, [2])
    assert choice.family == "chatml"
    assert '"You are a helpful AI assistant named SmolLM, trained by' in choice.go_template
    assert (choice.stops, choice.end_ids) == (("<|im_end|>",), (2,))
    assert "%" not in choice.go_template
    assert_go_says_the_same(tokenizer, choice)


@pytest.mark.parametrize(
    "jinja",
    [
        CHATML.replace("<|im_end|>\n", "<|im_end|> \n"),
        CHATML.replace("m['content']", "m['content'] | trim"),
        CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n\n'"),
        CHATML.replace("m['content']", "m['content'] | replace('\u200d', '')"),
        CHATML + "{% set x = tools %}",
        "{{ strftime_now('%Y-%m-%d') }}" + CHATML,
    ],
)
def test_what_differs_keeps_its_own_template(jinja: str) -> None:
    choice = choose(make_tokenizer(jinja, **IM), [])
    assert (choice.family, choice.go_template, choice.requires) == ("", "", "0.30.0")
    assert choice.jinja.endswith(jinja)
    assert choice.stops == ("<|im_end|>",)


def test_template_that_ollama_would_replace_is_guarded() -> None:
    jinja = published("meta-llama-Llama-3.1-8B-Instruct")
    tokenizer = make_tokenizer(jinja, special=["<|eot_id|>"])
    choice = choose(tokenizer, [])
    assert (choice.family, choice.guarded, choice.requires) == ("", True, "0.30.0")
    assert choice.jinja != jinja
    before, _ = render_all(tokenizer)
    tokenizer.chat_template = choice.jinja
    after, _ = render_all(tokenizer)
    assert after == before


def test_first_token_stands_once() -> None:
    writes = make_tokenizer(small.LLAMA3)
    silent = choose(writes, [], adds_bos=False)
    assert silent.go_template.startswith('{{ "<s>" }}')
    assert not silent.adds_bos
    adding = choose(writes, [], adds_bos=True)
    assert adding.adds_bos
    assert "<s>" not in adding.go_template
    # A tokenizer that adds it to plain text, and a template that does not write it.
    other = choose(make_tokenizer(CHATML, eos="<|im_end|>", plain_bos=True), [])
    assert not other.adds_bos
    assert "<s>" not in other.go_template


def test_stops_are_what_follows_an_answer() -> None:
    llama3 = make_tokenizer(
        small.LLAMA3, eos="<|end_of_text|>", special=["<|eot_id|>", "<|eom_id|>"]
    )
    numbers = llama3.convert_tokens_to_ids(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
    choice = choose(llama3, numbers)
    assert choice.stops == ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")
    assert choice.end_ids == (numbers[2], numbers[0], numbers[1])
    unknown = choose(llama3, [10_000_000])
    assert unknown.stops == ("<|eot_id|>", "<|end_of_text|>")
    plain = make_tokenizer(small.ALPACA.replace(" + eos_token", ""))
    plain.eos_token = None
    assert choose(plain, []).stops == ("### Instruction:",)


def test_without_a_chat_template_only_the_end_is_known() -> None:
    choice = choose(make_tokenizer(""), [])
    assert (choice.stops, choice.family, choice.jinja, choice.requires) == (("</s>",), "", "", "")
    assert choice.checked == ()


def test_named_templates() -> None:
    choice = choose(make_tokenizer({"default": CHATML, "tool_use": "{{ tools }}"}, **IM), [])
    assert (choice.family, choice.named) == ("chatml", ("tool_use", "{{ tools }}"))
    with pytest.raises(InputError, match="default one"):
        choose(make_tokenizer({"rag": CHATML}), [])


def test_bad_templates_are_refused() -> None:
    with pytest.raises(InputError, match="does not parse") as caught:
        choose(make_tokenizer("ok\n{% for m in messages %}\n{{ m."), [])
    assert caught.value.where == "line 3"
    with pytest.raises(InputError, match="no conversation at all") as caught:
        choose(make_tokenizer("{{ raise_exception('never') }}"), [])
    assert caught.value.found == "never"
    with pytest.raises(InputError, match="no conversation at all") as caught:
        choose(make_tokenizer("{{ 'x' * 2000000 }}"), [])
    with pytest.raises(InputError, match="no conversation at all"):
        choose(make_tokenizer("{{ messages.__class__.__base__.__subclasses__() }}"), [])
