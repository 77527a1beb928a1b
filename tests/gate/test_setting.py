"""What the gate is told: keys, documents and variables, right and wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from lorapack_gate.file import SettingError
from lorapack_gate.setting import read_setting
from lorapack_gate.start import (
    Installed,
    check_version,
    close_variables,
    find_home,
    server_command,
)

from tests.gate.asgi import KEY, OTHER_KEY
from tests.gate.server import front_gate, whole_expected, whole_gate
from tests.gate.setting import gate_document, model, write_home

GPU = Installed("0.32.0", on_cpu=False)


def test_everything_is_read(tmp_path: Path) -> None:
    given = write_home(tmp_path) | {"LORAPACK_MAX_BODY_BYTES": "1000"}
    setting = read_setting(given, tmp_path)
    assert [item.name for item in setting.models] == ["tiny", "pirate", "poet"]
    assert setting.models[1].chat_template == "{{ 'Arr' }}"
    assert setting.keys == tuple(hashlib.sha256(k.encode()).digest() for k in (KEY, OTHER_KEY))
    assert (setting.max_body_bytes, setting.max_concurrency) == (1000, 256)
    assert setting.expected is not None
    assert KEY not in repr(setting)


@pytest.mark.parametrize("text", ["", "\n \n", "short", "has a space in the key", "ключ" * 10])
def test_file_without_a_proper_key_is_refused(tmp_path: Path, text: str) -> None:
    given = write_home(tmp_path)
    (tmp_path / "keys").write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match=r"key file .*keys (is empty|holds a key that is not)"):
        read_setting(given, tmp_path)


def test_missing_key_is_refused_with_the_way_out(tmp_path: Path) -> None:
    given = write_home(tmp_path)
    with pytest.raises(SettingError, match=r"LORAPACK_API_KEY_FILE.*make one with"):
        read_setting({}, tmp_path)
    with pytest.raises(SettingError, match=r"cannot be read: No such file"):
        read_setting({"LORAPACK_API_KEY_FILE": str(tmp_path / "none")}, tmp_path)
    with pytest.raises(SettingError, match="contradict"):
        read_setting(given | {"LORAPACK_INSECURE_NO_AUTH": "1"}, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LORAPACK_MAX_BODY_BYTES", "4MB"),
        ("LORAPACK_MAX_CONCURRENCY", "0"),
        ("LORAPACK_ALLOW_UNPROVEN", "yes"),
    ],
)
def test_wrong_variable_is_refused_by_name(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SettingError, match=name):
        read_setting(write_home(tmp_path) | {name: value}, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"expected": "../expected.json"},
        {"expected": "/etc/passwd"},
        {"models": [model("tiny", chat_template="../../secret")]},
        {"models": [model("tiny", stop_token_ids=["x"])]},
        {"models": [{"name": "tiny"}]},
        {"models": None},
    ],
)
def test_damaged_document_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    given = write_home(tmp_path / "home", gate=gate_document() | change)
    with pytest.raises(SettingError, match=r"gate\.json"):
        read_setting(given, tmp_path / "home")


def test_starter_refuses_flags_that_would_open_doors(tmp_path: Path) -> None:
    setting = read_setting(write_home(tmp_path), tmp_path)
    for flag in (
        "--api-key",
        "--api_key=secret",
        "--middleware",
        "--config",
        "--root-path=/x",
        "--allowed-origins",
    ):
        with pytest.raises(SettingError, match="is not taken") as caught:
            server_command([flag, "x"], setting, GPU)
        assert "secret" not in str(caught.value)
    command = server_command(["--host", "0.0.0.0", "--port", "1"], setting, GPU)
    assert command[1:] == [
        "-m", "vllm.entrypoints.openai.api_server", "--config", "serve.yaml",
        "--host", "0.0.0.0", "--port", "1",
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["--host", "0.0.0.0"], ["--host=10.0.0.1"],
                                       ["--host", "127.0.0.1", "--host", "::"]])  # fmt: skip
def test_without_a_key_only_this_machine_is_listened_to(
    tmp_path: Path, arguments: list[str]
) -> None:
    write_home(tmp_path)
    setting = read_setting({"LORAPACK_INSECURE_NO_AUTH": "1"}, tmp_path)
    with pytest.raises(SettingError, match="this machine only"):
        server_command(arguments, setting, GPU)
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert server_command(["--host", host], setting, None)


def test_variables_that_open_doors_are_taken_away() -> None:
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1", "A": "b"}
    close_variables(environment)
    assert environment == {"A": "b", "PYTHONSAFEPATH": "1"}


def test_starter_finds_the_bundle_that_it_lies_in(tmp_path: Path) -> None:
    write_home(tmp_path / "vllm")
    program = tmp_path / "vllm" / "gate" / "lorapack_gate" / "start.py"
    assert find_home({}, program) == tmp_path / "vllm"
    assert find_home({"LORAPACK_HOME": "/elsewhere"}, program) == Path("/elsewhere")


def test_other_version_of_vllm_is_told(tmp_path: Path) -> None:
    setting = read_setting(write_home(tmp_path), tmp_path)
    assert check_version(setting, GPU) == []
    assert check_version(setting, None) == ["warning: vLLM is not installed here"]
    told = check_version(setting, Installed("0.40.1", on_cpu=False))
    assert ["0.32.0" in line and "0.40.1" in line for line in told] == [True]


def test_on_a_processor_one_place_for_an_adapter_stays_free(tmp_path: Path) -> None:
    # Of the bundle's three models two are adapters.
    setting = read_setting(write_home(tmp_path), tmp_path)
    command = server_command(["--port", "1"], setting, Installed("0.32.0", on_cpu=True))
    assert command[5:] == ["--max-loras", "3", "--max-cpu-loras", "3", "--port", "1"]


def test_neighbours_are_where_the_environment_says(tmp_path: Path) -> None:
    gate = front_gate(whole="http://base-whole:8000", other="http://base-other:8000")
    given = write_home(tmp_path, gate=gate)
    setting = read_setting(given, tmp_path)
    assert [str(each.address) for each in setting.neighbours] == [
        "base-whole:8000", "base-other:8000",
    ]  # fmt: skip
    assert setting.names == ("tiny", "pirate", "poet", "whole", "other")
    moved = read_setting(given | {"LORAPACK_NEIGHBOURS": "other=http://127.0.0.1:9"}, tmp_path)
    assert [str(each.address) for each in moved.neighbours] == ["base-whole:8000", "127.0.0.1:9"]
    found = moved.find_neighbour("other")
    assert found is not None
    assert found.name == "other"
    assert moved.find_neighbour("tiny") is None


@pytest.mark.parametrize("told", ["nobody=http://x:1", "whole", "whole=https://x:1", "whole=x:1"])
def test_wrong_place_of_a_neighbour_is_refused_by_name(tmp_path: Path, told: str) -> None:
    given = write_home(tmp_path, gate=front_gate(whole="http://base-whole:8000"))
    with pytest.raises(SettingError, match="LORAPACK_NEIGHBOURS"):
        read_setting(given | {"LORAPACK_NEIGHBOURS": told}, tmp_path)


def test_server_of_a_whole_model_takes_no_adapters(tmp_path: Path) -> None:
    given = write_home(tmp_path, gate=whole_gate(), expected=whole_expected())
    setting = read_setting(given, tmp_path)
    assert setting.base == ""
    command = server_command([], setting, Installed("0.32.0", on_cpu=True))
    assert command[3:] == ["--config", "serve.yaml"]
