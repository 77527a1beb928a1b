"""Running a GGUF file in llama.cpp, in a process of its own with a time limit.

llama.cpp is C++ that reads strangers' files: what goes wrong in it must not take this process
along. Logits come back through a pipe, one passage at a time, so memory stays bounded on both
sides.

llama.cpp on a processor does not compute as torch does: before each product with a quantised
matrix it rounds the activations too, to eight bits in blocks of 32 (Q8_0) or 256 (Q8_K), and to
float16 or bfloat16 before one with such a matrix. That is part of what users of the file get, and
part of the figures.

Source: llama.cpp 0c1e57098, ggml/src/ggml-cpu/ggml-cpu.c, type_traits_cpu, vec_dot_type.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from packager.errors import ProcessError, ProofError
from packager.process import open_program

_PACKAGE = "xllamacpp"
_MAX_LINE_BYTES = 1 << 20
_START_SECONDS = 300
_BYTES_PER_SECOND = 1 << 20
"""How slowly a file may be worked on; about ten times what two slow cores need."""


@dataclass(frozen=True)
class Answer:
    """What llama.cpp wrote after a prompt, with the token that ended it, if one did."""

    ids: tuple[int, ...]
    ended: bool


@dataclass
class LlamaRun:
    """A run of llama.cpp over passages, then over prompts.

    Attributes:
        vocabulary: Width of the logits.
        version: Of llama.cpp.
        exact_cache: Whether keys and values were kept in float32, or else in float16.
        knows_end: Whether llama.cpp ends generation at the token asked about.
        answers: To the prompts, once all logits have been read.
    """

    vocabulary: int
    version: str
    exact_cache: bool
    knows_end: bool
    _passages: int
    _output: IO[bytes]
    answers: tuple[Answer, ...] = field(default=())

    def read_logits(self) -> Iterator[Tensor]:
        """Yields the logits of each passage, shape (tokens − 1, vocabulary), float32."""
        for _ in range(self._passages):
            count = _read_line(self._output)["bytes"]
            raw = bytearray(count)
            view = memoryview(raw)
            while view:
                # The pipe hands over as much as it holds.
                got = self._output.readinto(view)  # type: ignore[attr-defined]
                if not got:
                    raise EOFError
                view = view[got:]
            yield torch.frombuffer(raw, dtype=torch.float32).view(-1, self.vocabulary)
        found = _read_line(self._output)["answers"]
        self.answers = tuple(Answer(tuple(item["ids"]), item["ended"]) for item in found)


@contextmanager
def run_llama(
    model: Path,
    passages: Sequence[tuple[int, ...]],
    *,
    prompts: Sequence[tuple[int, ...]] = (),
    most: int = 0,
    end: int | None = None,
    adapter: Path | None = None,
    scale: float = 1.0,
    seconds: float | None = None,
) -> Iterator[LlamaRun]:
    """Loads a GGUF model in llama.cpp and has it read passages of token ids.

    Args:
        model: The file; of a split model the first.
        passages: Token ids, at least two each.
        prompts: Token ids to be continued greedily afterwards.
        most: Most tokens of a continuation.
        end: A token that should end generation, or None.
        adapter: A GGUF LoRA, or None.
        scale: Its strength.
        seconds: Time limit; by default one that grows with the files.

    Raises:
        ProofError: llama.cpp is missing, cannot load the file, or does not get through.
    """
    files = [*split_parts(model), *([adapter] if adapter is not None else [])]
    request = {
        "library": str(find_library()),
        "model": str(model),
        "adapter": str(adapter) if adapter is not None else None,
        "scale": scale,
        "threads": os.cpu_count() or 1,
        "passages": passages,
        "prompts": prompts,
        "most": most,
        "end": end,
    }
    limit = seconds if seconds is not None else time_limit(files)
    with (
        _as_proof_error(model),
        open_program(
            worker_command("packager.verify.llamaworker"),
            seconds=limit,
            given=json.dumps(request).encode(),
            environment=worker_environment(),
        ) as output,
    ):
        facts = _read_line(output)
        yield LlamaRun(**facts, _passages=len(passages), _output=output)


def split_parts(model: Path) -> list[Path]:
    """Returns all files of a model, given the first.

    Source: llama.cpp 0c1e57098, src/llama.cpp, llama_split_path: `%s-%05d-of-%05d.gguf`.
    """
    head, mark, count = model.stem.rpartition("-of-")
    if not mark or not head.endswith("-00001") or not count.isdigit():
        return [model]
    start = head.removesuffix("00001")
    return [model.with_name(f"{start}{n:05d}-of-{count}.gguf") for n in range(1, int(count) + 1)]


def time_limit(files: Sequence[Path]) -> float:
    """Returns how many seconds a run over these files may take."""
    return _START_SECONDS + sum(path.stat().st_size for path in files) / _BYTES_PER_SECOND


def find_library() -> Path:
    """Returns xllamacpp's shared object; xllamacpp itself is not imported.

    Raises:
        ProofError: It is missing.
    """
    spec = find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob(f"{_PACKAGE}*.so")):
            return path
    raise ProofError(
        "llama.cpp, which runs GGUF files, is missing",
        where=_PACKAGE,
        expected="xllamacpp with its shared object",
        hint="install lorapack again: pip install --force-reinstall xllamacpp",
    )


def worker_command(module: str) -> list[str]:
    """Returns the command of a worker; the current folder is not searched for modules."""
    return [sys.executable, "-P", "-m", module]


def worker_environment() -> Mapping[str, str]:
    """Returns an environment in which the worker finds this very package."""
    root = str(Path(__file__).resolve().parents[2])
    given = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, given)))}


def _read_line(output: IO[bytes]) -> dict[str, Any]:
    line = output.readline(_MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError
    value: dict[str, Any] = json.loads(line)
    if "error" in value:
        raise ProofError(
            "llama.cpp does not run the file",
            found=value["error"][:400],
            hint="release again; if it stays, this architecture needs a newer xllamacpp",
        )
    return value


@contextmanager
def _as_proof_error(model: Path) -> Iterator[None]:
    try:
        yield
    except ProcessError as problem:
        raise ProofError(
            "llama.cpp ended before it had read the test text",
            where=str(model),
            expected=problem.expected,
            found=problem.found or problem.what,
            hint="check the file with: lorapack verify BUNDLE --level files",
        ) from problem
    except ProofError as problem:
        if problem.where:
            raise
        raise ProofError(
            problem.what,
            where=str(model),
            expected=problem.expected,
            found=problem.found,
            hint=problem.hint,
        ) from problem
