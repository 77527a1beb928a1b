"""The contract of the command line: exit codes, errors, and stdout for data only."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from packager import errors
from packager.cli.main import _COMMANDS
from packager.cli.main import lorapack as group
from packager.cli.message import render_error
from packager.errors import InputError, LorapackError, RejectedPlanError
from tests.cli.command import ROOT, lorapack
from tests.folders import K_PROJ, PREFIX, Q_PROJ, pair, write_adapter, write_base, write_index

Golden = Callable[[str, str], None]


def run(*arguments: str | Path) -> Result:
    """Runs a command in this process."""
    return CliRunner().invoke(group, [os.fspath(item) for item in arguments])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(tmp_path / "adapter", base_model_name_or_path=str(base))


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = run(command, "--help")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: lorapack {command} ")
    for line in done.stdout.splitlines():
        assert not line.strip().startswith("--") or len(line.split()) > 1


def test_the_group_lists_every_command_with_a_word_on_each() -> None:
    done = lorapack("--help")
    assert (done.code, done.err) == (0, "")
    for command, text in _COMMANDS.items():
        assert f"  {command} " in done.out
        assert text in done.out
    assert lorapack("--version").out.startswith("lorapack, version ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["inspect", "a", "--no-such-option"],
        ["lock", "a"],
        ["plan"],
        ["release", "a"],
        ["release", "a", "--out", "b", "--target", "gguf"],
        ["release", "a", "--out", "b", "--dtype", "int8"],
        ["verify"],
        ["verify", "a", "--level", "everything"],
        ["merge", "--base_model_path", "a"],
        ["publish", "a"],
        ["train"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: lorapack")
    assert "Error: " in done.stderr


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (("lorapack", "in"), ["inspect"]),
        (("lorapack", "release", "--max-s"), ["--max-shard-size"]),
        (("lorapack", "verify", "bundle", "--level", "w"), ["weights"]),
    ],
)
def test_a_shell_completes_commands_options_and_choices(
    line: tuple[str, ...], wanted: list[str]
) -> None:
    variables = {"COMP_WORDS": " ".join(line), "COMP_CWORD": str(len(line) - 1)}
    done = lorapack(environment={"_LORAPACK_COMPLETE": "bash_complete", **variables})
    assert (done.code, done.err) == (0, "")
    assert [row.partition(",")[2] for row in done.out.splitlines()] == wanted
    script = lorapack(environment={"_LORAPACK_COMPLETE": "bash_source"})
    assert "complete -o nosort -F _lorapack_completion lorapack" in script.out


def fail_inspect(folder: Path) -> list[Any]:
    return ["inspect", folder / "nowhere"]


def fail_pickle(folder: Path) -> list[Any]:
    adapter = write_adapter(folder / "pickled")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    return ["inspect", adapter]


def fail_lock(folder: Path) -> list[Any]:
    return ["lock", write_adapter(folder / "a"), "--base", folder / "nowhere"]


def fail_plan(folder: Path) -> list[Any]:
    base = write_base(folder / "base", license_id=None)
    return ["plan", write_adapter(folder / "a"), "--base", base]


def fail_everything(folder: Path) -> list[Any]:
    base = write_base(folder / "base")
    shapes = pair("model.model.layers.0.self_attn.q_proj") | pair(K_PROJ, width=5) | {"x": (1,)}
    adapter = write_adapter(folder / "a", shapes)
    return ["plan", f"a b={adapter}", "--base", base, "--target", "merged", "--target", "vllm"]


def fail_feature(folder: Path) -> list[Any]:
    adapter = write_adapter(folder / "a", alora_invocation_tokens=[5])
    base = write_base(folder / "base")
    return ["release", adapter, "--base", base, "--target", "merged", "--out", folder / "out"]


def fail_require_lock(folder: Path) -> list[Any]:
    adapter = write_adapter(folder / "a")
    return ["plan", adapter, "--base", write_base(folder / "base"), "--require-lock"]


def fail_out(folder: Path) -> list[Any]:
    (folder / "out").mkdir()
    adapter = write_adapter(folder / "a")
    return ["release", adapter, "--base", write_base(folder / "base"), "--out", folder / "out"]


def fail_shard(folder: Path) -> list[Any]:
    base = write_base(folder / "base")
    write_index(base, {f"{Q_PROJ}.weight": "model-00007.safetensors"})
    adapter = write_adapter(folder / "a")
    return ["merge", "--base_model_path", base, "--lora_adapter_path", adapter,
            "--output_path", folder / "out"]  # fmt: skip


def fail_size(folder: Path) -> list[Any]:
    return ["plan", write_adapter(folder / "a"), "--max-shard-size", "huge"]


def fail_verify(folder: Path) -> list[Any]:
    return ["verify", folder]


@pytest.mark.parametrize(
    "make",
    [
        fail_inspect, fail_pickle, fail_lock, fail_plan, fail_everything, fail_feature,
        fail_require_lock, fail_out, fail_shard, fail_size, fail_verify,
    ],
)  # fmt: skip
def test_a_known_failure_is_exit_code_1_and_says_what_to_do(
    tmp_path: Path, make: Callable[[Path], list[Any]], check_golden: Golden
) -> None:
    done = run(*make(tmp_path))
    assert (done.exit_code, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    blank = lines.index("")
    assert all(line.startswith("error: ") for line in lines[:blank])
    assert all(line.startswith("hint: ") for line in lines[blank + 1 :])
    assert 0 < blank < len(lines) - 1
    text = done.stderr.replace(str(tmp_path), "/there")
    check_golden(f"cli/{make.__name__.removeprefix('fail_')}.txt", text)


@pytest.mark.parametrize("command", ["inspect", "lock", "plan", "release", "merge", "verify"])
def test_a_failure_with_json_leaves_stdout_empty(tmp_path: Path, command: str) -> None:
    more = {
        "lock": ["--base", "nowhere/at/all"],
        "release": ["--out", tmp_path / "out"],
        "merge": ["--base_model_path", "x", "--output_path", tmp_path / "o", "--lora_adapter_path"],
    }.get(command, [])
    nowhere = tmp_path / "不存在"
    done = run(command, *more, nowhere, "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert str(nowhere) in done.stderr


def test_inspect_says_what_an_adapter_is(adapter: Path, base: Path) -> None:
    magnitudes = {f"{PREFIX}{name}.lora_magnitude_vector": (8,) for name in (Q_PROJ, K_PROJ)}
    write_adapter(
        adapter, pair(Q_PROJ) | pair(K_PROJ) | magnitudes,
        use_rslora=True, some_new_field=3, use_dora=True,
    )  # fmt: skip
    done = run("inspect", adapter, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert (document["ranks"], document["alpha"], document["scales"]) == ([4], 8, [4])
    assert document["target_modules"] == ["k_proj", "q_proj"]
    assert (document["modules"], document["parameters"]) == (2, 2 * (4 * 8 + 8 * 4 + 8))
    assert document["dtypes"] == ["F32"]
    assert document["base"]["trained_on"] == "org/base"
    assert not document["base"]["locked"]
    assert [item["name"] for item in document["features"]] == [
        "lora", "rslora", "dora", "some_new_field",
    ]  # fmt: skip
    assert {name: item["status"] for name, item in document["targets"].items()} == {
        "adapter": "normalised", "merged": "not possible", "ollama": "not possible",
        "gguf-adapter": "not possible", "vllm": "not possible",
    }  # fmt: skip
    text = run("inspect", adapter).stdout
    for part in ("scale 4", "k_proj, q_proj (2 modules)", "144 parameters", "dora",
                 "some_new_field", "not locked"):  # fmt: skip
        assert part in text
    assert run("lock", adapter, "--base", base).exit_code == 0
    assert json.loads(run("inspect", adapter, "--json").stdout)["base"]["locked"]
    assert "locked to sha256:" in run("inspect", adapter).stdout


def test_lock_and_plan_print_one_document(adapter: Path, base: Path) -> None:
    locked = run("lock", adapter, "--base", base, "--json")
    on_disk = json.loads((adapter / "base.lock.json").read_text(encoding="utf-8"))
    assert json.loads(locked.stdout) == on_disk
    assert (on_disk["schema_version"], locked.exit_code, locked.stderr) == (1, 0, "")
    planned = run("plan", adapter, "--json")
    document = json.loads(planned.stdout)
    assert (document["schema_version"], document["evidence"]) == (1, "lock")
    assert [item["target"] for item in document["targets"]] == ["adapter", "merged"]
    text = run("plan", adapter).stdout
    assert "(locked)" in text
    assert f"lora  {Q_PROJ}.weight F32 8×8 + 2·B·A rank 4" in text


def test_a_hostile_adapter_cannot_drive_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\nlocked\u202e"
    adapter = write_adapter(
        tmp_path / "evil",
        base_model_name_or_path=evil,
        target_modules=[f"{evil}q_proj", "q_proj"],
        task_type=evil,
        exclude_modules=[evil],
        **{f"field{evil}": evil},
    )
    for arguments in (["inspect", adapter], ["plan", adapter], ["inspect", tmp_path / evil]):
        done = run(*arguments)
        text = done.stdout + done.stderr
        assert "owned" in text
        assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    document = json.loads(run("inspect", adapter, "--json").stdout)
    assert document["base"]["trained_on"] == evil


def test_emoji_and_wide_spaces_of_a_path_stay_whole_in_an_error(tmp_path: Path) -> None:
    path = tmp_path / "海盗　🏴‍☠️ नमस्ते"
    assert str(path) in run("inspect", path).stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_is_utf_8_whatever_the_terminal_says(tmp_path: Path, encoding: str) -> None:
    adapter = write_adapter(tmp_path / "适配器 🏴‍☠️", base_model_name_or_path="组织/模型")
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = lorapack("inspect", adapter, "--json", environment=environment)
    assert (done.code, done.err) == (0, "")
    assert done.json["adapter"] == str(adapter)
    assert done.json["base"]["trained_on"] == "组织/模型"
    assert "适配器 🏴‍☠️" in lorapack("inspect", adapter, environment=environment).out
    assert "不存在" in lorapack("inspect", tmp_path / "不存在", environment=environment).err


def test_a_path_that_is_not_utf_8_is_an_error_not_a_crash(tmp_path: Path, base: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    write_adapter(folder)
    for arguments in (["inspect", folder], ["plan", folder, "--base", base]):
        done = lorapack(*arguments)
        assert (done.code, done.out) == (1, "")
        assert "not UTF-8" in done.err


def test_a_reader_that_goes_away_is_no_crash(tmp_path: Path, base: Path, adapter: Path) -> None:
    write_adapter(adapter, pair(Q_PROJ), more="x" * 100_000)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "packager", "inspect", adapter, "--json"],
        check=False,
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""


def test_every_error_in_the_source_says_what_to_do() -> None:
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, LorapackError)
    }
    for path in sorted((ROOT / "packager").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = {keyword.arg for keyword in node.keywords}
                asked = node.func.id in kinds and node.func.id != "RejectedPlanError"
                assert not asked or "hint" in given, f"{path}:{node.lineno}"


def test_a_problem_without_fields_is_still_one_line() -> None:
    assert render_error(LorapackError("it broke")) == "error: it broke"
    both = RejectedPlanError(
        (
            InputError("a", where="b", expected="c", found="d\ne", hint="h"),
            InputError("i", hint="h"),
        )
    )
    assert render_error(both) == ("error: a, in b, expected c, found d\\x0ae\nerror: i\n\nhint: h")
