"""The plan: a value made from values, with every tensor and file in it, or every problem."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.errors import (
    AdapterError,
    BaseError,
    InputError,
    LorapackError,
    RejectedPlanError,
    UnsupportedFeatureError,
)
from packager.gather import Gathered, gather
from packager.plan import (
    Addition,
    Copy,
    Delta,
    Magnitude,
    PlannedFile,
    PlannedShard,
    PlannedTensor,
    ReleaseOptions,
    ReleasePlan,
    RowReplacement,
    TargetPlan,
    parse_plan,
    plan_release,
    render_plan,
)
from packager.plan.document import plan_document
from packager.plan.option import parse_size
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests.adapter.test_feature import CHANGES, MERGED_NOW
from tests.folders import BASE_SHAPES, K_PROJ, PREFIX, Q_PROJ, pair, write_adapter, write_base

Golden = Callable[[str, str], None]

OPTIONS = ReleaseOptions(targets=("adapter", "merged"))


def gather_all(base: Path, **adapters: Path) -> Gathered:
    return gather(tuple(adapters.items()), base=str(base), progress=Silent())


def plan(base: Path, options: ReleaseOptions | None = None, **adapters: Path) -> ReleasePlan:
    gathered = gather_all(base, **adapters)
    return plan_release(gathered.adapters, gathered.base, options or ReleaseOptions())


def problems(base: Path, options: ReleaseOptions | None = None, **adapters: Path) -> list[Any]:
    with pytest.raises(RejectedPlanError) as caught:
        plan(base, options, **adapters)
    return list(caught.value.problems)


def write_tokenizer(folder: Path, tokens: int, **config: Any) -> None:
    vocabulary = {f"词{number}": number for number in range(tokens)}
    files = {
        "tokenizer.json": {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **config},
    }
    for name, document in files.items():
        (folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two shards, tied, with tokenizer, chat template, licence and generation settings."""
    names = list(BASE_SHAPES)
    shards = (
        {name: BASE_SHAPES[name] for name in names[:2]},
        {name: BASE_SHAPES[name] for name in names[2:]},
    )
    base = write_base(tmp_path / "base", shards)
    write_tokenizer(base, 16)
    for name, text in {
        "chat_template.jinja": "{{ messages }}",
        "generation_config.json": "{}",
        "LICENSE": "Apache License",
        "preprocessor_config.json": "{}",
    }.items():
        (base / name).write_text(text, encoding="utf-8")
    return base


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def test_golden_of_a_tied_head_with_its_own_tokenizer(
    base: Path, tmp_path: Path, check_golden: Golden
) -> None:
    adapter = write_adapter(
        tmp_path / "adapter",
        pair(Q_PROJ, rank=2) | pair("lm_head", width=8, height=16),
        target_modules=["q_proj", "lm_head"],
        rank_pattern={"q_proj": 2},
        use_rslora=True,
    )
    write_tokenizer(adapter, 15, chat_template="{{ own }}")
    check_golden("plan/tied_head.json", render_plan(plan(base, OPTIONS, 海盗=adapter)))


def test_golden_of_two_adapters_in_another_dtype(
    base: Path, adapter: Path, tmp_path: Path, check_golden: Golden
) -> None:
    other = write_adapter(tmp_path / "other", pair(Q_PROJ) | pair(K_PROJ))
    options = ReleaseOptions(targets=("merged",), dtype="BF16", max_shard_bytes=200)
    check_golden("plan/two_adapters.json", render_plan(plan(base, options, one=adapter, two=other)))


def test_every_tensor_of_the_base_has_one_rule(base: Path, adapter: Path) -> None:
    _, merged = plan(base, OPTIONS, a=adapter).targets
    by_name = {tensor.name: tensor for tensor in merged.tensors}
    assert len(by_name) == len(merged.tensors)
    assert set(by_name) == set(BASE_SHAPES)
    assert {name for name, tensor in by_name.items() if tensor.rule == "lora"} == {
        f"{Q_PROJ}.weight"
    }
    assert by_name[f"{Q_PROJ}.weight"].deltas == (
        Delta(
            adapter="a",
            module=Q_PROJ,
            lora_a=f"{PREFIX}{Q_PROJ}.lora_A.weight",
            lora_b=f"{PREFIX}{Q_PROJ}.lora_B.weight",
            rank=4,
            scale=2.0,
        ),
    )
    assert not merged.unties_head


def test_a_lora_on_a_tied_head_adds_a_head_and_leaves_the_embedding(
    base: Path, tmp_path: Path
) -> None:
    shapes = pair("lm_head", width=8, height=16)
    adapter = write_adapter(tmp_path / "a", shapes, target_modules=["lm_head"])
    made = plan(base, a=adapter)
    merged = made.targets[1]
    *others, head = merged.tensors
    assert (head.name, head.source, head.rule) == (
        "lm_head.weight", "model.embed_tokens.weight", "lora",
    )  # fmt: skip
    assert {tensor.rule for tensor in others} == {"copy"}
    assert merged.unties_head
    assert any("tie_word_embeddings" in note for note in made.notes)


class DiskWatch:
    """An audit hook, since those cannot be taken away again: it counts only when asked to."""

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        watched = ("open", "os.", "shutil.", "socket.", "subprocess.", "tempfile.", "glob.")
        if self.seen is not None and event.startswith(watched):
            self.seen.append(f"{event} {arguments!r}")


@pytest.fixture(scope="module")
def disk_watch() -> Iterator[DiskWatch]:
    watch = DiskWatch()
    yield watch
    watch.seen = None


def test_the_plan_reads_no_disk(
    base: Path, adapter: Path, disk_watch: DiskWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = gather_all(base, a=adapter)
    first = plan_release(gathered.adapters, gathered.base, ReleaseOptions())
    shutil.rmtree(base)
    shutil.rmtree(adapter)
    monkeypatch.setenv("LORAPACK_TEST", "a variable")
    disk_watch.seen = []
    second = plan_release(gathered.adapters, gathered.base, ReleaseOptions())
    seen, disk_watch.seen = disk_watch.seen, None
    assert seen == []
    assert second == first


def test_the_watch_on_the_disk_sees_an_open(tmp_path: Path, disk_watch: DiskWatch) -> None:
    disk_watch.seen = []
    (tmp_path / "x").write_text("x", encoding="utf-8")
    seen, disk_watch.seen = disk_watch.seen, None
    assert len(seen) == 1


def test_a_plan_holds_plain_values_only(base: Path, adapter: Path) -> None:
    def walk(value: Any) -> Iterator[type]:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from walk(getattr(value, field.name))
        elif isinstance(value, tuple):
            for item in value:
                yield from walk(item)
        else:
            yield type(value)

    assert set(walk(plan(base, a=adapter))) <= {str, int, float, bool, type(None)}


text = st.text(st.characters(codec="utf-8"), max_size=12)
sizes = st.integers(0, 1 << 60)
scales = st.floats(allow_nan=False, allow_infinity=False)


def tuples(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(items, max_size=3).map(tuple)


deltas = st.one_of(
    st.builds(
        Delta, adapter=text, module=text, lora_a=text, lora_b=text, rank=sizes, scale=scales,
        blocks=st.tuples(sizes, sizes), idle=tuples(text),
    ),
    st.builds(Magnitude, adapter=text, module=text, magnitude=text, axis=st.just("column")),
    st.builds(RowReplacement, adapter=text, module=text, rows=text, indices=tuples(sizes)),
    st.builds(Addition, adapter=text, module=text, values=text, scale=scales),
)  # fmt: skip
copies = st.builds(Copy, adapter=text, name=text, original=st.none() | text, in_base=st.booleans())
tensors = st.builds(
    PlannedTensor, name=text, dtype=st.sampled_from(["F32", "BF16"]), shape=tuples(sizes),
    rule=st.sampled_from(["copy", "cast", "lora"]), source=text, deltas=tuples(deltas),
    source_adapter=st.none() | text, copies=tuples(copies), shared=tuples(text),
)  # fmt: skip
targets = st.builds(
    TargetPlan,
    target=st.sampled_from(["adapter", "merged"]),
    name=text,
    path=text,
    shards=tuples(st.builds(PlannedShard, path=text, tensors=tuples(tensors), data_start=sizes)),
    files=tuples(
        st.builds(
            PlannedFile, path=text, origin=st.sampled_from(["adapter", "base", "written"]),
            size=st.none() | sizes,
        )
    ),
    unties_head=st.booleans(),
)  # fmt: skip
plans = st.builds(
    ReleasePlan, schema_version=st.just(1), base=text, evidence=text, license=text,
    targets=tuples(targets), notes=tuples(text), output_bytes=sizes, read_bytes=sizes,
    peak_memory_bytes=sizes, behaviour_memory_bytes=sizes, seconds=scales,
)  # fmt: skip


@settings(max_examples=60)
@given(plans)
def test_a_plan_survives_json(made: ReleasePlan) -> None:
    assert parse_plan(render_plan(made), where="x") == made
    assert json.loads(render_plan(made)) == json.loads(json.dumps(plan_document(made)))


@pytest.mark.parametrize(
    "change", [{"schema_version": 2}, {"targets": None}, {"targets": [1]}, {"more": 1}]
)
def test_a_damaged_plan_is_refused(base: Path, adapter: Path, change: dict[str, Any]) -> None:
    raw = json.loads(render_plan(plan(base, a=adapter))) | change
    with pytest.raises(InputError, match="plan is damaged"):
        parse_plan(json.dumps(raw), where="x")


def test_every_problem_is_shown_together(base: Path, tmp_path: Path) -> None:
    crowded = write_adapter(
        tmp_path / "crowded",
        pair(Q_PROJ, width=16) | pair("model.layers.7.self_attn.q_proj") | {"stray": (1, 1)},
        target_modules=["k_proj"],
    )
    write_tokenizer(crowded, 17)
    alora = write_adapter(tmp_path / "alora", alora_invocation_tokens=[5])
    options = ReleaseOptions(targets=("merged", "ollama"))
    gathered = gather((("a/b", crowded), ("two", alora), ("two", alora)), base=str(base),
                      progress=Silent())  # fmt: skip
    with pytest.raises(RejectedPlanError) as caught:
        plan_release(gathered.adapters, gathered.base, options)
    found = [(type(item), str(item)) for item in caught.value.problems]
    for kind, part in (
        (InputError, "cannot be a folder and a repository name"),
        (InputError, "two adapters have one name"),
        (AdapterError, "1 tensors of the adapter are left over"),
        (AdapterError, "the tokenizer has more tokens than the embedding has rows"),
        (AdapterError, "1 of 2 adapted modules are not in the base"),
        (AdapterError, "has another width than the base"),
        (AdapterError, "adapter_config.json does not select them"),
        (UnsupportedFeatureError, "feature 'alora'"),
    ):
        assert any(item is kind and part in line for item, line in found), part
    assert all(item.hint for item in caught.value.problems)
    assert str(caught.value) == found[0][1]


TARGETS: list[Any] = [None, ("adapter",), ("merged",)]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(
    "module", [f"model.{Q_PROJ}", "language_model.model.layers.0.self_attn.q_proj", "q_proj"]
)
def test_a_wrong_prefix_is_refused_for_every_target(
    base: Path, tmp_path: Path, targets: Any, module: str
) -> None:
    """PEFT and vLLM would load it without a word, and answer as the base."""
    adapter = write_adapter(tmp_path / "a", pair(module) | pair(K_PROJ))
    (problem,) = problems(base, ReleaseOptions(targets=targets), a=adapter)
    assert isinstance(problem, AdapterError)
    assert problem.what.startswith("1 of 2 adapted modules are not in the base")
    assert problem.found == repr(module)
    assert "layers.0" in problem.expected
    assert "prefix" in problem.hint


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("width", "height"), [(16, 8), (8, 16), (4, 4)])
def test_another_width_is_refused_for_every_target(
    base: Path, tmp_path: Path, targets: Any, width: int, height: int
) -> None:
    adapter = write_adapter(tmp_path / "a", pair(Q_PROJ, width=width, height=height))
    (problem,) = problems(base, ReleaseOptions(targets=targets), a=adapter)
    assert "another width" in problem.what
    assert f"({height}, {width})" in problem.expected
    assert problem.found.startswith("(8, 8) in model-")


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(
    "config",
    [{}, {"use_rslora": True}, {"layers_to_transform": [0]}, {"target_modules": ".*q_proj"}],
)
@pytest.mark.parametrize("name", ["stray", f"{Q_PROJ}.lora_A.weight", f"{PREFIX}a.lora_A.default"])
def test_a_tensor_left_over_is_refused_whatever_else_the_adapter_uses(
    base: Path, tmp_path: Path, targets: Any, config: dict[str, Any], name: str
) -> None:
    adapter = write_adapter(tmp_path / "a", pair(Q_PROJ) | {name: (4, 8)}, **config)
    (problem,) = problems(base, ReleaseOptions(targets=targets), a=adapter)
    assert "left over: no rule uses them" in problem.what
    assert repr(name) in problem.found


def test_a_module_that_the_config_does_not_select_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", pair(Q_PROJ) | pair(K_PROJ), target_modules=["k_proj"])
    (problem,) = problems(base, a=adapter)
    assert "does not select them" in problem.what
    assert problem.found == repr(Q_PROJ)


@pytest.mark.parametrize(("own", "tokens", "fits"), [
    (True, 16, True), (True, 17, False), (False, 16, True), (False, 17, False),
])  # fmt: skip
def test_a_tokenizer_longer_than_the_embedding_is_refused(
    base: Path, adapter: Path, own: bool, tokens: int, fits: bool
) -> None:
    write_tokenizer(adapter if own else base, tokens)
    if fits:
        plan(base, a=adapter)
        return
    (problem,) = problems(base, a=adapter)
    assert "more tokens than the embedding has rows" in problem.what
    assert (problem.expected, problem.found) == ("at most 16", "17")


UNSUPPORTED = [(field, *CHANGES[field]) for field in CHANGES if CHANGES[field][1] not in MERGED_NOW]


@pytest.mark.parametrize(("field", "value", "feature"), UNSUPPORTED)
def test_an_unsupported_feature_is_named_before_anything_is_written(
    base: Path, tmp_path: Path, field: str, value: Any, feature: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", **{field: value})
    before = sorted(tmp_path.rglob("*"))
    request = ReleaseRequest(
        adapters=((None, adapter),),
        out=tmp_path / "deep/out",
        base=str(base),
        options=ReleaseOptions(targets=("merged",)),
    )
    with pytest.raises(RejectedPlanError) as caught:
        release(request, Silent())
    assert any(f"feature {feature!r}" in problem.what for problem in caught.value.problems)
    assert sorted(tmp_path.rglob("*")) == before
    kept = plan(base, a=adapter)
    assert [target.target for target in kept.targets] == ["adapter"]
    assert not any("normalised" in file.path for file in kept.targets[0].files)


def test_an_unsupported_feature_has_no_normalised_form_even_with_a_scale_of_its_own(
    base: Path, tmp_path: Path
) -> None:
    """Folding a DoRA's scale into lora_B would make another adapter."""
    plain = write_adapter(tmp_path / "plain", use_rslora=True)
    shapes = pair(Q_PROJ) | {f"{PREFIX}{Q_PROJ}.lora_magnitude_vector": (8,)}
    dora = write_adapter(tmp_path / "dora", shapes, use_rslora=True, use_dora=True)
    made = plan(base, plain=plain, dora=dora)
    folded = {target.name: any("normalised" in file.path for file in target.files)
              for target in made.targets if target.target == "adapter"}  # fmt: skip
    assert folded == {"plain": True, "dora": False}


def test_modules_and_experts_that_the_base_has_not_are_refused(base: Path, tmp_path: Path) -> None:
    loha = write_adapter(tmp_path / "loha", {f"{PREFIX}x.hada_w1_a": (8, 4)}, peft_type="LOHA")
    experts = write_adapter(
        tmp_path / "experts",
        pair("model.layers.0.mlp.experts", 16),
        target_parameters=["mlp.experts.down_proj"],
    )
    found = [item.what for item in problems(base, loha=loha, experts=experts)]
    assert any("belong to no module of the base" in what for what in found)
    assert any("which parameters of 'model.layers.0.mlp.experts'" in what for what in found)


@pytest.mark.parametrize("config", [{"quant_method": "awq"}, {"bits": 4}])
def test_a_base_quantised_otherwise_is_refused(tmp_path: Path, adapter: Path, config: Any) -> None:
    base = write_base(tmp_path / "quantised", quantization_config=config)
    (problem,) = problems(base, a=adapter)
    assert isinstance(problem, BaseError)
    assert "quantised" in problem.what
    assert "16-bit original" in problem.hint


@pytest.mark.parametrize("config", [{"quant_method": "bitsandbytes"}, {"load_in_4bit": True}])
def test_a_base_that_is_only_called_quantised_is_refused(
    tmp_path: Path, adapter: Path, config: Any
) -> None:
    base = write_base(tmp_path / "quantised", quantization_config=config)
    (problem,) = problems(base, a=adapter)
    assert isinstance(problem, BaseError)
    assert "none of its weights is" in problem.what


def test_a_weight_of_no_mergeable_type_is_refused(tmp_path: Path, adapter: Path) -> None:
    base = write_base(tmp_path / "integers", dtype="int8")
    (problem,) = problems(base, a=adapter)
    assert isinstance(problem, BaseError)
    assert problem.found == "I8"


def origins(made: ReleasePlan, target: str) -> dict[str, str]:
    (folder,) = [item for item in made.targets if item.target == target]
    return {file.path: file.origin for file in folder.files}


@pytest.mark.parametrize("target", ["merged", "adapter"])
def test_the_tokenizer_is_the_base_s_where_the_adapter_has_none(
    base: Path, adapter: Path, target: str
) -> None:
    found = origins(plan(base, a=adapter), target)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                 "preprocessor_config.json", "LICENSE"):  # fmt: skip
        assert found[name] == "base"


@pytest.mark.parametrize("target", ["merged", "adapter"])
@pytest.mark.parametrize("template", ["none", "file", "config"])
def test_the_tokenizer_is_the_adapter_s_whole_where_it_has_one(
    base: Path, adapter: Path, target: str, template: str
) -> None:
    write_tokenizer(adapter, 16, **({"chat_template": "x"} if template == "config" else {}))
    (base / "special_tokens_map.json").write_text("{}", encoding="utf-8")
    if template == "file":
        (adapter / "chat_template.jinja").write_text("x", encoding="utf-8")
    found = origins(plan(base, a=adapter), target)
    assert (found["tokenizer.json"], found["tokenizer_config.json"]) == ("adapter", "adapter")
    assert "special_tokens_map.json" not in found
    assert found["preprocessor_config.json"] == "base"
    wanted = {"none": "base", "file": "adapter", "config": None}[template]
    assert found.get("chat_template.jinja") == wanted


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[dict[str, tuple[int, ...]]], int, bool]:
    """Shards of a base, a largest size in bytes, and whether the head is adapted."""
    count = draw(st.integers(1, 4))
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(count)]
    shards[0]["model.embed_tokens.weight"] = (draw(st.integers(1, 9)), 8)
    for number, shard in enumerate(shards):
        for place in range(draw(st.integers(1, 6))):
            shard[f"t{number}.{place}.weight"] = (draw(st.integers(0, 12)), 8)
    return shards, draw(st.integers(1, 2_000)), draw(st.booleans())


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_shards_keep_the_base_s_boundaries_and_the_largest_size(
    tmp_path_factory: pytest.TempPathFactory, layout: Any
) -> None:
    shapes, most, head = layout
    folder = tmp_path_factory.mktemp("layout")
    base = write_base(folder / "base", tuple(shapes))
    module = "lm_head" if head else "t0.0"
    rows, width = shapes[0]["model.embed_tokens.weight" if head else "t0.0.weight"]
    adapter = write_adapter(
        folder / "adapter", pair(module, width=width, height=rows), target_modules=[module]
    )
    gathered = gather_all(base, a=adapter)
    options = ReleaseOptions(targets=("merged",), max_shard_bytes=most)
    (merged,) = plan_release(gathered.adapters, gathered.base, options).targets
    index = gathered.base.index
    names = [tensor.name for tensor in merged.tensors]
    assert names == [*index.tensors, *(["lm_head.weight"] if head else [])]
    for shard in merged.shards:
        assert shard.nbytes <= most or len([t for t in shard.tensors if t.nbytes]) == 1
        files = {index.tensors[t.name].file for t in shard.tensors if t.name != "lm_head.weight"}
        assert len(files) <= 1
    paths = [shard.path for shard in merged.shards]
    total = len(paths)
    assert paths == (
        ["model.safetensors"]
        if total == 1
        else [f"model-{n:05d}-of-{total:05d}.safetensors" for n in range(1, total + 1)]
    )
    indexed = "model.safetensors.index.json" in {file.path for file in merged.files}
    assert indexed is (total > 1)


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [
        ("5GB", 5_000_000_000), ("5GiB", 5 << 30), ("500MiB", 500 << 20), ("1.5 gb", 1_500_000_000),
        ("1000000", 1_000_000), ("1000KB", 1_000_000), ("2t", 2_000_000_000_000),
    ],
)  # fmt: skip
def test_a_size_is_read(given_text: str, wanted: int) -> None:
    assert parse_size(given_text) == wanted


@pytest.mark.parametrize(
    "given_text", ["", "5", "999999", "-5GB", "5XB", "GB", "1e9", "inf", "NaN", "9" * 400 + "TB"]
)
def test_what_is_no_size_is_refused(given_text: str) -> None:
    with pytest.raises(LorapackError, match="not a size of a file"):
        parse_size(given_text)


@pytest.mark.parametrize("name", ["海盗", "my-adapter_1.2", "a", "Ünïcode", "x" * 96])
def test_a_good_name(base: Path, adapter: Path, name: str) -> None:
    made = plan(base, OPTIONS, **{name: adapter})
    assert [item.path for item in made.targets] == [f"adapter/{name}", f"merged/{name}"]


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "-a", "_a", ".hidden", "a.", "a b", "a\n", "🏴‍☠️", "x" * 97, "C:"]
)
def test_a_name_that_cannot_be_a_folder_is_refused(base: Path, adapter: Path, name: str) -> None:
    (problem,) = problems(base, **{name: adapter})
    assert "cannot be a folder and a repository name" in problem.what
