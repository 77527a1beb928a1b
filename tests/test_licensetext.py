"""Recognising licences by their text, on the real texts that installed packages carry."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import pytest

from packager.licensetext import recognise_license

PROJECT = Path(__file__).parent.parent


def license_of(package: str, name: str) -> str:
    paths = [path for path in distribution(package).files or [] if path.name == name]
    return Path(str(paths[0].locate())).read_text(encoding="utf-8")


APACHE = (PROJECT / "LICENSE").read_text(encoding="utf-8")
MIT = license_of("pytest", "LICENSE")
BSD_3 = license_of("click", "LICENSE.txt")
BSD_2 = license_of("packaging", "LICENSE.BSD")

LLAMAS = {
    "llama2": ("Llama 2", "Release Date: July 18, 2023", "LLAMA 2 Community License"),
    "llama3.1": ("Llama 3.1", "Release Date: July 23, 2024", "Llama 3.1 Community License"),
    "llama3.2": ("Llama 3.2", "Release Date: September 25, 2024", "Llama 3.2 Community License"),
    "llama3.3": ("Llama 3.3", "Release Date: December 6, 2024", "Llama 3.3 Community License"),
    "llama4": ("Llama 4", "Effective Date: April 5, 2025", "Llama 4 Community License"),
}


def llama_like(release: str, date: str, agreement: str, *, filler: int = 1000) -> str:
    """The frame of a Llama licence: its title, dates and fixed clauses, and words in between."""
    return (
        f"{release.upper()} COMMUNITY LICENSE AGREEMENT\n{release} Version {date}\n"
        "a. You are granted a non-exclusive, worldwide, non-transferable and royalty-free limited "
        f"license.\n“{release} is licensed under the {agreement}, Copyright © Meta Platforms, "
        "Inc. All Rights Reserved.”\n is greater than 700 million monthly active users\n"
        + "term " * filler
        + "\nconstrued under the laws of the State of California"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (APACHE, "apache-2.0"),
        (license_of("packaging", "LICENSE.APACHE"), "apache-2.0"),
        (license_of("peft", "LICENSE"), "apache-2.0"),
        (MIT, "mit"),
        (license_of("pluggy", "LICENSE"), "mit"),
        (BSD_3, "bsd-3-clause"),
        (license_of("psutil", "LICENSE"), "bsd-3-clause"),
        (license_of("jinja2", "LICENSE.txt"), "bsd-3-clause"),
        (BSD_2, "bsd-2-clause"),
        (license_of("rust-just", "LICENSE"), "cc0-1.0"),
    ],
)
def test_real_texts(text: str, expected: str) -> None:
    assert recognise_license(text) == expected


@pytest.mark.parametrize("license_id", LLAMAS)
def test_llama_licences_are_told_apart(license_id: str) -> None:
    assert recognise_license(llama_like(*LLAMAS[license_id])) == license_id


def test_llama_with_the_date_of_another_is_not_certain() -> None:
    name, _, agreement = LLAMAS["llama3.2"]
    assert recognise_license(llama_like(name, LLAMAS["llama3.3"][1], agreement)) is None


@pytest.mark.parametrize("filler", [100, 5000])
def test_llama_of_the_wrong_length_is_not_certain(filler: int) -> None:
    assert recognise_license(llama_like(*LLAMAS["llama3.2"], filler=filler)) is None


def test_layout_and_typography_do_not_matter() -> None:
    wrapped = "\n".join(f"> **{line}**" for line in MIT.upper().splitlines())
    assert recognise_license(wrapped.replace('"', "“")) == "mit"
    assert recognise_license(APACHE.replace("\n", "\r\n")) == "apache-2.0"


def test_the_apache_appendix_may_be_missing() -> None:
    terms, _, _ = APACHE.partition("APPENDIX")
    assert recognise_license(terms) == "apache-2.0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "This model is released under the MIT licence.",
        "Apache License, Version 2.0\nhttp://www.apache.org/licenses/LICENSE-2.0",
        MIT.replace("without restriction", "without restriction, except commercially,"),
        MIT.replace("publish, ", ""),
        f"{MIT}\nThe software must not be used commercially.",
        f"{MIT}\n{BSD_3}",
        f"{APACHE}\n\n{MIT}",
        "word " * 80 + MIT,
        APACHE.replace("perpetual", "revocable"),
        APACHE.partition("END OF TERMS")[0],
        BSD_3.replace("endorse", "advertise"),
        llama_like(*LLAMAS["llama3.2"]).replace("700 million", "7 million"),
        "\n".join(llama_like(*LLAMAS[name]) for name in ("llama3.2", "llama3.1")),
    ],
)
def test_everything_else_is_not_certain(text: str) -> None:
    assert recognise_license(text) is None


def test_a_huge_text_is_answered_at_once() -> None:
    assert recognise_license("in no event shall " * 60_000) is None
