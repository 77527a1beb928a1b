"""Adapters that vLLM refuses, served as merged models beside the base: which, how, and where."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from packager.adapter import read_adapter
from packager.cli.inspect import inspect_document
from packager.cli.plan import render_plan_text
from packager.errors import RejectedPlanError, UnsupportedFeatureError
from packager.gather import gather
from packager.plan import ReleaseOptions, ReleasePlan, parse_plan, plan_release, render_plan
from packager.plan.whole import name_services
from packager.progress import Silent
from packager.serving.share import WORKSPACE_BYTES, share_memory
from packager.serving.value import ServingPlan
from tests.models import CHAT_TEMPLATE, make_adapter, make_llama

OPTIONS = ReleaseOptions(targets=("merged", "vllm"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("base") / "small-base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "plain": make_adapter(base, root / "plain"),
        "dora": make_adapter(base, root / "dora", use_dora=True),
        "saved": make_adapter(base, root / "saved", modules_to_save=["norm"]),
    }


def plan(base: Path, options: ReleaseOptions = OPTIONS, **adapters: Path) -> ReleasePlan:
    gathered = gather(
        tuple(adapters.items()), base=str(base), targets=options.targets, progress=Silent()
    )
    return plan_release(gathered.adapters, gathered.base, options)


def serving(base: Path, options: ReleaseOptions = OPTIONS, **adapters: Path) -> ServingPlan:
    planned = plan(base, options, **adapters).serving
    assert planned is not None
    return planned


def test_what_the_base_cannot_carry_gets_a_server_of_its_own(
    base: Path, adapters: dict[str, Path]
) -> None:
    planned = plan(base, **adapters)
    server = planned.serving
    assert server is not None
    assert [item.name for item in server.adapters] == ["plain"]
    assert [item.base.name for item in server.neighbours] == ["dora", "saved"]
    assert server.names == ("small-base", "plain", "dora", "saved")
    paths = {item.name: item.path for item in planned.targets if item.target == "vllm"}
    assert paths == {
        "plain": "vllm", "dora": "vllm/models/dora", "saved": "vllm/models/saved",
    }  # fmt: skip
    dora = server.neighbours[0].base
    assert dora.merged is not None
    assert (dora.merged.adapter, dora.merged.folder) == ("dora", "merged/dora")
    assert dora.merged.digest.startswith("sha256:")
    assert dora.dtype == "bfloat16"
    assert dora.chat
    assert not dora.from_hub
    merged = next(t for t in planned.targets if (t.target, t.name) == ("merged", "dora"))
    assert dora.nbytes == sum(shard.nbytes for shard in merged.shards)
    notes = [note for note in planned.notes if note.startswith("vllm/")]
    assert len(notes) == 2
    assert "vllm/dora is served merged" in notes[0]
    assert "'dora'" in notes[0]
    assert parse_plan(render_plan(planned), where="plan") == planned


def test_where_no_adapter_can_be_served_the_first_merged_model_is_in_front(
    base: Path, adapters: dict[str, Path]
) -> None:
    planned = plan(base, dora=adapters["dora"], saved=adapters["saved"])
    server = planned.serving
    assert server is not None
    assert server.names == ("dora", "saved")
    assert server.adapters == ()
    assert server.base.merged is not None
    paths = [item.path for item in planned.targets if item.target == "vllm"]
    assert paths == ["vllm", "vllm/models/saved"]


def test_without_the_merged_model_the_way_out_is_named(
    base: Path, adapters: dict[str, Path]
) -> None:
    with pytest.raises(RejectedPlanError) as caught:
        plan(base, ReleaseOptions(targets=("vllm",)), dora=adapters["dora"])
    assert all("--target merged" in problem.hint for problem in caught.value.problems)


def test_a_base_that_takes_no_adapters_is_served_merged(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    server = serving(other, a=adapters["plain"], b=adapters["plain"])
    assert server.names == ("a", "b")
    with pytest.raises(RejectedPlanError) as caught:
        plan(other, ReleaseOptions(targets=("vllm",)), a=adapters["plain"], b=adapters["plain"])
    # What is wrong with the base is said once.
    (problem,) = caught.value.problems
    assert "takes no adapters on GPT2LMHeadModel" in problem.what


def test_a_tokenizer_of_its_own_comes_with_the_merged_model(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    talking = Path(shutil.copytree(adapters["plain"], tmp_path / "talking"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, talking / name)
    document = json.loads((talking / "tokenizer.json").read_text())
    document["added_tokens"][0]["content"] = "<|other|>"
    (talking / "tokenizer.json").write_text(json.dumps(document))
    server = serving(base, a=talking, b=adapters["plain"])
    assert server.names == ("small-base", "b", "a")
    assert server.neighbours[0].base.chat


@pytest.mark.parametrize(
    ("of_base", "of_adapter", "chat"), [(True, False, True), (False, True, True),
                                       (False, False, False)],
)  # fmt: skip
def test_conversations_depend_on_the_template_beside_the_merged_weights(
    base: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    of_base: bool,
    of_adapter: bool,
    chat: bool,
) -> None:
    there = Path(shutil.copytree(base, tmp_path / "base"))
    own = Path(shutil.copytree(adapters["dora"], tmp_path / "own"))
    if not of_base:
        (there / "chat_template.jinja").unlink()
    if of_adapter:
        (own / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert serving(there, a=own).base.chat is chat


def test_four_bits_for_the_hub_are_not_for_a_server(base: Path, adapters: dict[str, Path]) -> None:
    options = dataclasses.replace(OPTIONS, hub_quant="nf4")
    with pytest.raises(RejectedPlanError) as caught:
        plan(base, options, dora=adapters["dora"])
    found = [item for item in caught.value.problems if item.where == "--quantize-hub"]
    assert [type(item) for item in found] == [UnsupportedFeatureError]
    assert "leave --quantize-hub out" in found[0].hint


def test_another_task_is_not_served_merged_either(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(adapters["dora"], tmp_path / "other"))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "task_type": "SEQ_2_SEQ_LM"}))
    with pytest.raises(RejectedPlanError) as caught:
        plan(base, other=other)
    assert any("SEQ_2_SEQ_LM" in problem.found for problem in caught.value.problems)


def test_a_baked_release_counts_every_model(base: Path, adapters: dict[str, Path]) -> None:
    chosen = {name: adapters[name] for name in ("plain", "dora")}
    beside = plan(base, **chosen)
    baked = plan(base, dataclasses.replace(OPTIONS, bake_base=True), **chosen)
    assert baked.serving is not None
    copied = baked.serving.base.nbytes + baked.serving.neighbours[0].base.nbytes
    assert baked.output_bytes - beside.output_bytes == copied > 0


def test_a_context_is_what_a_part_of_the_memory_holds(
    base: Path, adapters: dict[str, Path]
) -> None:
    chosen = {name: adapters[name] for name in ("plain", "dora")}
    asked = serving(base, dataclasses.replace(OPTIONS, max_model_len=128), **chosen)
    assert [item.base.context for item in (asked, *asked.neighbours)] == [128, 128]
    told = serving(base, dataclasses.replace(OPTIONS, gpu_memory_bytes=24 * 10**9), **chosen)
    assert [item.base.context for item in (told, *told.neighbours)] == [512, 512]
    assert [item.gpu_memory_bytes for item in told.neighbours] == [24 * 10**9]
    shares = [item.gpu_share for item in (told, *told.neighbours)]
    assert shares == pytest.approx([0.45, 0.45], abs=0.002)


def test_one_server_takes_what_the_engine_takes(base: Path, adapters: dict[str, Path]) -> None:
    assert serving(base, a=adapters["plain"]).gpu_share is None
    assert serving(base, a=adapters["dora"]).gpu_share is None


def test_memory_is_shared_by_need_and_never_more_than_there_is() -> None:
    large, small = 12 * 10**9, 10**9
    shares = share_memory([large, small], 40 * 10**9)
    assert all(share is not None for share in shares)
    assert sum(share or 0 for share in shares) <= 0.9
    for load, share in zip([large, small], shares, strict=True):
        assert (share or 0) * 40 * 10**9 > load + WORKSPACE_BYTES
    # What one GPU does not hold has GPUs of its own.
    assert share_memory([large, small], 16 * 10**9) == (None, None)
    assert share_memory([large], None) == (None,)


def test_servers_find_each_other_by_names_that_are_labels_and_differ() -> None:
    names = ("a_b", "a.b", "Ä", "x" * 90, "x" * 91)
    services = name_services("org/Base-7B", names)
    assert services[0] == "base-7b-a-b"
    assert len(set(services)) == len(names)
    for service in services:
        assert len(service) <= 40
        assert service.strip("abcdefghijklmnopqrstuvwxyz0123456789-") == ""
        assert service[0].isalpha()
        assert service[-1] != "-"


def test_a_vocabulary_of_another_size_is_served_merged(base: Path, tmp_path: Path) -> None:
    larger = enlarge(base, tmp_path)
    server = serving(base, a=larger)
    assert server.base.merged is not None
    assert "vocabulary of another size" in server.base.merged.reason
    shape: Any = server.base.shape
    assert shape.vocabulary == 400


def enlarge(base: Path, folder: Path) -> Path:
    """Trains an adapter with more tokens than the base has, as PEFT saves one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(400, mean_resizing=False)
    config = LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    )
    get_peft_model(model, config).save_pretrained(folder / "larger")
    return folder / "larger"


def test_by_default_what_cannot_be_served_is_left_out_and_named(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    planned = plan(base, ReleaseOptions(), **adapters)
    assert planned.serving is not None
    assert planned.serving.names == ("small-base", "plain", "dora", "saved")
    silent = Path(shutil.copytree(base, tmp_path / "silent"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (silent / name).unlink()
    without = plan(silent, ReleaseOptions(), **adapters)
    assert without.serving is None
    assert {item.target for item in without.targets} == {"adapter", "merged"}
    (note,) = [note for note in without.notes if note.startswith("vllm is left out")]
    assert "the base has no tokenizer" in note


def test_inspecting_names_the_way_out(adapters: dict[str, Path]) -> None:
    found = {
        name: inspect_document(read_adapter(adapters[name]), None, None)["targets"]["vllm"]
        for name in ("plain", "dora")
    }
    assert (found["plain"]["status"], found["plain"]["reason"]) == ("works", "")
    assert found["dora"]["status"] == "merge-only"
    assert "--target merged" in found["dora"]["reason"]


def test_the_plan_shows_every_server(base: Path, adapters: dict[str, Path]) -> None:
    text = render_plan_text(plan(base, plain=adapters["plain"], dora=adapters["dora"]))
    lines = text.splitlines()
    assert "vllm/models/dora/  0 B" in lines
    assert lines[lines.index("vllm/models/dora/  0 B") + 1] == "  merged/dora/ is served as a whole"
    for head in ("vllm/serve.yaml", "vllm/models/dora/serve.yaml"):
        assert any(line.startswith(f"{head}  for vLLM 0.32.0") for line in lines)
