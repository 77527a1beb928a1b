"""Finding, choosing and explaining the licence of a release."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.errors import LicenseError
from packager.license import (
    HUB_LICENSES,
    LicenseFinding,
    choose_license,
    find_license,
    name_other,
)
from packager.obligation import display_text, name_prefix, notice_text, obligations
from tests.test_licensetext import APACHE, BSD_3, LLAMAS, MIT, llama_like

LLAMA = llama_like(*LLAMAS["llama3.2"])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "база 🦙"
    directory.mkdir()
    return directory


def write(base: Path, **files: str) -> None:
    for name, text in files.items():
        (base / name.replace("__", ".")).write_text(text, encoding="utf-8")


def readme(*lines: str) -> str:
    return "\n".join(["---", *lines, "---", "# A base"])


def test_front_matter_comes_first(base: Path) -> None:
    write(base, README__md=readme("language: [en]", "license: Llama3.2"))
    assert find_license(base) == LicenseFinding("llama3.2", None, None, "README.md", ())


def test_the_text_of_a_licence_file_is_enough(base: Path) -> None:
    write(base, LICENSE__txt=LLAMA, README__md="# No front matter")
    found = find_license(base)
    assert (found.id, found.source, found.documents) == (
        "llama3.2",
        "LICENSE.txt",
        ("LICENSE.txt",),
    )


def test_a_notice_does_not_license_the_base(base: Path) -> None:
    write(base, NOTICE__txt=APACHE)
    assert (find_license(base).id, find_license(base).documents) == (None, ("NOTICE.txt",))


def test_every_licence_document_travels_along(base: Path) -> None:
    names = [
        "LICENSE", "LICENSE-2.0", "LICENSE.MIT", "License_Gemma.md", "NOTICE", "Notice.txt",
        "USE_POLICY.md", "Meta-Llama-3-Community-License-Agreement.txt", "COPYING", "licence.txt",
        "THIRD-PARTY-NOTICES.txt", "ACCEPTABLE_USE_POLICY.md",
    ]  # fmt: skip
    others = ["license.py", "licensed.json", "notice.bin", "config.json", "unlicensed", "README.md"]
    for name in [*names, *others]:
        (base / name).write_text("text", encoding="utf-8")
    (base / "LICENSES").mkdir()
    assert find_license(base).documents == tuple(sorted(names))


def test_other_brings_its_name_and_link(base: Path) -> None:
    lines = ("license: other", "license_name: qwen", "license_link: ./LICENSE")
    write(base, README__md=readme(*lines), LICENSE="Tongyi Qianwen LICENSE AGREEMENT …")
    found = find_license(base)
    assert (found.id, found.name, found.link) == ("other", "qwen", "LICENSE")
    assert choose_license(found, None) == "other"


@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("https://example.org/licence?v=2", "https://example.org/licence?v=2"),
        ("LICENSE", "LICENSE"),
        ("javascript:alert(1)", None),
        ("../../etc/passwd", None),
        ("MISSING.md", None),
        ('"https://a b"', None),
        ("null", None),
    ],
)
def test_a_link_is_an_address_or_a_file_that_is_there(
    base: Path, link: str, kept: str | None
) -> None:
    write(base, README__md=readme("license: other", f"license_link: {link}"), LICENSE="own")
    assert find_license(base).link == kept


@pytest.mark.parametrize("vague", ["other", "unknown", "llama-3", "", "bsd"])
def test_a_known_text_sharpens_a_vague_readme(base: Path, vague: str) -> None:
    write(base, README__md=readme(f"license: {vague}"), LICENSE=BSD_3 if vague == "bsd" else APACHE)
    expected = "bsd-3-clause" if vague == "bsd" else "apache-2.0"
    assert find_license(base).id == expected
    assert find_license(base).source == "LICENSE"


def test_a_family_is_not_turned_into_another(base: Path) -> None:
    write(base, README__md=readme("license: gpl"), LICENSE=MIT)
    assert find_license(base).id == "gpl"


def test_readme_and_text_that_disagree_are_a_contradiction(base: Path) -> None:
    write(base, README__md=readme("license: mit"), LICENSE__txt=LLAMA)
    found = find_license(base)
    assert (found.id, found.claims) == (None, ("mit", "llama3.2"))
    with pytest.raises(LicenseError, match="contradicts itself") as caught:
        choose_license(found, None)
    assert caught.value.found == "mit and llama3.2"
    assert caught.value.where == "README.md and LICENSE.txt"
    assert "--license ID" in caught.value.hint
    assert choose_license(found, "llama3.2") == "llama3.2"
    with pytest.raises(LicenseError, match="binds what is derived"):
        choose_license(found, "apache-2.0")


def test_two_texts_without_a_word_in_the_readme_are_a_contradiction(base: Path) -> None:
    write(base, LICENSE=APACHE, LICENSE__MIT=MIT)
    assert find_license(base).claims == ("apache-2.0", "mit")


def test_two_texts_are_fine_where_the_readme_names_one(base: Path) -> None:
    write(base, README__md=readme("license: llama3.2"), LICENSE__txt=LLAMA, LICENSE_CODE=APACHE)
    assert find_license(base).id == "llama3.2"
    assert find_license(base).claims == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# No front matter",
        readme("license: unknown"),
        readme("license: [mit, apache-2.0]"),
        readme("license: something-of-mine"),
        readme("license: {id: mit}"),
        readme("a: &a [x]", "license: *a"),
        readme("license: mit", "license: gemma"),
        "---\n" + "x: [" * 9000 + "\n---\n",
    ],
)
def test_unknown_asks_for_the_option(base: Path, text: str) -> None:
    write(base, README__md=text, LICENSE="All rights are ours.")
    found = find_license(base)
    assert found == LicenseFinding(None, None, None, "", ("LICENSE",))
    with pytest.raises(LicenseError, match="does not say") as caught:
        choose_license(found, None)
    assert "--license ID" in caught.value.hint
    assert caught.value.found == "only LICENSE, not recognised"
    assert choose_license(found, "gemma") == "gemma"


def test_nothing_at_all_asks_for_the_option(base: Path) -> None:
    assert find_license(base) == LicenseFinding(None, None, None, "", ())
    with pytest.raises(LicenseError, match="does not say") as caught:
        choose_license(None, None)
    assert caught.value.found == "neither"
    assert choose_license(None, "mit") == "mit"


def test_a_readme_that_is_no_text_is_silent(base: Path) -> None:
    (base / "README.md").write_bytes(b"---\nlicense: mit\n\xff\xfe---\n")
    (base / "LICENSE").write_bytes(b"\xff" * 100)
    assert find_license(base).id is None


def test_a_giant_licence_file_is_not_read(base: Path) -> None:
    write(base, LICENSE=MIT + " " * (2 << 20))
    assert find_license(base).id is None


def test_links_out_of_the_base_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key", encoding="utf-8")
    (base / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(LicenseError, match="leads outside"):
        find_license(base)


def test_a_readme_that_links_out_is_not_read(base: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(readme("license: mit"), encoding="utf-8")
    (base / "README.md").symlink_to(tmp_path / "secret")
    assert find_license(base).id is None


def test_links_into_the_store_of_a_hub_cache_are_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    for directory in (blobs, snapshot):
        directory.mkdir(parents=True)
    (blobs / "abc").write_text(readme("license: gemma"), encoding="utf-8")
    (snapshot / "README.md").symlink_to("../../blobs/abc")
    assert find_license(snapshot).id == "gemma"


LLAMA_FOUND = LicenseFinding("llama3.2", None, None, "README.md", ())


def test_the_base_decides() -> None:
    assert choose_license(LLAMA_FOUND, None) == "llama3.2"
    assert choose_license(LLAMA_FOUND, "llama3.2") == "llama3.2"


def test_another_licence_than_the_bases_is_refused() -> None:
    with pytest.raises(LicenseError) as caught:
        choose_license(LLAMA_FOUND, "mit")
    error = caught.value
    assert "a base's licence binds what is derived from it" in error.what
    assert (error.expected, error.found) == ("llama3.2, from README.md", "mit")
    assert error.where == "--license"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("Apache 2.0", "apache-2.0"),
        ("MIT License", "mit"),
        ("llama-3.2", "llama3.2"),
        ("unknown", "an id such as"),
        ("", "an id such as"),
        ("🏴‍☠️", "an id such as"),
    ],
)
def test_no_id_of_the_hub_is_refused_with_the_right_spelling(wanted: str, expected: str) -> None:
    with pytest.raises(LicenseError, match="no licence id") as caught:
        choose_license(None, wanted)
    assert caught.value.expected.startswith(expected)


def test_other_needs_a_name_and_a_link() -> None:
    link = "https://example.org"
    for name, address in ((None, link), ("qwen", None)):
        found = LicenseFinding("other", name, address, "README.md", ())
        with pytest.raises(LicenseError, match="name and a link") as caught:
            choose_license(found, None)
        assert "license_name and license_link" in caught.value.expected
    with pytest.raises(LicenseError, match="name and a link"):
        choose_license(None, "other")
    named = LicenseFinding("other", "qwen", link, "README.md", ())
    assert choose_license(named, "other") == "other"
    with pytest.raises(LicenseError, match="binds"):
        choose_license(named, "mit")


@pytest.mark.parametrize("lines", [(), ("license: other",), ("license: unknown",)])
def test_a_licence_file_stands_for_an_other_without_a_name(
    base: Path, lines: tuple[str, ...]
) -> None:
    write(base, README__md=readme(*lines), LICENSE="Our own terms.", NOTICE="(c) us")
    found = name_other(find_license(base), "other")
    assert choose_license(found, "other") == "other"
    assert (found.name, found.link) == ("license-of-the-base", "LICENSE")
    assert name_other(find_license(base), None) == find_license(base)
    named = ("license: other", "license_name: ours", "license_link: https://example.org/ours")
    write(base, README__md=readme(*named))
    assert name_other(find_license(base), "other") == find_license(base)


def test_a_notice_is_no_licence_file(base: Path) -> None:
    write(base, README__md=readme("license: other"), NOTICE="(c) us")
    with pytest.raises(LicenseError, match="name and a link"):
        choose_license(name_other(find_license(base), "other"), "other")


def test_an_unnamed_other_and_a_family_may_be_made_precise() -> None:
    assert choose_license(LicenseFinding("other", None, None, "README.md", ()), "gemma") == "gemma"
    family = LicenseFinding("gpl", None, None, "README.md", ())
    assert choose_license(family, "gpl-3.0") == "gpl-3.0"
    with pytest.raises(LicenseError, match="binds"):
        choose_license(family, "mit")


def test_the_hubs_list_is_whole() -> None:
    assert len(HUB_LICENSES) == 83
    assert {"apache-2.0", "openrail++", "llama3.3", "gemma", "other", "lppl-1.3c"} <= HUB_LICENSES


@pytest.mark.parametrize("license_id", sorted(HUB_LICENSES))
def test_duties_are_single_sentences(license_id: str) -> None:
    for duty in obligations(license_id):
        assert duty.endswith((".", "”", "policy", "terms"))
        assert duty[0].isupper()
        assert "\n" not in duty


@pytest.mark.parametrize(
    ("license_id", "prefix", "display", "notice"),
    [
        ("llama2", None, None, "Llama 2 is licensed under the LLAMA 2 Community License"),
        (
            "llama3",
            "Llama 3",
            "Built with Meta Llama 3",
            "Meta Llama 3 is licensed under the Meta Llama 3 Community License",
        ),
        (
            "llama3.2",
            "Llama",
            "Built with Llama",
            "Llama 3.2 is licensed under the Llama 3.2 Community License",
        ),
        (
            "llama4",
            "Llama",
            "Built with Llama",
            "Llama 4 is licensed under the Llama 4 Community License",
        ),
        ("gemma", None, None, "Gemma is provided under and subject to the Gemma Terms of Use"),
    ],
)
def test_what_llama_and_gemma_ask_for(
    license_id: str, prefix: str | None, display: str | None, notice: str
) -> None:
    duties = " ".join(obligations(license_id))
    assert name_prefix(license_id) == prefix
    assert display_text(license_id) == display
    assert str(notice_text(license_id)).startswith(notice)
    assert str(notice_text(license_id)) in duties
    for required in (prefix, display):
        assert required is None or f"“{required}”" in duties


def test_only_the_early_llamas_forbid_training_others() -> None:
    forbidding = {name for name in HUB_LICENSES if "used to improve" in " ".join(obligations(name))}
    assert forbidding == {"llama2", "llama3"}


def test_permissive_licences_ask_for_no_name() -> None:
    assert obligations("other") == obligations("no such id") == ()
    for license_id in ("mit", "apache-2.0", "bsd", "other"):
        assert (
            name_prefix(license_id) is notice_text(license_id) is display_text(license_id) is None
        )
