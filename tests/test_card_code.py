"""The code on a card: it parses, and it runs as it stands, on a small model from disk."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from packager.card import CardFacts, render_card
from tests.card_facts import (
    ADAPTER,
    CARDS,
    GGUF_ADAPTER,
    LOCAL_ADAPTER,
    MERGED,
    OLLAMA,
    OLLAMA_LOCAL,
)
from tests.test_card import HOSTILE, poison

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def blocks(facts: CardFacts, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", render_card(facts), re.DOTALL | re.MULTILINE)


ALL = [
    *(pytest.param(facts, id=name) for name, facts in CARDS.items() if facts.gguf is None),
    pytest.param(replace(MERGED, task_type="SEQ_CLS"), id="classifier"),
    pytest.param(replace(ADAPTER, task_type="SEQ_2_SEQ_LM", has_tokenizer=True), id="seq2seq"),
    *(
        pytest.param(replace(poison(facts, text), repo=text), id=f"hostile-{facts.target}-{number}")
        for facts in (MERGED, ADAPTER)
        for number, text in enumerate(HOSTILE)
    ),
]


@pytest.mark.parametrize("facts", ALL)
def test_python_parses(facts: CardFacts) -> None:
    code = blocks(facts, "python")
    assert len(code) == 2
    for block in code:
        tree = ast.parse(block)
        called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = {ast.unparse(func).split(".")[-1] for func in called}
        assert names <= {
            "from_pretrained", "apply_chat_template", "to", "generate", "print", "decode",
            "BitsAndBytesConfig", "tokenizer", "model", "softmax", "tolist", "enumerate",
        }  # fmt: skip


RECORDERS = "".join(
    f"{name}() {{ printf '%s\\0' {name} \"$@\"; printf '\\0'; }}\n"
    for name in ("pip", "vllm", "curl", "ollama", "llama-server")
)


def commands(facts: CardFacts) -> list[list[str]]:
    """What a shell calls when it runs the card's blocks; nothing but the recorders is in reach."""
    calls = []
    for block in blocks(facts, "bash"):
        done = subprocess.run(
            ["/bin/bash", "-c", RECORDERS + block],
            env={"PATH": ""},
            capture_output=True,
            check=True,
        )
        assert done.stderr == b""
        *made, rest = done.stdout.decode().split("\0\0")
        assert rest == ""
        calls += [call.split("\0") for call in made]
    return calls


@pytest.mark.parametrize("facts", ALL)
def test_a_shell_calls_what_it_should_and_nothing_else(facts: CardFacts) -> None:
    calls = commands(facts)
    assert [call[:2] for call in calls[:2]] == [["pip", "install"]] * 2
    assert [call[0] for call in calls[2:]] in ([], ["vllm", "curl"])
    for call in calls[3:]:
        request = json.loads(call[-1])
        asked = request["messages"][0]["content"] if "messages" in request else request["prompt"]
        assert asked == facts.example_prompt


def test_ollama_gets_the_modelfile_and_llama_cpp_the_file() -> None:
    assert blocks(OLLAMA, "python") == []
    assert commands(OLLAMA) == [
        ["ollama", "create", "smollm2-135m-pirate", "-f", "Modelfile"],
        ["ollama", "run", "smollm2-135m-pirate", OLLAMA.example_prompt],
        ["llama-server", "-m", "pirate-Q4_K_M.gguf", "--jinja"],
    ]
    assert commands(OLLAMA_LOCAL) == [["llama-server", "-m", "fernwald-Q4_0-00001-of-00002.gguf"]]
    assert commands(GGUF_ADAPTER) == [
        ["llama-server", "-m", "base.gguf", "--lora", "pirate-lora-F32.gguf", "--jinja"]
    ]


@pytest.mark.parametrize("text", HOSTILE)
def test_ollama_is_called_with_words_only(text: str) -> None:
    calls = commands(poison(OLLAMA, text))
    assert [call[0] for call in calls] == ["ollama", "ollama", "llama-server"]
    assert calls[0][2:] == [calls[1][2], "-f", "Modelfile"]


def test_vllm_gets_the_pinned_base_and_the_adapter() -> None:
    assert commands(replace(ADAPTER, name="pirate"))[2] == [
        "vllm", "serve", "meta-llama/Llama-3.2-1B-Instruct", "--revision", ADAPTER.base.commit,
        "--enable-lora", "--max-lora-rank", "64", "--lora-modules", "pirate=pirates/llama-pirate",
    ]  # fmt: skip


def test_a_name_that_is_no_plain_word_goes_to_vllm_as_json() -> None:
    module = commands(replace(ADAPTER, name="a=b 海盗 'x'"))[2][-1]
    assert json.loads(module) == {"name": "a=b 海盗 'x'", "path": "pirates/llama-pirate"}


# -- really run -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A base, an adapter that changes it much, and the two merged, each in a folder."""
    root = tmp_path_factory.mktemp("card")
    # So small a model is slowed down, not sped up, by threads that wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    base.save_pretrained(root / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained(root / "adapter")
    adapted.merge_and_unload().save_pretrained(root / "merged")
    for name in ("base", "adapter", "merged"):
        tokenizer.save_pretrained(root / name)
    yield {name: str(root / name) for name in ("base", "adapter", "merged")}
    torch.set_num_threads(threads)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def greedy(folders: dict[str, str], prompt: str, *, adapted: bool = True) -> str:
    """128 greedy tokens of base + adapter, without `generate`, caches or merged weights."""
    model = AutoModelForCausalLM.from_pretrained(folders["base"]).eval()
    if adapted:
        model = PeftModel.from_pretrained(model, folders["adapter"]).eval()
    tokenizer = byte_tokenizer()
    tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
    length = tokens.shape[1]
    with torch.no_grad():
        for _ in range(128):
            following = model(input_ids=tokens, use_cache=False).logits[:, -1].argmax(-1)
            tokens = torch.cat([tokens, following[:, None]], dim=1)
    return str(tokenizer.decode(tokens[0, length:]))


def substitute(code: str, facts: CardFacts, folders: dict[str, str]) -> str:
    """Puts folders in the place of the Hub's names; nothing else is changed."""
    here = folders["merged" if facts.target == "merged" else "adapter"]
    for name, folder in (
        (facts.repo or "USER/NAME", here),
        (facts.base.repo or "path/to/base", folders["base"]),
    ):
        code = code.replace(f'"{name}"', repr(folder))
    return code


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "card", "exec"), names)
    return names


RUNS = [
    pytest.param(MERGED, id="merged"),
    pytest.param(replace(MERGED, has_chat_template=False), id="merged without template"),
    pytest.param(ADAPTER, id="adapter on a pinned base"),
    pytest.param(replace(ADAPTER, has_tokenizer=True), id="adapter with its tokenizer"),
    pytest.param(LOCAL_ADAPTER, id="adapter on a local base"),
]


@pytest.mark.parametrize("facts", RUNS)
def test_the_first_example_answers_as_base_and_adapter(
    facts: CardFacts, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "Où est 北京 ?"
    facts = replace(facts, example_prompt=prompt)
    run(substitute(blocks(facts, "python")[0], facts, folders), {})
    asked = f"<user>{prompt}<assistant>" if facts.has_chat_template else prompt
    answer = capsys.readouterr().out
    assert answer == greedy(folders, asked) + "\n"
    assert answer != greedy(folders, asked, adapted=False) + "\n"


@pytest.mark.parametrize("facts", [MERGED, ADAPTER])
def test_the_4_bit_example_continues_the_first(
    facts: CardFacts, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, four_bit = (substitute(code, facts, folders) for code in blocks(facts, "python"))
    question, separator, answer = first.partition("\nmessages = ")
    assert separator
    names = run(question + "\n" + four_bit + separator + answer, {})
    model = names["model"]
    kinds = {type(module).__name__ for module in model.modules()}
    assert "Linear4bit" in kinds
    assert isinstance(model, PeftModel) == (facts.target == "adapter")
    assert len(capsys.readouterr().out) > 1


def test_the_pinned_commit_reaches_the_base() -> None:
    for block in blocks(ADAPTER, "python"):
        calls = [n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call)]
        on_base = [c for c in calls if c.args and ast.unparse(c.args[0]) == "BASE"]
        assert on_base
        for call in on_base:
            pinned = {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert pinned["revision"] == "BASE_COMMIT"
