"""The server of a release: computed from base and adapters, or refused with the way out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Llama4Config, Llama4ForCausalLM

from packager.errors import (
    BaseError,
    InputError,
    LicenseError,
    RejectedPlanError,
    UnsupportedFeatureError,
)
from packager.gather import Gathered, gather
from packager.plan import ReleaseOptions, ReleasePlan, parse_plan, plan_release, render_plan
from packager.plan.serving import plan_serving
from packager.progress import Silent
from packager.serving.value import ServingPlan
from tests.merge.families import save_base
from tests.models import CHAT_TEMPLATE, make_adapter, make_llama

OPTIONS = ReleaseOptions(targets=("vllm",))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("base") / "small-base")


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("plain") / "plain")


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(plain, tmp_path / "changed"))


def gather_all(base: Path, **adapters: Path) -> Gathered:
    return gather(
        tuple(adapters.items()), base=str(base), targets=OPTIONS.targets, progress=Silent()
    )


def plan(base: Path, options: ReleaseOptions = OPTIONS, **adapters: Path) -> ReleasePlan:
    gathered = gather_all(base, **adapters)
    return plan_release(gathered.adapters, gathered.base, options)


def serving(base: Path, options: ReleaseOptions = OPTIONS, **adapters: Path) -> ServingPlan:
    planned = plan(base, options, **adapters).serving
    assert planned is not None
    return planned


def problems(base: Path, options: ReleaseOptions = OPTIONS, **adapters: Path) -> list[Any]:
    with pytest.raises(RejectedPlanError) as caught:
        plan(base, options, **adapters)
    return list(caught.value.problems)


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy_tokenizer(base: Path, adapter: Path, **config: Any) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base / name, adapter / name)
    path = adapter / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_one_server_of_all_adapters(base: Path, plain: Path, tmp_path: Path) -> None:
    large = make_adapter(base, tmp_path / "large", r=20, lora_alpha=16)
    planned = plan(base, a=plain, b=large)
    server = planned.serving
    assert server is not None
    assert [(item.name, item.rank) for item in server.adapters] == [("a", 4), ("b", 20)]
    assert (server.max_lora_rank, server.max_loras, server.max_cpu_loras) == (32, 2, 2)
    assert server.base.name == "small-base"
    assert server.base.dtype == "bfloat16"
    assert server.base.context is None
    assert not server.trusts_templates
    assert parse_plan(render_plan(planned), where="plan") == planned


def test_only_what_is_asked_for_is_served(base: Path, plain: Path) -> None:
    assert plan(base, ReleaseOptions(targets=("adapter",)), a=plain).serving is None


def test_the_served_type_can_be_chosen(base: Path, plain: Path) -> None:
    options = dataclasses.replace(OPTIONS, dtype="F32")
    assert serving(base, options, a=plain).base.dtype == "float32"


def test_a_context_is_what_is_asked_for_or_what_fits(base: Path, plain: Path) -> None:
    asked = dataclasses.replace(OPTIONS, max_model_len=128)
    assert serving(base, asked, a=plain).base.context == 128
    told = dataclasses.replace(OPTIONS, gpu_memory_bytes=24_000_000_000)
    assert serving(base, told, a=plain).base.context == 512
    too_long = dataclasses.replace(OPTIONS, max_model_len=1024)
    (problem,) = problems(base, too_long, a=plain)
    assert type(problem) is InputError
    assert (problem.where, problem.expected) == ("--max-model-len", "at most 512")


def test_adapters_that_do_not_fit_at_once_are_swapped(base: Path, tmp_path: Path) -> None:
    large = make_adapter(base, tmp_path / "large", r=512, target_modules=["q_proj"])
    gathered = gather_all(base, large=large)
    sources = [
        dataclasses.replace(gathered.adapters[0], name=f"number-{number}") for number in range(300)
    ]
    options = dataclasses.replace(OPTIONS, gpu_memory_bytes=4_000_000_000)
    server, found = plan_serving(sources, gathered.base, options)
    assert found == []
    assert server is not None
    # 4 kB for each rank on every matrix, and at most an eighth of the memory for all of them.
    assert server.max_loras == 4_000_000_000 // 8 // (512 * 4096) == 238
    assert server.max_cpu_loras == 300


def test_a_base_that_fits_on_no_gpus_is_refused(base: Path, plain: Path) -> None:
    tiny = dataclasses.replace(OPTIONS, gpu_memory_bytes=1_000_000)
    (problem,) = problems(base, tiny, a=plain)
    assert type(problem) is InputError
    assert problem.where == "--gpu-memory"


@pytest.mark.parametrize(
    ("lora", "feature"),
    [
        ({"use_dora": True}, "dora"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"trainable_token_indices": [3, 5]}, "trainable_token_indices"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA on embeddings"),
    ],
)
def test_what_vllm_refuses_is_served_merged(
    base: Path, tmp_path: Path, lora: dict[str, Any], feature: str
) -> None:
    adapter = make_adapter(base, tmp_path / "special", **lora)
    found = [item for item in problems(base, a=adapter) if repr(feature) in item.what]
    assert type(found[0]) is UnsupportedFeatureError
    assert "vLLM 0.32.0 cannot serve" in found[0].what
    assert "--target merged" in found[0].hint


def test_an_initialisation_that_changed_the_base_is_refused(base: Path, adapter: Path) -> None:
    configure(adapter, init_lora_weights="pissa")
    assert any("'init_lora_weights'" in item.what for item in problems(base, a=adapter))


def test_a_rank_above_all_is_refused(base: Path, tmp_path: Path) -> None:
    huge = make_adapter(base, tmp_path / "huge", r=513, target_modules=["q_proj"])
    (problem,) = problems(base, a=huge)
    assert problem.expected == "at most 512"
    assert "--target merged" in problem.hint


def test_a_tokenizer_saved_again_is_the_same(base: Path, adapter: Path) -> None:
    copy_tokenizer(base, adapter)
    path = adapter / "tokenizer.json"
    document = json.loads(path.read_text())
    # As a trainer leaves it: batches were filled up, and merges are written as pairs or as text.
    document["padding"] = {"strategy": "BatchLongest", "direction": "Left"}
    document["truncation"] = {"max_length": 512}
    document["model"]["merges"] = [
        item if isinstance(item, str) else " ".join(item) for item in document["model"]["merges"]
    ]
    document["model"]["ignore_merges"] = None
    path.write_text(json.dumps(document))
    (served,) = serving(base, a=adapter).adapters
    assert served.template is None
    assert served.stop_ids == ()


def test_another_tokenizer_is_refused_by_name(base: Path, adapter: Path) -> None:
    copy_tokenizer(base, adapter)
    path = adapter / "tokenizer.json"
    document = json.loads(path.read_text())
    document["added_tokens"][0]["content"] = "<|other|>"
    path.write_text(json.dumps(document))
    (problem,) = problems(base, pirate=adapter)
    assert type(problem) is UnsupportedFeatureError
    assert "'pirate' has another tokenizer" in problem.what
    assert "--target merged" in problem.hint


def test_a_chat_template_of_its_own_is_served(base: Path, adapter: Path) -> None:
    copy_tokenizer(base, adapter)
    own = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    (adapter / "chat_template.jinja").write_text(own)
    server = serving(base, a=adapter, b=adapter)
    assert [item.template for item in server.adapters] == [own, own]
    assert server.trusts_templates


def test_special_tokens_of_its_own_stand_in_its_template(base: Path, adapter: Path) -> None:
    copy_tokenizer(base, adapter, eos_token="<|endoftext|>")
    (adapter / "chat_template.jinja").write_text("\n{{ bos_token }}{{ eos_token }}")
    (served,) = serving(base, a=adapter).adapters
    assert served.template is not None
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    # The server fills in the base's.
    said = environment.from_string(served.template).render(
        bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    assert said == "\n<|im_start|><|endoftext|>"
    assert served.stop_ids == (0,)


def test_an_adapters_template_serves_a_base_without_one(base: Path, plain: Path) -> None:
    bare = Path(shutil.copytree(base, plain.parent / "bare"))
    (bare / "chat_template.jinja").unlink()
    talking = Path(shutil.copytree(plain, plain.parent / "talking"))
    (talking / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    server = serving(bare, a=talking, b=plain)
    assert not server.base.chat
    assert [item.template for item in server.adapters] == [CHAT_TEMPLATE, None]


def test_a_base_without_a_tokenizer_is_refused(base: Path, plain: Path, tmp_path: Path) -> None:
    silent = Path(shutil.copytree(base, tmp_path / "silent"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (silent / name).unlink()
    (problem,) = problems(silent, a=plain)
    assert type(problem) is BaseError
    assert "has no tokenizer" in problem.what


def test_an_adapter_is_not_called_as_the_base(base: Path, plain: Path) -> None:
    (problem,) = problems(base, **{"small-base": plain})
    assert "name under which the base is served" in problem.what


def test_a_gated_base_is_baked_only_with_consent(base: Path, plain: Path) -> None:
    gathered = gather_all(base, a=plain)
    origin = gathered.base.origin
    assert origin is not None
    gated = dataclasses.replace(
        gathered.base, origin=dataclasses.replace(origin, gated=True)
    )  # fmt: skip
    options = dataclasses.replace(OPTIONS, bake_base=True)
    with pytest.raises(RejectedPlanError) as caught:
        plan_release(gathered.adapters, gated, options)
    (problem,) = caught.value.problems
    assert type(problem) is LicenseError
    assert "--accept-license" in problem.expected
    agreed = dataclasses.replace(options, accept_license=True)
    server = plan_release(gathered.adapters, gated, agreed).serving
    assert server is not None
    assert server.base.baked


def test_an_architecture_without_adapters_is_refused(
    base: Path, plain: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    (problem,) = problems(other, a=plain)
    assert "takes no adapters on GPT2LMHeadModel" in problem.what


def test_another_task_is_refused(base: Path, adapter: Path) -> None:
    configure(adapter, task_type="SEQ_CLS")
    found = [item for item in problems(base, a=adapter) if "SEQ_CLS" in item.found]
    assert "--target merged" in found[0].hint


def test_a_language_model_trained_by_itself_is_found_in_the_whole(tmp_path: Path) -> None:
    """The server loads the composite model, whose names the adapter does not have."""
    whole = save_base("llama4-vision", tmp_path / "whole")
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    (whole / "tokenizer.json").write_text(json.dumps(tokenizer))
    (whole / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    alone = Llama4ForCausalLM(Llama4Config.from_pretrained(whole).text_config)
    tuned = get_peft_model(alone, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    tuned.save_pretrained(tmp_path / "adapter")
    (target,) = plan(whole, a=tmp_path / "adapter").targets
    assert target.served is not None
    stored = set(load_file(whole / "model.safetensors"))
    for factor in target.served.factors:
        module = factor.name.removeprefix("base_model.model.").partition(".lora_")[0]
        assert f"{module}.weight" in stored
        assert module.startswith("language_model.model.layers.")
        assert factor.source.startswith("base_model.model.model.layers.")
