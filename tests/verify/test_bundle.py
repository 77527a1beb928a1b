"""`verify` on a finished bundle: each level catches its fault, and the bundle is only read."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from packager.adapter import read_adapter
from packager.bundle import read_manifest
from packager.digest import hash_file
from packager.errors import (
    AdapterError,
    BaseError,
    BaseMismatchError,
    BundleError,
    LorapackError,
    ProofError,
)
from packager.manifest import FileEntry, render_manifest
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import Release, release, require_passed
from packager.verify.bundle import verify_bundle
from packager.verify.proof import Level, Proof
from tests.models import make_adapter, make_llama

LORA: dict[str, Any] = {
    "use_rslora": True,
    "r": 4,
    "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
    "alpha_pattern": {"k_proj": 3},
}


def make_release(adapters: dict[str, Path], base: Path, out: Path, **options: Any) -> Release:
    request = ReleaseRequest(
        tuple(adapters.items()),
        out,
        str(base),
        options=ReleaseOptions(**{"targets": ("adapter", "merged"), **options}),
        behaviour=False,
    )
    return release(request, Silent())


@dataclasses.dataclass(frozen=True)
class World:
    """A base, an adapter, and a bundle of it."""

    base: Path
    adapter: Path
    bundle: Path

    def verify(self, level: Level = "weights", base: Path | None = None) -> Proof:
        return verify_bundle(
            self.bundle, level=level, base=None if base is None else str(base), progress=Silent()
        )

    def problems(self, level: Level = "weights") -> list[str]:
        """Every problem found; asking for a pass must refuse exactly when there is one."""
        proof = self.verify(level)
        found = [line for target in proof.targets for line in target.problems]
        if found:
            with pytest.raises(ProofError):
                require_passed(proof)
        else:
            require_passed(proof)
        assert proof.passed is (not found)
        return found

    def seal(self) -> None:
        """Makes the manifest agree with the files, as somebody who edits a bundle would."""
        manifest = read_manifest(self.bundle)
        entries = tuple(
            FileEntry(entry.path, path.stat().st_size, hash_file(path))
            for entry in manifest.files
            if (path := self.bundle / entry.path).exists()
        )
        text = render_manifest(dataclasses.replace(manifest, files=entries))
        (self.bundle / "lorapack.json").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("verify")
    base = make_llama(folder / "底座", max_shard_size="100KB")
    adapter = make_adapter(base, folder / "适配器", **LORA)
    made = make_release({"a": adapter}, base, folder / "bundle")
    return World(base, adapter, made.bundle)


@pytest.fixture
def world(pristine: World, tmp_path: Path) -> World:
    """The same, in a folder of its own, to be damaged."""
    bundle = tmp_path / "bundle"
    shutil.copytree(pristine.bundle, bundle)
    return World(pristine.base, pristine.adapter, bundle)


def snapshot(folder: Path) -> dict[str, Any]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ino, path.is_file() and hash_file(path))
        for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.parametrize("level", ["files", "weights"])
def test_a_sound_bundle_passes_and_is_left_untouched(pristine: World, level: Level) -> None:
    before = snapshot(pristine.bundle.parent)
    assert pristine.problems(level) == []
    assert snapshot(pristine.bundle.parent) == before


def test_the_ledger_accounts_for_everything(pristine: World) -> None:
    adapter, merged = pristine.verify().targets
    weights = merged.weights
    assert weights is not None
    assert (weights.checked, weights.total) == (20, 20)
    assert weights.by_rule == {"copy": (6, 6), "lora": (14, 14)}
    assert (weights.adapter_tensors_used, weights.adapter_tensors_total) == (28, 28)
    assert len(weights.figures) == 14
    assert all(0 < figure.max_error_ulp <= 0.501 for figure in weights.figures)
    assert all(figure.delta_ratio > 0.01 for figure in weights.figures)
    assert {figure.layer for figure in weights.figures} == {0, 1}
    assert adapter.weights is not None
    assert adapter.weights.by_rule == {"copy": (28, 28), "normalised": (28, 28)}


def test_one_flipped_bit_in_any_file_is_caught_by_its_name(world: World) -> None:
    files = [entry.path for entry in read_manifest(world.bundle).files]
    assert len(files) > 20
    for name in files:
        path = world.bundle / name
        data = bytearray(path.read_bytes())
        place = len(data) // 2
        data[place] ^= 1
        path.write_bytes(data)
        found = world.problems("files")
        assert {line.split(" has sha256")[0] for line in found} == {name}
        data[place] ^= 1
        path.write_bytes(data)
    assert world.problems("files") == []


def test_a_file_missing_added_cut_or_linked_is_caught(world: World) -> None:
    config = world.bundle / "merged/a/config.json"
    data = config.read_bytes()
    config.unlink()
    assert set(world.problems("files")) == {"merged/a/config.json is missing"}
    config.write_bytes(data[:-1])
    assert set(world.problems("files")) == {
        f"merged/a/config.json has {len(data) - 1} bytes, not {len(data)}"
    }
    config.unlink()
    outside = world.bundle.parent / "config.json"
    outside.write_bytes(data)
    config.symlink_to(outside)
    assert set(world.problems("files")) == {"merged/a/config.json is a link"}
    config.unlink()
    config.write_bytes(data)
    for name in ("merged/a/pytorch_model.bin", "多余.txt", "merged/b/.hidden"):
        path = world.bundle / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        assert set(world.problems("files")) == {f"{name} is not in the manifest"}
        path.unlink()
    (world.bundle / "merged/a/linked").symlink_to("/etc")
    assert set(world.problems("files")) == {"merged/a/linked is not in the manifest"}


def test_damaged_files_are_not_called_sound_by_a_higher_level(world: World) -> None:
    (world.bundle / "merged/a/model-00001-of-00003.safetensors").unlink()
    adapter, merged = world.verify("weights").targets
    assert merged.weights is None
    assert merged.skipped["weights"] == "the files are not as released"
    assert adapter.passed


def edit(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def shard_of(world: World, tensor: str) -> Path:
    index = json.loads(
        (world.bundle / "merged/a/model.safetensors.index.json").read_text(encoding="utf-8")
    )
    path: Path = world.bundle / "merged/a" / index["weight_map"][tensor]
    return path


DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize("steps", [1, -1, 200])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (63, 127), (17, 90)])
def test_one_element_off_by_one_unit_is_caught(
    world: World, steps: int, row: int, column: int
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN].view(torch.int16)[row, column] += steps

    edit(shard_of(world, DOWN), change)
    assert any("has sha256" in line for line in world.problems("files"))
    world.seal()
    assert world.problems("files") == []
    (line,) = world.problems()
    assert line.startswith(f"{DOWN} is not base + adapter: off by up to")
    assert line.endswith(f"first in row {row}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_one_element_lost_is_caught(world: World, value: float) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN][5, 5] = value

    edit(shard_of(world, DOWN), change)
    world.seal()
    (line,) = world.problems()
    assert line.startswith(f"{DOWN} is not base + adapter")
    assert line.endswith("first in row 5")


def test_one_bit_of_an_untouched_tensor_is_caught(world: World) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[NORM].view(torch.int16)[9] ^= 1

    edit(shard_of(world, NORM), change)
    world.seal()
    (line,) = world.problems()
    assert line.startswith(f"{NORM} differs from the base in rows 0 to")


def rewrite_index(world: World, change: Callable[[dict[str, str]], None]) -> None:
    path = world.bundle / "merged/a/model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    change(index["weight_map"])
    path.write_text(json.dumps(index), encoding="utf-8")


def test_a_tensor_too_few_or_too_many_is_caught(world: World) -> None:
    edit(shard_of(world, NORM), lambda tensors: tensors.update(extra=torch.zeros(3)))
    world.seal()
    assert world.problems() == ["extra is left over"]
    edit(shard_of(world, NORM), lambda tensors: tensors.__delitem__("extra"))
    edit(shard_of(world, NORM), lambda tensors: tensors.__delitem__(NORM))
    rewrite_index(world, lambda weight_map: weight_map.__delitem__(NORM))
    world.seal()
    assert world.problems() == [f"{NORM} is missing"]


def test_a_tensor_of_another_type_or_shape_is_caught(world: World) -> None:
    edit(shard_of(world, NORM), lambda t: t.update({NORM: t[NORM].float()}))
    world.seal()
    assert world.problems() == [f"{NORM} is F32 (64,), not BF16 (64,)"]
    edit(shard_of(world, NORM), lambda t: t.update({NORM: t[NORM].bfloat16().view(8, 8)}))
    world.seal()
    assert world.problems() == [f"{NORM} is BF16 (8, 8), not BF16 (64,)"]


def test_a_merged_model_that_lost_the_adapter_is_caught(world: World) -> None:
    """The base under the name of the release: loads, answers, and is not what was trained."""
    for path in world.base.glob("*.safetensors*"):
        shutil.copy(path, world.bundle / "merged/a" / path.name)
    world.seal()
    found = world.problems()
    assert len(found) == 14
    assert all("is not base + adapter" in line for line in found)


def test_a_merged_model_of_another_scale_is_caught(world: World, tmp_path: Path) -> None:
    """As of a tool that reads lora_alpha / r and does not know rsLoRA."""
    config = json.loads((world.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    other = tmp_path / "other"
    shutil.copytree(world.adapter, other)
    text = json.dumps(config | {"use_rslora": False})
    (other / "adapter_config.json").write_text(text, encoding="utf-8")
    wrong = make_release({"a": other}, world.base, tmp_path / "wrong", targets=("merged",)).bundle
    for path in (wrong / "merged/a").glob("*.safetensors"):
        shutil.copy(path, world.bundle / "merged/a" / path.name)
    world.seal()
    assert len(world.problems()) == 14


@pytest.mark.parametrize("part", ["A", "B"])
@pytest.mark.parametrize("form", ["", "normalised/"])
def test_a_changed_adapter_weight_is_caught(world: World, part: str, form: str) -> None:
    path = world.bundle / f"adapter/a/{form}adapter_model.safetensors"
    name = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(torch.int32)[0, 0] += 2

    edit(path, change)
    world.seal()
    wanted = (
        f"{name} of the normalised form is not the scaled original"
        if form
        else "adapter_model.safetensors is not the file as trained"
    )
    assert world.problems() == [wanted]


@pytest.mark.parametrize(
    ("field", "value"),
    [("lora_alpha", 99), ("use_rslora", False), ("target_modules", ["q_proj"]), ("bias", "all")],
)
def test_a_changed_adapter_config_is_caught(world: World, field: str, value: Any) -> None:
    path = world.bundle / "adapter/a/adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {field: value}), encoding="utf-8")
    world.seal()
    assert f"a/adapter_config.json has another {field!r} than as trained" in world.problems()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"lora_alpha": 14}, "of the normalised form has scale 2, not 1"),
        ({"use_rslora": True}, "of the normalised form has scale"),
        ({"alpha_pattern": {"q_proj": 1}}, "of the normalised form has scale"),
        ({"exclude_modules": "q_proj"}, "has another 'exclude_modules' than as trained"),
    ],
)
def test_a_changed_config_of_the_normalised_form_is_caught(
    world: World, change: dict[str, Any], part: str
) -> None:
    path = world.bundle / "adapter/a/normalised/adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (7, 7, False)
    path.write_text(json.dumps(config | change), encoding="utf-8")
    world.seal()
    found = world.problems()
    assert found
    assert all(part in line for line in found)


def test_a_normalised_form_that_lacks_a_module_is_caught(world: World) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "layers.1.mlp.up_proj" in name]:
            del tensors[name]

    edit(world.bundle / "adapter/a/normalised/adapter_model.safetensors", drop)
    world.seal()
    assert world.problems() == ["model.layers.1.mlp.up_proj is missing in the normalised form"]


def test_a_normalised_form_of_lower_rank_is_an_error_not_a_crash(world: World) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        for name, tensor in list(tensors.items()):
            part = tensor[:2] if "lora_A" in name else tensor[:, :2]
            tensors[name] = part.contiguous()

    folder = world.bundle / "adapter/a/normalised"
    edit(folder / "adapter_model.safetensors", cut)
    world.seal()
    with pytest.raises(AdapterError, match="contradict"):
        world.verify()
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"r": 2, "lora_alpha": 2})
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    world.seal()
    found = world.problems()
    assert found
    assert all("is not the scaled original" in line for line in found)


def test_level_files_needs_neither_base_nor_adapter(
    pristine: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(pristine.base, tmp_path / "base")
    adapter = shutil.copytree(pristine.adapter, tmp_path / "adapter")
    made = make_release({"a": adapter}, base, tmp_path / "out", targets=("merged",))
    shutil.rmtree(base)
    shutil.rmtree(adapter)
    world = World(base, adapter, made.bundle)
    assert world.problems("files") == []
    with pytest.raises(BundleError, match="not where the bundle was made from") as caught:
        world.verify("weights")
    assert caught.value.where == str(adapter)
    shutil.copytree(pristine.adapter, adapter)
    with pytest.raises(BaseError):
        world.verify("weights")
    assert world.verify("weights", base=pristine.base).passed


def test_a_bundle_moved_elsewhere_is_verified_from_its_own_adapter(
    pristine: World, tmp_path: Path
) -> None:
    adapter = shutil.copytree(pristine.adapter, tmp_path / "adapter")
    made = make_release({"海盗": adapter}, pristine.base, tmp_path / "out").bundle
    shutil.rmtree(adapter)
    moved = tmp_path / "elsewhere/新的 地方"
    moved.parent.mkdir()
    made.rename(moved)
    world = World(pristine.base, adapter, moved)
    assert world.problems("weights") == []
    shutil.copytree(pristine.base, tmp_path / "moved base")
    assert world.verify(base=tmp_path / "moved base").passed


def test_an_adapter_folder_edited_since_is_not_taken_for_the_one_released(
    pristine: World, tmp_path: Path
) -> None:
    """Somebody trains on, or edits alpha: the bundle is still what it was."""
    adapter = shutil.copytree(pristine.adapter, tmp_path / "adapter")
    made = make_release({"a": adapter}, pristine.base, tmp_path / "out")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"lora_alpha": 99})
    (adapter / "adapter_config.json").write_text(text, encoding="utf-8")
    assert World(pristine.base, adapter, made.bundle).problems("weights") == []


def test_a_base_changed_since_is_refused_with_its_file(pristine: World, tmp_path: Path) -> None:
    base = shutil.copytree(pristine.base, tmp_path / "base")
    made = make_release({"a": pristine.adapter}, base, tmp_path / "out")
    shard = base / "model-00002-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    world = World(base, pristine.adapter, made.bundle)
    with pytest.raises(BaseMismatchError, match="1 files of the base differ") as caught:
        world.verify()
    assert caught.value.found == shard.name
    assert world.verify("weights", base=pristine.base).passed
    assert world.verify("files").passed


def test_adapters_with_different_targets_are_verified_each_for_its_own(
    pristine: World, tmp_path: Path
) -> None:
    """One can be merged, the other only be kept: the default takes what each allows."""
    alora = make_adapter(pristine.base, tmp_path / "alora", alora_invocation_tokens=[5])
    made = make_release(
        {"plain": pristine.adapter, "alora": alora}, pristine.base, tmp_path / "out", targets=None
    )
    assert [(item.target, item.name) for item in made.manifest.targets] == [
        ("adapter", "plain"), ("merged", "plain"), ("vllm", "plain"), ("adapter", "alora"),
    ]  # fmt: skip
    world = World(pristine.base, alora, made.bundle)
    assert world.problems("weights") == []
    assert len(world.verify().targets) == 4


@pytest.mark.parametrize("change", [{"targets": []}, {"adapters": []}, {"schema_version": 99}])
def test_a_manifest_that_would_prove_nothing_is_refused(
    world: World, change: dict[str, Any]
) -> None:
    path = world.bundle / "lorapack.json"
    document = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(document), encoding="utf-8")
    for level in ("files", "weights"):
        with pytest.raises(LorapackError) as caught:
            world.verify(level)
        assert isinstance(caught.value, BundleError)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle") as caught:
        verify_bundle(tmp_path, level="files", base=None, progress=Silent())
    assert caught.value.expected == "lorapack.json"


def test_the_normalised_form_is_the_same_adapter_to_peft(pristine: World) -> None:
    """PEFT, given the plain form, makes the same ΔW and the same logits."""
    folder = pristine.bundle / "adapter/a"
    plain = read_adapter(folder / "normalised")
    assert {module.scale for module in plain.modules.values()} == {1}
    assert plain.ranks == (7,)
    assert [item.name for item in plain.features] == ["lora"]
    tokens = torch.arange(4, 100).view(4, 24)
    logits, deltas = [], []
    for place in (pristine.adapter, folder, folder / "normalised"):
        base = AutoModelForCausalLM.from_pretrained(pristine.base, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, place)
        with torch.inference_mode():
            logits.append(model(input_ids=tokens).logits)
        layers = model.base_model.model.model.layers
        deltas.append([layers[1].self_attn.q_proj.get_delta_weight("default"),
                       layers[1].mlp.up_proj.get_delta_weight("default")])  # fmt: skip
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=0)
    torch.testing.assert_close(logits[2], logits[0], rtol=1e-4, atol=1e-4)
    for wanted, found in zip(deltas[0], deltas[2], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_adapter_kept_separate_pins_its_base(pristine: World) -> None:
    folder = pristine.bundle / "adapter/a"
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == (str(pristine.base), None)
    for name in ("adapter_model.safetensors",):
        assert (folder / name).read_bytes() == (pristine.adapter / name).read_bytes()
    lock = json.loads((folder / "base.lock.json").read_text(encoding="utf-8"))
    assert lock["digest"] == read_manifest(pristine.bundle).base.digest
    with safe_open(folder / "normalised/adapter_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
