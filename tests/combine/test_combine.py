"""Several adapters released as one, against PEFT's add_weighted_adapter; and side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from packager.adapter import read_adapter
from packager.cli.main import lorapack
from packager.combination import (
    METHODS,
    Combination,
    CombinationRecord,
    CombinedSource,
    check_combination,
    parse_record,
    parse_weights,
    render_record,
)
from packager.combine import combine_folders
from packager.combine.arithmetic import module_seed
from packager.errors import BaseError, BundleError, InputError, UnsupportedFeatureError
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest, joined, plan_request
from packager.progress import Silent
from packager.release import Release, release
from packager.verify.bundle import verify_bundle
from tests.merge.conftest import read_tensors
from tests.models import make_adapter, make_llama

PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("combine") / "base", dtype="float32", tied=False)


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters of one rank and several scales, on modules that overlap."""
    root = tmp_path_factory.mktemp("pair")
    first = make_adapter(base, root / "a", seed=3, target_modules=["q_proj", "up_proj"])
    second = make_adapter(
        base, root / "b", seed=4, target_modules=["q_proj", "v_proj"], lora_alpha=3
    )
    return first, second


@pytest.fixture(scope="module")
def unequal(base: Path, pair: tuple[Path, Path], tmp_path_factory: Any) -> tuple[Path, Path]:
    """Two adapters of two ranks."""
    root = tmp_path_factory.mktemp("unequal")
    return pair[0], make_adapter(base, root / "c", seed=5, r=7, target_modules=["q_proj"])


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def combine_in_peft(base: Path, adapters: tuple[Path, ...], how: Combination) -> Any:
    """Loads the adapters and combines them as PEFT does, each module from the seed that we give it.

    PEFT draws all modules from one stream, after it has drawn the start of the new adapter.
    """
    model = PeftModel.from_pretrained(load(base), adapters[0], adapter_name="0")
    for number, folder in enumerate(adapters[1:], 1):
        model.load_adapter(folder, adapter_name=str(number))
    tuner: Any = model.base_model
    arithmetic = {
        name: getattr(tuner, name)
        for name in (
            "_generalized_task_arithmetic_weighted_adapter",
            "_svd_generalized_task_arithmetic_weighted_adapter",
        )
    }
    names = {id(module): name for name, module in tuner.model.named_modules()}

    def seeded(function: Any, place: int) -> Any:
        def call(*arguments: Any, **further: Any) -> Any:
            torch.manual_seed(module_seed(how.seed, names[id(arguments[place])]))
            return function(*arguments, **further)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, *_named(arithmetic, "_generalized", seeded, 3))
        patch.setattr(tuner, *_named(arithmetic, "_svd", seeded, 4))
        tuner.add_weighted_adapter(
            adapters=[str(number) for number in range(len(adapters))],
            weights=list(how.weights),
            adapter_name="made",
            combination_type=how.method,
            svd_rank=how.svd_rank,
            density=how.density,
            majority_sign_method=how.majority_sign_method,
        )
    model.set_adapter("made")
    return model


def _named(functions: dict[str, Any], start: str, seeded: Any, place: int) -> tuple[str, Any]:
    name = next(name for name in functions if name.startswith(start))
    return name, seeded(functions[name], place)


def deltas(model: Any) -> Iterator[tuple[str, Tensor]]:
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and "made" in module.lora_A:
            yield name, module.get_delta_weight("made").detach()


def own_deltas(folder: Path) -> dict[str, Tensor]:
    spec, tensors = read_adapter(folder), load_file(folder / "adapter_model.safetensors")
    return {
        name: module.scale * (tensors[module.lora_b.name] @ tensors[module.lora_a.name])
        for name, module in spec.modules.items()
    }


def how_of(method: Any) -> Combination:
    density = 0.5 if method.startswith(("ties", "dare", "magnitude")) else None
    return Combination(method, (0.7, -0.4), density, seed=11)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_makes_what_peft_makes(
    method: str, base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    how = how_of(method)
    combine_folders([read_adapter(folder) for folder in pair], how, tmp_path / "made")
    found = own_deltas(tmp_path / "made")
    wanted = dict(deltas(combine_in_peft(base, pair, how)))
    assert found.keys() == wanted.keys()
    assert len(wanted) == 6
    for name, truth in wanted.items():
        assert float(truth.abs().max()) > 1e-3
        assert torch.allclose(found[name], truth, rtol=0, atol=2e-6), name


def test_sign_by_frequency_and_a_wanted_rank(
    base: Path, unequal: tuple[Path, Path], tmp_path: Path
) -> None:
    how = Combination("ties_svd", (1.0, 2.0), 0.3, "frequency", svd_rank=5)
    combine_folders([read_adapter(folder) for folder in unequal], how, tmp_path / "made")
    found = own_deltas(tmp_path / "made")
    assert read_adapter(tmp_path / "made").ranks == (5,)
    for name, truth in deltas(combine_in_peft(base, unequal, how)):
        assert torch.allclose(found[name], truth, rtol=0, atol=2e-6), name
    other = Combination("ties_svd", (1.0, 2.0), 0.3, "total", svd_rank=5)
    combine_folders([read_adapter(folder) for folder in unequal], other, tmp_path / "other")
    assert any(not torch.equal(own_deltas(tmp_path / "other")[name], found[name]) for name in found)


def test_a_seed_is_kept_to(pair: tuple[Path, Path], tmp_path: Path) -> None:
    specs = [read_adapter(folder) for folder in pair]
    for number, seed in enumerate((1, 1, 2)):
        how = Combination("dare_linear", (1.0, 1.0), 0.5, seed=seed)
        combine_folders(specs, how, tmp_path / str(number))
    first, again, other = (
        (tmp_path / str(number) / "adapter_model.safetensors").read_bytes() for number in range(3)
    )
    assert first == again
    assert first != other


def make_release(base: Path, adapters: Any, out: Path, **further: Any) -> Release:
    targets = further.pop("targets", ("adapter", "merged"))
    options = ReleaseOptions(targets=targets)
    return release(
        ReleaseRequest(adapters=adapters, out=out, base=str(base), options=options, **further),
        Silent(),
    )


def test_a_combination_is_released_proved_and_verified(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    adapters = tuple(
        (name, Path(shutil.copytree(folder, tmp_path / name)))
        for name, folder in zip(("one", "two"), pair, strict=True)
    )
    how = Combination("ties", (0.7, 0.3), 0.6)
    made = make_release(base, adapters, tmp_path / "out", combination=how, name="both")
    folders = {(item.target, item.name) for item in made.manifest.targets}
    assert folders == {("adapter", "both"), ("merged", "both")}
    assert all(not target.problems for target in made.proof.targets)
    merged = next(item for item in made.proof.targets if item.target == "merged")
    assert merged.behaviour is not None

    oracle = combine_in_peft(base, (adapters[0][1], adapters[1][1]), how)
    tokens = torch.arange(4, 100).view(4, 24)
    with torch.inference_mode():
        truth = oracle(input_ids=tokens).logits
        ours = load(made.bundle / "merged/both")(input_ids=tokens).logits
        theirs = PeftModel.from_pretrained(load(base), made.bundle / "adapter/both")
        separate = theirs(input_ids=tokens).logits
        plain = load(base)(input_ids=tokens).logits
    effect = (plain - truth).norm()
    assert (ours - truth).norm() <= 1e-4 * effect
    assert (separate - truth).norm() <= 1e-4 * effect
    assert effect > 0.01 * truth.norm()

    record = parse_record(made.manifest.options["combination"], where="")
    assert record.combination == how
    assert [source.name for source in record.sources] == ["one", "two"]
    proof = verify_bundle(made.bundle, level="weights", base=None, progress=Silent())
    assert all(not target.problems for target in proof.targets)


def test_a_bundle_without_its_adapter_is_verified_while_the_sources_are_there(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    adapters = tuple(
        (name, Path(shutil.copytree(folder, tmp_path / name)))
        for name, folder in zip(("one", "two"), pair, strict=True)
    )
    how = Combination("dare_ties", (1.0, 1.0), 0.5, seed=3)
    made = make_release(
        base, adapters, tmp_path / "out", combination=how, targets=("merged",), behaviour=False
    )
    assert made.manifest.targets[0].name == "one-two"
    proof = verify_bundle(made.bundle, level="weights", base=None, progress=Silent())
    assert not proof.targets[0].problems
    (tmp_path / "two" / "adapter_model.safetensors").unlink()
    with pytest.raises(BundleError, match="is not where the bundle was made from"):
        verify_bundle(made.bundle, level="weights", base=None, progress=Silent())


def test_a_stack_is_one_merge_after_the_other(
    base: Path, unequal: tuple[Path, Path], tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        lorapack,
        [
            "release", f"one={unequal[0]}", f"two={unequal[1]}", "--stack", "--name", "both",
            "--base", str(base), "--target", "merged", "--no-behaviour",
            "--out", str(tmp_path / "out"),
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    model = PeftModel.from_pretrained(load(base), unequal[0]).merge_and_unload()
    truth = PeftModel.from_pretrained(model, unequal[1]).merge_and_unload().state_dict()
    for name, value in read_tensors(tmp_path / "out/merged/both").items():
        assert torch.allclose(value, truth[name], rtol=0, atol=1e-6), name


def test_adapters_stay_side_by_side_in_every_target(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    made = make_release(
        base,
        (("one", pair[0]), ("two", pair[1])),
        tmp_path / "out",
        targets=("adapter", "merged"),
        behaviour=False,
    )
    folders = {item.path for item in made.manifest.targets}
    assert folders == {"adapter/one", "adapter/two", "merged/one", "merged/two"}
    for name, folder in zip(("one", "two"), pair, strict=True):
        truth = PeftModel.from_pretrained(load(base), folder).merge_and_unload().state_dict()
        for tensor, value in read_tensors(made.bundle / "merged" / name).items():
            assert torch.allclose(value, truth[tensor], rtol=0, atol=1e-6), tensor
        card = (made.bundle / "adapter" / name / "README.md").read_text(encoding="utf-8")
        assert f"# {name}" in card
    assert "combination" not in made.manifest.options


def test_a_dry_run_plans_the_combination_without_reading_a_weight(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    how = Combination("cat", (1.0, 0.5))
    request = ReleaseRequest(
        adapters=(("one", pair[0]), ("two", pair[1])),
        out=tmp_path / "out",
        base=str(base),
        options=ReleaseOptions(targets=("adapter", "merged")),
        combination=how,
        name="both",
    )
    (tmp_path / "hollow").mkdir()
    with joined(request, Silent(), hollow=tmp_path / "hollow") as asked:
        plan = plan_request(asked, Silent(), hollow=tmp_path / "hollow").plan
    assert [target.path for target in plan.targets] == ["adapter/both", "merged/both"]
    rules = {tensor.name: tensor for tensor in plan.targets[1].tensors}
    changed = rules["model.layers.0.self_attn.q_proj.weight"]
    assert changed.rule == "lora"
    assert [getattr(update, "rank", None) for update in changed.deltas] == [8]
    assert "combined by cat: 1 of one, 0.5 of two" in plan.notes


def test_adapters_of_different_bases_are_refused_with_both_locks(
    base: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    from packager.base.ref import read_local_base
    from packager.stamp import stamp_lock

    other = make_llama(tmp_path / "other", dtype="float32", tied=False, seed=9)
    folders = []
    strange = make_adapter(other, tmp_path / "strange", target_modules=["q_proj"])
    for name, folder, at in (("one", pair[0], base), ("two", strange, other)):
        own = Path(shutil.copytree(folder, tmp_path / name))
        stamp_lock(own, str(at), Silent())
        folders.append((name, own))
    request = ReleaseRequest(
        adapters=tuple(folders),
        out=tmp_path / "out",
        options=ReleaseOptions(targets=("merged",)),
        combination=Combination("cat", (1.0, 1.0)),
    )
    with pytest.raises(BaseError) as caught:
        release(request, Silent())
    assert read_local_base(base).digest in caught.value.expected
    assert read_local_base(other).digest in caught.value.found
    assert "locked" in caught.value.found
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_combined_says_so(
    base: Path, pair: tuple[Path, Path], unequal: tuple[Path, Path], tmp_path: Path
) -> None:
    specs = [read_adapter(folder) for folder in unequal]
    with pytest.raises(InputError, match="needs one rank"):
        combine_folders(specs, Combination("linear", (1.0, 1.0)), tmp_path / "made")
    dora = read_adapter(make_adapter(base, tmp_path / "dora", use_dora=True))
    with pytest.raises(UnsupportedFeatureError, match="dora"):
        combine_folders([specs[0], dora], Combination("cat", (1.0, 1.0)), tmp_path / "made")
    assert not (tmp_path / "made").exists()
    wide = make_adapter(make_llama(tmp_path / "wide", hidden=128), tmp_path / "x")
    with pytest.raises(InputError, match="other shapes"):
        combine_folders(
            [specs[0], read_adapter(wide)], Combination("cat", (1.0, 1.0)), tmp_path / "made"
        )


@pytest.mark.parametrize(
    ("how", "adapters", "expected"),
    [
        (Combination("linear", (1.0,)), 1, "alone"),
        (Combination("linear", (1.0, 2.0)), 3, "needs a weight"),
        (Combination("ties", (1.0, 2.0)), 2, "prunes"),
        (Combination("ties", (1.0, 2.0), 1.5), 2, "prunes"),
        (Combination("cat", (1.0, 2.0), 0.5), 2, "prunes nothing"),
        (Combination("linear", (1.0, 2.0), svd_rank=3), 2, "has the rank"),
    ],
)
def test_arguments_that_do_not_go_together(how: Combination, adapters: int, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        check_combination(how, adapters)


@pytest.mark.parametrize("text", ["", "a,b", "0.5,nan", "1,inf", "1;2"])
def test_weights_are_numbers(text: str) -> None:
    with pytest.raises(InputError, match="weights"):
        parse_weights(text)


def test_a_record_comes_back_and_a_strange_one_is_refused() -> None:
    record = CombinationRecord(
        Combination("dare_ties_svd", (0.5, -1.0), 0.25, "frequency", 7, 3),
        (CombinedSource("a", "/x", "sha256:1"), CombinedSource("b", "/y", "sha256:2")),
    )
    text = render_record(record)
    assert parse_record(text, where="") == record
    broken = json.loads(text)
    broken["combination"]["method"] = "magic"
    for strange in (json.dumps(broken), "[]", "{", json.dumps({**broken, "sources": []})):
        with pytest.raises(BundleError, match="damaged"):
            parse_record(strange, where="")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--stack", "--combine", "cat"],
        ["--stack", "--weights", "1,2"],
        ["--weights", "1,2"],
        ["--name", "both"],
    ],
)
def test_options_that_contradict_each_other(
    arguments: list[str], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    given = ["release", *map(str, pair), "--out", str(tmp_path / "out"), *arguments]
    result = CliRunner().invoke(lorapack, given)
    assert result.exit_code == 1
    assert "does not go with" in result.output


def test_prefixes_are_peft_s(pair: tuple[Path, Path], tmp_path: Path) -> None:
    combine_folders(
        [read_adapter(folder) for folder in pair], Combination("cat", (1.0, 1.0)), tmp_path / "made"
    )
    names = load_file(tmp_path / "made" / "adapter_model.safetensors")
    assert all(name.startswith(PREFIX) for name in names)
    assert len(names) == 12
