"""Reading a GGUF's header: what the gguf package reads, and never a crash."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packager.errors import InputError
from packager.publish.ollama_gguf import read_gguf_header
from packager.publish.store_image import file_type_name
from tests.publish_ollama.bundle import JINJA, write_gguf
from tests.publish_ollama.test_ollama import smollm2_gguf


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_a_header_is_what_the_gguf_package_reads(small: Path) -> None:
    for path in (small, smollm2_gguf()):
        header = read_gguf_header(path)
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents for name, field in reader.fields.items()}
        assert header.architecture == fields["general.architecture"]()
        assert header.kind == fields["general.type"]()
        assert header.file_type == fields["general.file_type"]()
        assert header.chat_template == fields["tokenizer.chat_template"]()
        assert header.parameters == sum(int(tensor.n_elements) for tensor in reader.tensors)
        assert header.splits == 1
    assert read_gguf_header(small).chat_template == JINJA


@pytest.mark.parametrize(
    ("number", "name"),
    [(15, "Q4_K_M"), (18, "Q6_K"), (32, "BF16"), (0, "unknown"), (99, "unknown")],
)
def test_the_mixture_has_ollamas_name(tmp_path: Path, number: int, name: str) -> None:
    header = read_gguf_header(write_gguf(tmp_path / "x.gguf", file_type=number))
    assert (header.file_type, file_type_name(header)) == (number, name)


def test_a_file_that_says_nothing_of_itself(tmp_path: Path) -> None:
    header = read_gguf_header(write_gguf(tmp_path / "x.gguf", file_type=None, splits=3))
    assert (header.file_type, header.splits) == (0, 3)


def test_a_header_that_is_cut_is_refused(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    header_bytes = data.rindex(b"output_norm.weight") + 18 + 4 + 8 + 4 + 8
    path = tmp_path / "cut.gguf"
    for size in range(0, header_bytes, 3):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="not a GGUF that Ollama can read"):
            read_gguf_header(path)
    path.write_bytes(data[:header_bytes])
    assert read_gguf_header(path) == read_gguf_header(small)


@settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_is_refused_or_harmless(
    small: Path, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(small.read_bytes())
    for place, value in changes:
        data[place] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with suppress(InputError):
        header = read_gguf_header(path)
        assert header.splits >= 1
        assert header.parameters >= 0
