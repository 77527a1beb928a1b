"""Options of GGUF targets, and what becomes of bad ones: one line, a hint, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from packager.cli.main import lorapack
from packager.gguf.mixture import QUANTS
from packager.gguf.value import GgufModel, GgufTensor
from packager.modelfile import parse_create, parse_modelfile
from packager.plan import parse_plan
from tests.gguf.importance import write_gguf_imatrix
from tests.gguf.reading import read_keys

Small = tuple[Path, Path]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(lorapack, [str(item) for item in arguments])


def release(small: Small, out: Path, *more: str | Path) -> Result:
    base, adapter = small
    return run("release", adapter, "--base", base, "--target", "ollama", "--out", out,
               "--no-behaviour", *more)  # fmt: skip


def write_imatrix(path: Path, widths: dict[str, int]) -> None:
    tensors = tuple(GgufTensor(name, (1, width), ("x",)) for name, width in widths.items())
    write_gguf_imatrix(path, GgufModel("llama", (), tensors, (), 2))


def copied(small: Small, folder: Path) -> Small:
    shutil.copytree(small[0], folder / "base")
    shutil.copytree(small[1], folder / "pirate")
    return folder / "base", folder / "pirate"


def test_a_plan_tells_every_tensor_and_survives_json(small: Small) -> None:
    base, adapter = small
    done = run("plan", adapter, "--base", base, "--quant", "q4_k_m", "--quant", "Q8_0", "--json")
    assert done.exit_code == 0, done.stderr
    plan = parse_plan(done.stdout, where="stdout")
    assert [target.target for target in plan.targets] == ["adapter", "merged", "ollama", "vllm"]
    gguf = plan.targets[2].gguf
    assert gguf is not None
    assert [file.path for file in gguf.files] == ["pirate-Q4_K_M.gguf", "pirate-Q8_0.gguf"]
    types = {item.tensor.name: item.tensor for item in gguf.files[0].tensors}
    assert (types["blk.0.attn_q.weight"].type, types["blk.0.attn_q.weight"].fell_back) == (
        "Q5_0", "Q4_K",
    )  # fmt: skip
    assert types["output_norm.weight"].type == "F32"
    (query,) = [tensor for tensor in gguf.tensors if tensor.name == "blk.0.attn_q.weight"]
    assert (query.transform, query.heads) == ("permute", 4)
    merged = {tensor.name: tensor for tensor in gguf.merged}
    assert merged[query.sources[0]].rule == "lora"
    assert {key.name: key.count for key in gguf.long_keys}["tokenizer.ggml.tokens"] == 49152
    assert len(done.stdout) < 200_000
    assert any("Q4_K as Q5_0" in note and "rows of 64" in note for note in plan.notes)
    text = run("plan", adapter, "--base", base).stdout
    assert "Q5_0  blk.0.attn_q.weight 64×64 instead of Q4_K from model.layers.0" in text
    assert "+ 2·B·A rank 4, permute" in text


def test_the_plan_knows_every_byte(small: Small, tmp_path: Path) -> None:
    done = release(small, tmp_path / "out", "--quant", "Q5_K_M", "--quant", "BF16")
    assert done.exit_code == 0, done.stderr
    plan = run("plan", small[1], "--base", small[0], "--target", "ollama", "--quant", "Q5_K_M",
               "--quant", "BF16", "--json")  # fmt: skip
    (target,) = parse_plan(plan.stdout, where="stdout").targets
    assert target.gguf is not None
    folder = tmp_path / "out/ollama/pirate"
    for file in target.gguf.files:
        assert (folder / file.path).stat().st_size == file.size
    wanted = {file.path for file in (*target.files, *target.gguf.files)}
    assert wanted <= {path.name for path in folder.iterdir()}


def test_threads_do_not_change_a_byte(small: Small, tmp_path: Path) -> None:
    for count in ("1", "3"):
        assert release(small, tmp_path / count, "--threads", count).exit_code == 0
    first, second = (
        (tmp_path / count / "ollama/pirate/pirate-Q4_K_M.gguf").read_bytes() for count in ("1", "3")
    )
    assert first == second


def test_what_ollama_is_told(small: Small, tmp_path: Path) -> None:
    system = "You are a pirate."
    done = release(
        small, tmp_path / "out", "--quant", "Q8_0", "--quant", "Q4_0", "--system", system
    )
    assert done.exit_code == 0, done.stderr
    folder = tmp_path / "out/ollama/pirate"
    assert (folder / "Modelfile").read_text() == (folder / "Modelfile.Q8_0").read_text()
    for quant in ("Q8_0", "Q4_0"):
        recipe = parse_modelfile((folder / f"Modelfile.{quant}").read_text(encoding="utf-8"))
        assert recipe.from_ == f"./pirate-{quant}.gguf"
        assert recipe.system == system
        assert recipe.licenses == ("Text of mit.\n",)
        assert "<|im_end|>" in {item.value for item in recipe.parameters if item.name == "stop"}
        text = (folder / f"create.{quant}.json").read_text(encoding="utf-8")
        created, digests = parse_create(text, where="x")
        assert created == recipe
        manifest = json.loads((tmp_path / "out/lorapack.json").read_text(encoding="utf-8"))
        entries = {item["path"]: item["sha256"] for item in manifest["files"]}
        name = f"pirate-{quant}.gguf"
        assert digests == {name: f"sha256:{entries[f'ollama/pirate/{name}']}"}
    assert manifest["options"] == {"quants": "Q8_0,Q4_0", "system": system}


def test_a_system_message_that_a_modelfile_cannot_carry(small: Small, tmp_path: Path) -> None:
    system = "Draw 👩\u200d👩\u200d👧 only."
    done = release(small, tmp_path / "out", "--system", system)
    assert done.exit_code == 0, done.stderr
    assert "create.json only" in done.stderr
    folder = tmp_path / "out/ollama/pirate"
    assert not list(folder.glob("Modelfile*"))
    created, _ = parse_create((folder / "create.json").read_text(encoding="utf-8"), where="x")
    assert created.system == system


def test_a_large_model_is_split_and_verified(small: Small, tmp_path: Path) -> None:
    done = release(small, tmp_path / "out", "--quant", "F16", "--max-gguf-size", "1MB")
    assert done.exit_code == 0, done.stderr
    folder = tmp_path / "out/ollama/pirate"
    parts = sorted(path.name for path in folder.glob("*.gguf"))
    assert parts[0] == f"pirate-F16-00001-of-{len(parts):05d}.gguf"
    assert len(parts) > 1
    assert f"FROM ./{parts[0]}\n" in (folder / "Modelfile").read_text(encoding="utf-8")
    _, digests = parse_create((folder / "create.json").read_text(encoding="utf-8"), where="x")
    assert sorted(digests) == parts
    again = run("verify", tmp_path / "out", "--level", "weights", "--json")
    assert again.exit_code == 0, again.stderr
    (proof,) = json.loads(again.stdout)["targets"]
    assert [item["quant"] for item in proof["variants"]] == ["F16"]


def test_an_importance_matrix_is_used_named_and_remembered(small: Small, tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    weights = {"blk.0.ffn_down.weight": 128, "blk.1.attn_v.weight": 64}
    write_imatrix(path, weights)
    for name, more in (("with", ["--imatrix", path]), ("without", [])):
        done = release(small, tmp_path / name, "--quant", "Q4_0", *more)
        assert done.exit_code == 0, done.stderr
    files = [tmp_path / name / "ollama/pirate/pirate-Q4_0.gguf" for name in ("with", "without")]
    keys = read_keys(files[0])
    assert keys["quantize.imatrix.file"][1] == "weights.gguf"
    data = [
        {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}
        for path in files
    ]
    assert {name for name in data[0] if data[0][name] != data[1][name]} == set(weights)
    again = run("verify", tmp_path / "with", "--level", "weights", "--json")
    assert again.exit_code == 0, again.stderr + again.stdout


def no_imatrix(small: Small, folder: Path) -> list[str | Path]:
    return ["--imatrix", folder / "nowhere.gguf"]


def damaged_imatrix(small: Small, folder: Path) -> list[str | Path]:
    (folder / "bad.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)
    return ["--imatrix", folder / "bad.gguf"]


def other_imatrix(small: Small, folder: Path) -> list[str | Path]:
    write_imatrix(folder / "other.gguf", {"blk.0.ffn_down.weight": 640})
    return ["--imatrix", folder / "other.gguf"]


def unknown_quant(small: Small, folder: Path) -> list[str | Path]:
    return ["--quant", "Q4_K_XL"]


def unknown_size(small: Small, folder: Path) -> list[str | Path]:
    return ["--max-gguf-size", "big"]


def nan_row(small: Small, folder: Path) -> list[str | Path]:
    path = small[0] / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    return []


def bad_template(small: Small, folder: Path) -> list[str | Path]:
    (small[0] / "chat_template.jinja").write_text("{% for x in %}", encoding="utf-8")
    path = small[0] / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    path.write_text(json.dumps(config), encoding="utf-8")
    return []


def unknown_tokenizer(small: Small, folder: Path) -> list[str | Path]:
    path = small[0] / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["merges"] = document["model"]["merges"][:2000]
    path.write_text(json.dumps(document), encoding="utf-8")
    return []


def small_embedding(small: Small, folder: Path) -> list[str | Path]:
    path = small[0] / "model.safetensors"
    tensors = load_file(path)
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name][:40_000].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    return []


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (no_imatrix, ["nowhere.gguf"]),
        (damaged_imatrix, ["bad.gguf"]),
        (other_imatrix, ["does not fit tensor 'blk.0.ffn_down.weight'", "expected 128", "640"]),
        (unknown_quant, ["unknown quantisation", "'Q4_K_XL'", "Q4_K_M"]),
        (unknown_size, ["--max-gguf-size", "'big'"]),
        (nan_row, ["NaN or infinity", "model.layers.1.mlp.up_proj.weight"]),
        (bad_template, ["chat template"]),
        (unknown_tokenizer, ["hash"]),
        (small_embedding, ["more tokens than the embedding has rows", "40000", "49152"]),
    ],
)
def test_bad_input_is_one_line_with_a_hint_and_leaves_nothing(
    spoil: Callable[[Small, Path], list[Any]], parts: list[str], small: Small, tmp_path: Path
) -> None:
    world = copied(small, tmp_path)
    more = spoil(world, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = release(world, tmp_path / "out", *more)
    assert (done.exit_code, done.stdout) == (1, "")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors
    assert done.stderr.splitlines()[-1].startswith("hint: ")
    for part in parts:
        assert part in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("count", ["0", "-1", "9999", "many"])
def test_threads_out_of_range_are_wrong_usage(count: str, small: Small, tmp_path: Path) -> None:
    done = release(small, tmp_path / "out", "--threads", count)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--threads" in done.stderr


def test_help_and_completion_tell_the_quantisations() -> None:
    text = run("release", "--help").stdout
    for option in ("--quant", "--imatrix", "--threads", "--max-gguf-size", "--system",
                   "--llama-cpp", "--gguf-adapter-type", "gguf-adapter"):  # fmt: skip
        assert option in text
    from packager.cli.option import _complete_quant

    assert _complete_quant(None, None, "q4") == [name for name in QUANTS if name.startswith("Q4")]


def test_inspect_knows_which_architectures_become_gguf(small: Small, tmp_path: Path) -> None:
    base, adapter = copied(small, tmp_path)
    targets = json.loads(run("inspect", adapter, "--base", base, "--json").stdout)["targets"]
    assert (targets["ollama"]["status"], targets["gguf-adapter"]["status"]) == (
        "works", "normalised",
    )  # fmt: skip
    path = base / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"architectures": ["OlmoForCausalLM"]}
    path.write_text(json.dumps(config), encoding="utf-8")
    targets = json.loads(run("inspect", adapter, "--base", base, "--json").stdout)["targets"]
    assert targets["merged"]["status"] == "works"
    assert targets["ollama"]["status"] == targets["gguf-adapter"]["status"] == "not possible"
    assert "--llama-cpp DIR" in targets["ollama"]["reason"]
    assert "ollama: this architecture cannot" in run("inspect", adapter, "--base", base).stdout
