"""Damaged, hostile and misfit sources: one line that says what, where and what next; no trace."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.world import World

Damage = Callable[[World], None]
INDEX = "model.safetensors.index.json"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
COPY_AGAIN = "copy or download it again"
SAVE_AGAIN = "save the adapter again"
PREFIX = "base_model.model."
QUERY = f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"


class _Runs:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


def _edit(path: Path, **fields: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    document.update(fields)
    path.write_text(json.dumps(document), encoding="utf-8")


def _shard(world: World, number: int) -> Path:
    return sorted(world.base.glob("*.safetensors"))[number]


def _tensors(world: World, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(world.adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, world.adapter / WEIGHTS, metadata={"format": "pt"})


def _rename(world: World, old: str, new: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new, 1)] = tensors.pop(name)

    _tensors(world, change)


def _set(world: World, name: str, place: tuple[int, int], value: float) -> None:
    _tensors(world, lambda tensors: tensors[name].__setitem__(place, value))


def _map_to(file: str) -> Damage:
    def damage(world: World) -> None:
        path = world.base / INDEX
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        _edit(path, weight_map={**names, next(iter(names)): file})

    return damage


def _header(change: Callable[[bytes, dict[str, Any]], bytes]) -> Damage:
    """Replaces the header of the first shard; its data stays."""

    def damage(world: World) -> None:
        path = _shard(world, 0)
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        raw = change(data[8 : 8 + length], json.loads(data[8 : 8 + length]))
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])

    return damage


def _length(value: int) -> Damage:
    def damage(world: World) -> None:
        with _shard(world, 0).open("r+b") as file:
            file.write(value.to_bytes(8, "little"))

    return damage


def _grow_last(_: bytes, header: dict[str, Any]) -> bytes:
    name = max(
        (name for name in header if name != "__metadata__"),
        key=lambda name: header[name]["data_offsets"],
    )
    header[name]["shape"][0] += 1
    return json.dumps(header).encode()


def _replace(name: str, data: bytes, folder: str = "base") -> Damage:
    return lambda world: (getattr(world, folder) / name).write_bytes(data) and None


def _link_out(name: str, folder: str = "base") -> Damage:
    """Moves a file out of its folder and links to it."""

    def damage(world: World) -> None:
        path = getattr(world, folder) / name
        outside = world.root / "outside"
        path.rename(outside)
        path.symlink_to(outside)

    return damage


def _only_pickle(folder: str, name: str, safe: str) -> Damage:
    def damage(world: World) -> None:
        place = getattr(world, folder)
        for path in [*place.glob(safe), *place.glob(INDEX)]:
            path.unlink()
        torch.save({"weight": torch.zeros(2)}, place / name)

    return damage


def _pickled(folder: str, name: str, *, zipped: bool) -> Damage:
    """A pickle that would leave a file behind, under the name of a safetensors file."""

    def damage(world: World) -> None:
        data = pickle.dumps(_Runs(world.root / "ran"))
        if zipped:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("archive/data.pkl", data)
            data = buffer.getvalue()
        place = getattr(world, folder)
        (place / INDEX).unlink(missing_ok=True)
        (place / name).write_bytes(data)

    return damage


def _cut(path: str, folder: str = "base") -> Damage:
    def damage(world: World) -> None:
        target = next(getattr(world, folder).glob(path))
        os.truncate(target, target.stat().st_size // 2)

    return damage


def _special(make: Callable[[Path], None], name: str = "", folder: str = "base") -> Damage:
    """Puts something that is no file in the place of a file."""

    def damage(world: World) -> None:
        path = getattr(world, folder) / name if name else _shard(world, 0)
        path.unlink()
        make(path)

    return damage


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _wide_adapter(world: World) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            rows = tensor.repeat(1, 2) if "lora_A" in name else tensor.repeat(2, 1)
            tensors[name] = rows

    _tensors(world, change)


def _cast(world: World, dtype: torch.dtype) -> None:
    _tensors(world, lambda tensors: tensors.update({QUERY: tensors[QUERY].to(dtype)}))


def _huge_delta(world: World) -> None:
    """Finite in the adapter and in bfloat16, out of the range of float16."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[QUERY].fill_(1e3)
        tensors[QUERY.replace("lora_A", "lora_B")].fill_(1e2)

    _tensors(world, change)


def _tokenizer(world: World, **fields: Any) -> None:
    _edit(world.base / "tokenizer.json", **fields)


def _quantised_tensor(world: World) -> None:
    """As bitsandbytes stores it, but with nothing about it in the configuration."""
    path = next(p for p in sorted(world.base.glob("*.safetensors")) if _has_query(p))
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})


def _has_query(path: Path) -> bool:
    return "model.layers.0.self_attn.q_proj.weight" in load_file(path)


def _chat_template(name: str, folder: str) -> Damage:
    def damage(world: World) -> None:
        place = getattr(world, folder) / "additional_chat_templates"
        place.mkdir()
        Path(os.fsdecode(os.fsencode(place) + b"/" + os.fsencode(name))).write_text("{{ x }}")

    return damage


def _linked_templates(world: World) -> None:
    outside = world.root / "outside"
    outside.mkdir()
    (outside / "secret.jinja").write_text("{{ x }}", encoding="utf-8")
    (world.adapter / "additional_chat_templates").symlink_to(outside)


def _two_keys(world: World) -> None:
    path = world.base / "config.json"
    path.write_text('{"model_type": "a", "model_type": "b"}', encoding="utf-8")


DAMAGES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    # The base's weights.
    "missing shard": (
        lambda world: _shard(world, 1).unlink(),
        ("a weights file of the base is missing", "model-00002-of-00004", "hf download"),
    ),
    "truncated shard": (
        lambda world: os.truncate(_shard(world, 2), _shard(world, 2).stat().st_size - 2),
        ("damaged", "model-00003-of-00004", "bytes", COPY_AGAIN),
    ),
    "longer shard": (
        lambda world: _shard(world, 2).write_bytes(_shard(world, 2).read_bytes() + b"x") and None,
        ("damaged", "model-00003-of-00004", COPY_AGAIN),
    ),
    "empty shard": (_replace("model-00001-of-00004.safetensors", b""), ("damaged", COPY_AGAIN)),
    "header length too large": (_length(1 << 63), ("header length of 9223372036854775808",)),
    "header length beyond the file": (_length(1 << 24), ("header length of 16777216",)),
    "header length too small": (_length(40), ("not valid JSON", "header", COPY_AGAIN)),
    "header length zero": (_length(0), ("header length of 0",)),
    "shape larger than its data": (_header(_grow_last), ("damaged", "bytes", COPY_AGAIN)),
    "index names a missing file": (
        _map_to("model-00009-of-00004.safetensors"),
        ("missing", "model-00009-of-00004", "download the base again"),
    ),
    "index names another shard": (
        _map_to("model-00004-of-00004.safetensors"),
        ("is not where the index says", "expected model-00004", "found model-0000"),
    ),
    "index climbs": (_map_to("../../etc/passwd"), ("leads outside", "'../../etc/passwd'", INDEX)),
    "index is absolute": (_map_to("/etc/passwd"), ("leads outside", "'/etc/passwd'")),
    "index on another drive": (_map_to("C:evil.safetensors"), ("leads outside", "'C:evil")),
    "index with backslashes": (_map_to(r"..\evil.safetensors"), ("leads outside", "evil")),
    "index with a null": (_map_to("a\0b.safetensors"), ("leads outside", r"'a\x00b")),
    "index with an endless name": (_map_to("a" * 4000), ("leads outside", "'aaaa")),
    "index names a pickle": (_map_to("pytorch_model.bin"), ("pickle", "save_pretrained")),
    "index without a map": (_replace(INDEX, b'{"weight_map": []}'), ("index is damaged", "list")),
    "index of numbers": (_replace(INDEX, b'{"weight_map": {"a": 1}}'), ("index is damaged",)),
    "index cut short": (_cut(INDEX), ("not valid JSON", INDEX, COPY_AGAIN)),
    "shard links outside": (
        _link_out("model-00002-of-00004.safetensors"),
        ("a link that leads outside", "outside", "replace the link by the file itself"),
    ),
    "shard is a pipe": (_special(os.mkfifo), ("not a regular file", "model-00001-of-00004")),
    "shard is a folder": (_special(Path.mkdir), ("not a regular file", "model-00001-of-00004")),
    "shard links to itself": (_special(_link_to_itself), ("missing", "model-00001-of-00004")),
    "pickle only": (
        _only_pickle("base", "pytorch_model.bin", "*.safetensors"),
        ("the weights are a pickle", "pytorch_model.bin", "expected safetensors", "convert it"),
    ),
    "zip as safetensors": (
        _pickled("base", "model.safetensors", zipped=True),
        ("a pickle under another name", "model.safetensors", "do not open"),
    ),
    "pickle as safetensors": (
        _pickled("base", "model.safetensors", zipped=False),
        ("a pickle under another name", "model.safetensors", "do not open"),
    ),
    "quantised base": (
        lambda world: _edit(
            world.base / "config.json", quantization_config={"quant_method": "awq"}
        ),
        ("the base is quantised", "config.json", "awq", "16-bit original"),
    ),
    "quantised tensor": (_quantised_tensor, ("q_proj", "float32, bfloat16", "I8", "16-bit")),
    # Its configuration.
    "no config": (
        lambda world: (world.base / "config.json").unlink(),
        ("the file is missing", "config.json"),
    ),
    "huge config": (
        _replace("config.json", b" " * (17 << 20)),
        ("too large", "config.json", "at most 16777216 bytes"),
    ),
    "nested config": (
        _replace("config.json", b'{"a":' * 100 + b"1" + b"}" * 100),
        ("nested too deeply", "config.json", "at most 64"),
    ),
    "endlessly nested config": (
        _replace("config.json", b"[" * 500_000),
        ("not valid JSON", "config.json"),
    ),
    "key twice": (_two_keys, ("a JSON key stands twice", "config.json", "model_type")),
    "not UTF-8": (_replace("config.json", b'{"a": "\xff"}'), ("not valid JSON", "utf-8")),
    "UTF-16": (_replace("config.json", '{"a": 1}'.encode("utf-16")), ("not valid JSON", "utf-8")),
    "half a character": (
        _replace("config.json", rb'{"architectures": ["\ud800"]}'),
        ("half a character", "config.json", "clean one"),
    ),
    "half a character in bytes": (_replace("config.json", b'{"a": "\xed\xa0\x80"}'), ("JSON",)),
    "config is a list": (_replace("config.json", b"[]"), ("not an object", "found list")),
    "empty config": (_replace("config.json", b""), ("not valid JSON", COPY_AGAIN)),
    "config links outside": (_link_out("config.json"), ("a link that leads outside",)),
    "config is a pipe": (_special(os.mkfifo, "config.json"), ("not a regular file",)),
    # Its tokenizer and documents.
    "more tokens than rows": (
        lambda world: _tokenizer(world, added_tokens=[{"id": 4999, "content": "<new>"}]),
        ("more tokens than the embedding has rows", "at most", "found 5000", "modules_to_save"),
    ),
    "token without a number": (
        lambda world: _tokenizer(world, added_tokens=[{"id": "12", "content": "<new>"}]),
        ("a token's id is not a whole number", "tokenizer.json", "'12'"),
    ),
    "token of endless digits": (
        lambda world: _tokenizer(world, added_tokens=[{"id": 10**4000, "content": "<new>"}]),
        ("a token's id is not a whole number", "found 1000"),
    ),
    "tokenizer cut short": (_cut("tokenizer.json"), ("not valid JSON", "tokenizer.json")),
    "tokenizer links outside": (_link_out("tokenizer.json"), ("a link that leads outside",)),
    "licence links outside": (_link_out("LICENSE"), ("a link that leads outside", "LICENSE")),
    "template with a line break": (
        _chat_template("a\nb.jinja", "base"),
        ("leads outside", r"a\nb.jinja"),
    ),
    "template not in UTF-8": (_chat_template("a\udcff.jinja", "base"), ("leads outside", "udcff")),
    # The adapter.
    "NaN in A": (
        lambda world: _set(world, QUERY, (1, 2), float("nan")),
        ("holds NaN or infinity", "q_proj.lora_A", WEIGHTS, "earlier checkpoint"),
    ),
    "infinity in B": (
        lambda world: _set(world, QUERY.replace("lora_A", "lora_B"), (0, 0), float("-inf")),
        ("holds NaN or infinity", "q_proj.lora_B", "earlier checkpoint"),
    ),
    "another width": (
        _wide_adapter,
        ("another width than the base", "expected shape", "found (", "--base"),
    ),
    "prefix missing": (
        lambda world: _rename(world, PREFIX, ""),
        ("left over", "base_model.model.<module>", SAVE_AGAIN),
    ),
    "prefix once": (
        lambda world: _rename(world, PREFIX, "base_model."),
        ("14 of 14 adapted modules are not in the base", "found 'layers.0", "wrong prefix"),
    ),
    "prefix of another class": (
        lambda world: _rename(world, f"{PREFIX}model.", f"{PREFIX}model.language_model."),
        ("14 of 14 adapted modules are not in the base", "language_model", "wrong prefix"),
    ),
    "prefix twice": (
        lambda world: _rename(world, PREFIX, f"{PREFIX}{PREFIX}"),
        ("14 of 14 adapted modules are not in the base", "wrong prefix"),
    ),
    "tensor left over": (
        lambda world: _tensors(world, lambda t: t.update({f"{PREFIX}x.weight": torch.ones(2)})),
        ("1 tensors of the adapter are left over", "x.weight", SAVE_AGAIN),
    ),
    "module not selected": (
        lambda world: _edit(world.adapter / CONFIG, target_modules=["q_proj", "v_proj"]),
        ("left over", "does not select them", "restore the adapter_config.json"),
    ),
    "another rank": (
        lambda world: _edit(world.adapter / CONFIG, r=8),
        ("contradict adapter_config.json", "rank 8", "found lora_A (4, 128)"),
    ),
    "half a pair": (
        lambda world: _tensors(world, lambda tensors: tensors.__delitem__(QUERY)),
        ("half of the adapter", "q_proj", "no lora_A"),
    ),
    "no tensors": (
        lambda world: _tensors(world, lambda tensors: tensors.clear()),
        ("holds no tensors", WEIGHTS),
    ),
    "whole numbers": (lambda world: _cast(world, torch.int32), ("I32", "q_proj.lora_A", "F32")),
    "eight bits": (
        lambda world: _cast(world, torch.float8_e4m3fn),
        ("F8_E4M3", "q_proj.lora_A", "F32"),
    ),
    "adapter cut short": (_cut(WEIGHTS, "adapter"), ("damaged", WEIGHTS, COPY_AGAIN)),
    "adapter without weights": (
        lambda world: (world.adapter / WEIGHTS).unlink(),
        ("the adapter has no weights", f"expected {WEIGHTS}", "found README.md", SAVE_AGAIN),
    ),
    "adapter is a pickle": (
        _only_pickle("adapter", "adapter_model.bin", WEIGHTS),
        ("the weights are a pickle", "adapter_model.bin", "expected safetensors", "convert it"),
    ),
    "adapter pickle as safetensors": (
        _pickled("adapter", WEIGHTS, zipped=False),
        ("a pickle under another name", WEIGHTS),
    ),
    "adapter zip as safetensors": (
        _pickled("adapter", WEIGHTS, zipped=True),
        ("a pickle under another name", WEIGHTS),
    ),
    "adapter weights link outside": (_link_out(WEIGHTS, "adapter"), ("link that leads outside",)),
    "adapter config links outside": (_link_out(CONFIG, "adapter"), ("link that leads outside",)),
    "adapter config not PEFT's": (
        _replace(CONFIG, b'{"model_type": "llama"}', "adapter"),
        ("not a PEFT adapter", CONFIG, "save_pretrained"),
    ),
    "adapter config with a boolean rank": (
        lambda world: _edit(world.adapter / CONFIG, r=True),
        ("'r' is not what PEFT writes", "found True", "save the adapter again"),
    ),
    "adapter config with NaN": (
        lambda world: _edit(world.adapter / CONFIG, lora_alpha=float("nan")),
        ("'lora_alpha' is not what PEFT writes", "found nan"),
    ),
    "pattern that never ends": (
        lambda world: _edit(
            world.adapter / CONFIG, target_modules=r"(([a-z]|[a-z_]|\.|\d)+)+(?<=\d{9})"
        ),
        ("a module pattern", "no answer within", "list the module names"),
    ),
    "linked chat templates": (_linked_templates, ("a link that leads outside", "secret.jinja")),
    "adapter tokenizer links outside": (
        lambda world: (world.adapter / "tokenizer.json").symlink_to("/etc/passwd"),
        ("a link that leads outside", "/etc/passwd", "replace the link"),
    ),
    "lock of garbage": (_replace("base.lock.json", b"{}", "adapter"), ("base lock is damaged",)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_bad_source_is_named_and_leaves_no_trace(world: World, name: str) -> None:
    damage, texts = DAMAGES[name]
    damage(world)
    world.fail(world.release(), *texts)
    assert not (world.root / "ran").exists()


@pytest.mark.parametrize(
    "name",
    ["another width", "prefix once", "prefix of another class", "tensor left over", "NaN in A"],
)
def test_adapter_kept_separate_has_to_fit_too(world: World, name: str) -> None:
    damage, texts = DAMAGES[name]
    damage(world)
    world.fail(world.release("--target", "adapter"), *texts)


def test_result_beyond_the_output_dtype_is_refused(world: World) -> None:
    _huge_delta(world)
    text = ("q_proj.weight", "holds NaN or infinity", "finite values in float16", "--dtype")
    world.fail(world.release("--target", "merged", "--dtype", "float16"), *text)
    assert world.run(world.release("--target", "merged", "--dtype", "bfloat16")).code == 0


@pytest.mark.parametrize(
    "reference",
    ["~nobody-has-this-name/base", "a" * 5000, "a\0b", "a\nb/c", "../../etc", "org/name/more", ""],
)
def test_base_that_an_adapter_names_may_be_any_text(world: World, reference: str) -> None:
    _edit(world.adapter / CONFIG, base_model_name_or_path=reference)
    argv = [part for part in world.release() if part not in ("--base", str(world.base))]
    world.fail(argv, "base", "--base")


@pytest.mark.parametrize("command", ["plan", "inspect", "lock"])
def test_other_commands_say_the_same(world: World, command: str) -> None:
    damage, texts = DAMAGES["adapter cut short"]
    damage(world)
    more = [] if command == "inspect" else ["--base", str(world.base)]
    world.fail([command, str(world.adapter), *more], *texts)


def test_undamaged_world_succeeds(world: World) -> None:
    outcome = world.run(world.release())
    assert outcome.code == 0, outcome.stderr
