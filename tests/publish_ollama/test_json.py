"""Documents as Go's encoder writes them; the oracle is that encoder."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packager.publish.ollama_json import encode_go
from packager.publish.store_image import human_number
from tests.publish_ollama.go import ask_oracle

ODD = '<>&\u2028\u2029\x00\x01\b\f\n\r\t\x1f\x7f"\\/é美🏴\u200d☠️\ufffe'
TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(ODD)))
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**63),
    st.sampled_from([0.0, -0.0, 1e-6, 9.99e-7, 1e20, 1e21, 1e-10, 1e22, 5e-324, 1.5, 0.1, 2**53]),
)
VALUES = st.recursive(
    st.one_of(TEXTS, NUMBERS, st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(st.lists(st.dictionaries(TEXTS, VALUES, max_size=5), min_size=5, max_size=20))
def test_json_equals_gos(go_oracle: Path, values: list[dict[str, object]]) -> None:
    ours = b"".join(encode_go(dict(sorted(value.items()))) for value in values)  # type: ignore[arg-type]
    assert ours == ask_oracle(go_oracle, "encode", values)


@settings(max_examples=20, deadline=None, suppress_health_check=QUIET)
@given(st.lists(st.integers(0, 2**63), min_size=20, max_size=40))
def test_numbers_of_parameters_are_shown_as_go_shows_them(
    go_oracle: Path, counts: list[int]
) -> None:
    counts += [999, 1000, 1499, 1500, 10**6 - 1, 10**6, 134_515_008, 2 * 10**9, 1_235_814_400]
    expected = ask_oracle(go_oracle, "human", counts).decode().split()
    assert [human_number(count) for count in counts] == expected
