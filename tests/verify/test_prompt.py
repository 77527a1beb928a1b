"""The prompt set and its way through real tokenizers and templates."""

from __future__ import annotations

import hashlib
import re
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from packager.verify.model import load_tokenizer
from packager.verify.prompt import (
    MAX_PROMPT_TOKENS,
    PROMPT_SET,
    PROMPTS,
    Message,
    Prompt,
    cut_prompt,
    encode_prompt,
)

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)
SYSTEM = next(prompt for prompt in PROMPTS if prompt.name == "system")
BYTES = 256


def _tokenizer(folder: Path, template: str | None) -> Any:
    """A byte tokenizer of the real library, saved and loaded again as a release's is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


def test_a_changed_set_needs_a_new_name() -> None:
    digest = hashlib.sha256(repr([astuple(prompt) for prompt in PROMPTS]).encode()).hexdigest()
    known = {
        "lorapack-prompts-1": "dedf1b85374b58caf122d51113834834517fdd369d563111e81c49431e6d5bd5",
    }
    assert known[PROMPT_SET] == digest, "proofs made with this name were made on other prompts"


def test_the_set_covers_what_it_should() -> None:
    assert len(PROMPTS) == len({prompt.name for prompt in PROMPTS}) == 16
    text = "".join(m.content for prompt in PROMPTS for m in prompt.messages)
    for script in ("[一-鿿]", "[ぁ-ん]", "[\u0600-\u06ff]", "[\u0900-\u097f]", "[а-я]", "🌈"):
        assert re.search(script, text), script
    assert {m.role for p in PROMPTS for m in p.messages} == {"system", "user", "assistant"}
    assert all(prompt.messages[-1].role == "user" for prompt in PROMPTS)


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.name)
def test_goes_through_the_template_in_every_script(prompt: Prompt, tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, CHATML)
    ids = encode_prompt(prompt, tokenizer, vocabulary=BYTES)
    rendered = "".join(f"<{m.role}>{m.content}</>" for m in prompt.messages) + "<assistant>"
    expected = cut_prompt(tokenizer(rendered)["input_ids"], MAX_PROMPT_TOKENS)
    assert ids == expected
    if len(ids) < MAX_PROMPT_TOKENS:
        assert tokenizer.decode(ids) == rendered


def test_a_template_without_system_role_gets_it_with_the_user(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, NO_SYSTEM)
    text = tokenizer.decode(encode_prompt(SYSTEM, tokenizer, vocabulary=BYTES))
    assert text == (
        "<user>You are a careful librarian. Reply briefly and politely.\n\n"
        "Can you recommend a book about the sea?</><assistant>"
    )


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('never') }}", "{{ messages.nothing.there }}", "{% if %}", "{{ 1 // 0 }}",
     "{{ messages.__class__.__mro__ }}"],
)  # fmt: skip
def test_a_template_that_takes_nothing_leaves_plain_text(template: str, tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, template)
    text = tokenizer.decode(encode_prompt(SYSTEM, tokenizer, vocabulary=BYTES))
    assert text == "\n".join(message.content for message in SYSTEM.messages)


def test_without_template_or_tokenizer(tmp_path: Path) -> None:
    prompt = Prompt("two", (Message("system", "é"), Message("user", "🌈?")))
    plain = _tokenizer(tmp_path, None)
    assert plain.decode(encode_prompt(prompt, plain, vocabulary=BYTES)) == "é\n🌈?"
    assert bytes(encode_prompt(prompt, None, vocabulary=BYTES)).decode() == "é\n🌈?"
    assert max(encode_prompt(prompt, None, vocabulary=40)) < 40
    assert encode_prompt(Prompt("none", (Message("user", ""),)), None, vocabulary=9) == (0,)


def test_cuts_in_the_middle_so_that_start_and_question_stay() -> None:
    assert cut_prompt(range(10), 4) == (0, 7, 8, 9)
    assert cut_prompt(range(10), 1) == (0,)
    assert cut_prompt(range(4), 4) == (0, 1, 2, 3)
    assert len(encode_prompt(Prompt("l", (Message("user", "x" * 999),)), None, vocabulary=BYTES)) \
        == MAX_PROMPT_TOKENS  # fmt: skip
