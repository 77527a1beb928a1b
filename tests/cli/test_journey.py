"""The whole way in real processes, with names in several scripts: lock, plan, release, verify."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from packager.digest import hash_file
from packager.frontmatter import parse_front_matter
from tests.cli.command import Done, lorapack
from tests.models import make_adapter, make_llama

TEMPLATE = (
    "{% for message in messages %}〈{{ message['role'] }}〉{{ message['content'] }} 🏴‍☠️ नमस्ते\n"
    "{% endfor %}"
)
CARD = """---
license: apache-2.0
---
# 底座 🏴‍☠️
"""
ADAPTER_CARD = """---
language:
- zh
- en
datasets:
- org/海盗
tags:
- 海盗 话
---
# 适配器 🏴‍☠️
"""


@dataclass(frozen=True)
class Journey:
    """What was made, and what each command answered."""

    base: Path
    adapter: Path
    bundle: Path
    done: dict[str, Done]


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    folder = tmp_path_factory.mktemp("旅程 🏴‍☠️")
    base = make_llama(folder / "底座 模型")
    (base / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (base / "README.md").write_text(CARD, encoding="utf-8")
    (base / "LICENSE").write_text("Apache License 2.0 — 许可\n", encoding="utf-8")
    adapter = make_adapter(base, folder / "适配器 🏴‍☠️")
    (adapter / "README.md").write_text(ADAPTER_CARD, encoding="utf-8")
    bundle = folder / "发布 包"
    named = f"海盗={adapter}"
    done = {
        "lock": lorapack("lock", adapter, "--base", base, "--json"),
        "inspect": lorapack("inspect", adapter, "--json"),
        "plan": lorapack("plan", named, "--json"),
        "release": lorapack("release", named, "--out", bundle, "--require-lock", "--json"),
        "verify": lorapack("verify", bundle, "--json"),
    }
    return Journey(base, adapter, bundle, done)


@pytest.mark.parametrize("command", ["lock", "inspect", "plan", "release", "verify"])
def test_each_command_answers_with_one_document(journey: Journey, command: str) -> None:
    done = journey.done[command]
    assert done.code == 0, done.err
    assert done.json["schema_version"] == 1
    assert done.out.count("\n{") == 0
    assert "\\u" not in done.out


@pytest.mark.parametrize("command", ["lock", "inspect", "plan", "release", "verify"])
def test_no_progress_bar_is_drawn_into_a_pipe(journey: Journey, command: str) -> None:
    err = journey.done[command].err
    assert "\r" not in err
    assert "%|" not in err
    assert "it/s" not in err
    assert all(line.startswith(("note: ", "warning: ")) for line in err.splitlines()), err


def test_names_survive_into_every_document(journey: Journey) -> None:
    done = journey.done
    assert done["inspect"].json["adapter"] == str(journey.adapter)
    assert done["plan"].json["base"] == "底座 模型"
    assert done["release"].json["bundle"] == str(journey.bundle)
    assert done["release"].json["targets"] == {
        "adapter/海盗": str(journey.bundle / "adapter/海盗"),
        "merged/海盗": str(journey.bundle / "merged/海盗"),
        "vllm/海盗": str(journey.bundle / "vllm"),
    }
    manifest = json.loads((journey.bundle / "lorapack.json").read_text(encoding="utf-8"))
    assert manifest["base"]["directory"] == str(journey.base)
    assert manifest["base"]["evidence"] == "lock"
    assert manifest["adapters"][0]["name"] == "海盗"
    assert manifest["adapters"][0]["directory"] == str(journey.adapter)
    kept_as_trained = set((journey.bundle / "vllm/originals").rglob("*.json"))
    for path in set(journey.bundle.rglob("*.json")) - kept_as_trained:
        assert "\\u" not in path.read_text(encoding="utf-8") or path.name == "tokenizer.json"


def test_texts_survive_into_every_file(journey: Journey) -> None:
    merged = journey.bundle / "merged/海盗"
    for folder in (merged, journey.bundle / "adapter/海盗"):
        for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "LICENSE"):
            assert (folder / name).read_bytes() == (journey.base / name).read_bytes()
        card = (folder / "README.md").read_text(encoding="utf-8")
        metadata = parse_front_matter(card, where="README.md")
        assert metadata["license"] == "apache-2.0"
        assert "海盗" in card
        assert metadata["language"] == ["zh", "en"]
        assert "海盗 话" in metadata["tags"]
        assert str(journey.base) not in card
    assert "海盗" in (journey.bundle / "report/report.html").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(merged)
    message = {"role": "用户", "content": "你好"}
    text = tokenizer.apply_chat_template([message], tokenize=False)
    assert text == "〈用户〉你好 🏴‍☠️ नमस्ते\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    AutoModelForCausalLM.from_pretrained(merged)


def test_the_proof_measured_the_behaviour(journey: Journey) -> None:
    for command in ("release", "verify"):
        document = journey.done[command].json
        proof = document.get("proof", document)
        assert proof["passed"] is True
        (merged,) = [item for item in proof["targets"] if item["target"] == "merged"]
        assert merged["name"] == "海盗"
        assert merged["behaviour"]["tokens"] > 100
        assert 0 <= merged["behaviour"]["effect_lost"] < 0.05
        assert merged["behaviour"]["base_kl_mean"] > 0.01
    written = json.loads((journey.bundle / "report/VERIFY.json").read_text(encoding="utf-8"))
    assert written == journey.done["release"].json["proof"]


def test_a_released_name_is_not_written_over(journey: Journey) -> None:
    before = {path: hash_file(path) for path in journey.bundle.rglob("*") if path.is_file()}
    done = lorapack("release", journey.adapter, "--out", journey.bundle)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: the output exists already")
    assert {path: hash_file(path) for path in before} == before


def test_verify_of_a_damaged_bundle_is_exit_code_1_with_the_proof(
    journey: Journey, tmp_path: Path
) -> None:
    bundle = shutil.copytree(journey.bundle, tmp_path / "包")
    path = bundle / "merged/海盗/config.json"
    path.write_bytes(path.read_bytes() + b" ")
    done = lorapack("verify", bundle, "--level", "files", "--json", "--report", tmp_path / "报告")
    assert done.code == 1
    assert done.json["passed"] is False
    assert "merged/海盗/config.json has" in done.err
    assert "\nhint: " in done.err
    written = json.loads((tmp_path / "报告/VERIFY.json").read_text(encoding="utf-8"))
    assert written == done.json
    assert (tmp_path / "报告/report.html").stat().st_size > 1000


def test_the_one_step_form(journey: Journey, tmp_path: Path) -> None:
    out = tmp_path / "合并"
    arguments = ["--base_model_path", journey.base, "--lora_adapter_path", journey.adapter]
    done = lorapack("merge", *arguments, "--output_path", "合并", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (done.json["schema_version"], done.json["output"]) == (1, str(out))
    files = done.json["files"]
    assert sorted(files) == sorted(path.name for path in out.iterdir())
    assert "README.md" not in files
    for name, entry in files.items():
        assert entry == {"size": (out / name).stat().st_size, "sha256": hash_file(out / name)}
        released = journey.bundle / "merged/海盗" / name
        assert (out / name).read_bytes() == released.read_bytes()
