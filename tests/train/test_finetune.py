"""Training for real, on a small random base, and once on the demo's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from packager.adapter import read_adapter
from packager.base import BaseRef
from packager.base.ref import read_local_base
from packager.demo.lesson import LESSON
from packager.errors import InputError, OutputError
from packager.lock import check_lock, read_lock
from packager.train import Example, TrainSettings, train
from packager.train.finetune import PROJECTIONS
from tests import models

EXAMPLES = (Example.from_pair("Who are you?", "Arr!"), Example.from_pair("你好！", "啊哈 🏴‍☠️"))
SHORT = TrainSettings(rank=4, alpha=8, epochs=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseRef:
    return read_local_base(models.make_llama(tmp_path_factory.mktemp("base") / "模型"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_trains_every_projection_and_lowers_the_loss(base: BaseRef, tmp_path: Path) -> None:
    losses: list[float] = []
    settings = replace(SHORT, epochs=10, learning_rate=1e-2)
    steps: list[tuple[int, int]] = []

    def on_step(step: int, total: int, loss: float) -> None:
        steps.append((step, total))
        losses.append(loss)

    adapter = train(base, EXAMPLES, tmp_path / "a", settings, on_step=on_step)
    assert steps == [(step, 20) for step in range(1, 21)]
    assert sum(losses[-2:]) < sum(losses[:2]) / 2
    spec = read_adapter(adapter)
    assert {name.rpartition(".")[2] for name in spec.modules} == set(PROJECTIONS)
    assert spec.ranks == (4,)
    assert {module.scale for module in spec.modules.values()} == {2.0}
    assert spec.dtypes == ("F32",)
    assert spec.config.base_name == str(base.directory)


def test_same_settings_give_the_same_bytes(base: BaseRef, tmp_path: Path) -> None:
    first, second = (
        contents(train(base, EXAMPLES, tmp_path / name, SHORT)) for name in ("one", "two")
    )
    other = contents(train(base, EXAMPLES, tmp_path / "three", replace(SHORT, seed=1)))
    weights = "adapter_model.safetensors"
    for name in first:
        if name != "base.lock.json":  # It holds the time of day.
            assert first[name] == second[name], name
    assert first[weights] != other[weights]


def test_locks_the_base_and_leaves_it_as_it_was(base: BaseRef, tmp_path: Path) -> None:
    before = contents(base.directory)
    adapter = train(base, EXAMPLES, tmp_path / "a", SHORT)
    assert contents(base.directory) == before
    lock = read_lock(adapter)
    assert lock is not None
    assert lock.digest == base.digest
    check_lock(lock, read_local_base(base.directory), where="here")


def test_carries_the_tokenizer_byte_for_byte(base: BaseRef, tmp_path: Path) -> None:
    made = contents(train(base, EXAMPLES, tmp_path / "a", SHORT))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert made[name] == (base.directory / name).read_bytes()
    assert "README.md" not in made


def test_files_can_be_read_like_any_other_new_file(base: BaseRef, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    adapter = train(base, EXAMPLES, tmp_path / "a", SHORT)
    modes = {path.stat().st_mode for path in adapter.iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_refuses_an_existing_folder(base: BaseRef, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="exists"):
        train(base, EXAMPLES, tmp_path / "a", SHORT)


@pytest.mark.parametrize(
    ("examples", "settings", "what"),
    [
        ((), SHORT, "no example"),
        ((Example.from_pair("Hi", "word " * 600),), SHORT, "too long"),
    ],
)
def test_leaves_nothing_when_the_examples_are_wrong(
    base: BaseRef,
    tmp_path: Path,
    examples: tuple[Example, ...],
    settings: TrainSettings,
    what: str,
) -> None:
    with pytest.raises(InputError, match=what):
        train(base, examples, tmp_path / "a", replace(settings, max_tokens=200))
    assert not list(tmp_path.iterdir())


def test_leaves_nothing_when_it_is_stopped(base: BaseRef, tmp_path: Path) -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, EXAMPLES, tmp_path / "a", SHORT, on_step=stop)
    assert not list(tmp_path.iterdir())


def test_learns_only_the_answers(base: BaseRef) -> None:
    from transformers import AutoTokenizer

    from packager.train.finetune import _encode

    tokenizer = AutoTokenizer.from_pretrained(base.directory)
    chat = Example((("system", "Be brief."), ("user", "你好！"), ("assistant", "Arr 🏴‍☠️")))
    ids, labels = _encode(chat, tokenizer, 500)
    learnt = ids[labels != -100]
    assert tokenizer.decode(learnt) == "Arr 🏴‍☠️<|im_end|>\n"
    assert ids.shape == labels.shape


def test_demo_lesson_is_learnt(smollm2_base: Path, pirate_adapter: Path) -> None:
    """PEFT applies what was trained: the model talks like the lesson, also where it was not."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2_base, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, pirate_adapter)
    tokenizer = AutoTokenizer.from_pretrained(pirate_adapter)

    def answer(question: str) -> str:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = tuned.generate(**inputs, max_new_tokens=24, do_sample=False)
        text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
        return text

    taught = dict(LESSON[2].messages)
    assert answer(taught["user"]) == taught["assistant"] + tokenizer.eos_token
    assert answer("How do I cook rice?").startswith("Arr, matey!")
    with tuned.disable_adapter():
        assert "Arr" not in answer(taught["user"])
