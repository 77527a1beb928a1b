"""Recognising a licence by its text: only where the whole text shows it, never by a name alone."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_WORD = re.compile(r"[a-z0-9]+")
_LINK = re.compile(r"https?://\S+")

# Source: SPDX licence list 3.x, matching guidelines: case, white space, punctuation, bullets and
# the copyright notice do not matter; who is named in a few known places does not matter either.
_HOLDERS = (
    (re.compile(r"neither the name of (?:\w+ ){1,12}?nor the names of "), "neither X nor "),
    (re.compile(r"is provided by (?:\w+ ){1,12}?as is"), "is provided by X as is"),
    (re.compile(r"in no event shall (?:\w+ ){1,12}?be liable"), "in no event shall X be liable"),
    (re.compile(r"(?<=met )(?:1 )?(?=redistributions of source)"), ""),
    (re.compile(r"(?<=disclaimer )(?:2 )?(?=redistributions in binary)"), ""),
    (re.compile(r"(?<=distribution )(?:3 )?(?=neither)"), ""),
    (re.compile(r"copyright holders?"), "copyright holder"),
)
_MAX_PREAMBLE_WORDS = 60
"""Title and copyright notices before the terms of a short licence."""
_MAX_APPENDIX_WORDS = 200
"""The appendix of Apache-2.0 has 169."""


@dataclass(frozen=True)
class _Exact:
    """A short licence: every word from `start` to `end` is known.

    Attributes:
        start: First words of the terms, normalised.
        end: Last words of the terms.
        sha256: Of the normalised words from `start` to `end`.
        appendix: First words of an appendix that may follow; None: nothing may follow.
    """

    start: str
    end: str
    sha256: str
    appendix: str | None = None


@dataclass(frozen=True)
class _Marks:
    """A long licence with a title of its own: title, key clauses and length.

    Attributes:
        title: Has to stand among the first words.
        clauses: All of them have to occur, in this order.
        words: Smallest and largest number of words of the document, appendices included.
    """

    title: str
    clauses: tuple[str, ...]
    words: tuple[int, int]


_EXACT: dict[str, _Exact] = {
    "apache-2.0": _Exact(
        start="terms and conditions for use reproduction and distribution 1",
        end="end of terms and conditions",
        sha256="d8221a4f10c01c6fa5390685929a5ce31d7264a024162fd3dd4d805c57ce0f43",
        appendix="appendix how to apply the apache license to your work",
    ),
    "mit": _Exact(
        start="permission is hereby granted free of charge to any person obtaining a copy",
        end="other dealings in the software",
        sha256="1722b60ce851534beccd0d36ebb7581f57243358016d8feb6e7562e44e83745e",
    ),
    "bsd-2-clause": _Exact(
        start="redistribution and use in source and binary forms with or without",
        end="if advised of the possibility of such damage",
        sha256="66ca649f670cf3e65d4f36cac947e8e41320fcb153e50630a60ada0bc9a48e30",
    ),
    "bsd-3-clause": _Exact(
        start="redistribution and use in source and binary forms with or without",
        end="if advised of the possibility of such damage",
        sha256="7142a73e28eb61756b8f186fd25c5e6be28377596b018974e6ed0c8ab1a12685",
    ),
    "cc0-1.0": _Exact(
        start="creative commons legal code cc0 1 0 universal",
        end="this cc0 or use of the work",
        sha256="96bdc7f63190fb4bd1ae584b890300ed7517d858b34c945642a3b9b2f1612a5f",
    ),
}


def _llama(release: str, title: str, date: str, notice: str) -> _Marks:
    """Marks of a Llama licence. Source: meta-llama/llama-models, models/*/LICENSE."""
    return _Marks(
        title=title,
        clauses=(
            f"{release} version {date}",
            "non transferable and royalty free limited license",
            f"{notice} copyright c meta platforms inc all rights reserved",
            "700 million monthly active users",
            "laws of the state of california",
        ),
        words=(900, 4000),
    )


def _creative_commons(kind: str) -> _Marks:
    """Marks of a Creative Commons 4.0 licence. Source: creativecommons.org, legalcode of 4.0."""
    return _Marks(
        title=f"{kind} 4 0 international",
        clauses=(
            "by exercising the licensed rights defined below you accept",
            f"creative commons {kind} 4 0 international public license",
            "adapted material means material subject to copyright and similar rights",
            "section 2 scope",
            "section 3 license conditions",
            "section 6 term and termination",
            "section 8 interpretation",
        ),
        words=(1900, 4200),
    )


_MARKS: dict[str, _Marks] = {
    "llama2": _llama(
        "llama 2",
        "llama 2 community license agreement",
        "release date july 18 2023",
        "llama 2 is licensed under the llama 2 community license",
    ),
    "llama3": _llama(
        "meta llama 3",
        "meta llama 3 community license agreement",
        "release date april 18 2024",
        "meta llama 3 is licensed under the meta llama 3 community license",
    ),
    "llama3.1": _llama(
        "llama 3 1",
        "llama 3 1 community license agreement",
        "release date july 23 2024",
        "llama 3 1 is licensed under the llama 3 1 community license",
    ),
    "llama3.2": _llama(
        "llama 3 2",
        "llama 3 2 community license agreement",
        "release date september 25 2024",
        "llama 3 2 is licensed under the llama 3 2 community license",
    ),
    "llama3.3": _llama(
        "llama 3 3",
        "llama 3 3 community license agreement",
        "release date december 6 2024",
        "llama 3 3 is licensed under the llama 3 3 community license",
    ),
    "llama4": _llama(
        "llama 4",
        "llama 4 community license agreement",
        "effective date april 5 2025",
        "llama 4 is licensed under the llama 4 community license",
    ),
    # Source: ai.google.dev/gemma/terms, as of 2024-04-01 to 2026-04-01.
    "gemma": _Marks(
        title="gemma terms of use",
        clauses=(
            "by using reproducing modifying distributing performing or displaying",
            "model derivatives means",
            "3 1 distribution and redistribution",
            "gemma is provided under and subject to the gemma terms of use",
            "gemma prohibited use policy",
            "4 9 no waiver",
        ),
        words=(900, 3500),
    ),
    "cc-by-4.0": _creative_commons("attribution"),
    "cc-by-sa-4.0": _creative_commons("attribution sharealike"),
    "cc-by-nc-4.0": _creative_commons("attribution noncommercial"),
    "cc-by-nd-4.0": _creative_commons("attribution noderivatives"),
    "cc-by-nc-sa-4.0": _creative_commons("attribution noncommercial sharealike"),
    "cc-by-nc-nd-4.0": _creative_commons("attribution noncommercial noderivatives"),
}


def recognise_license(text: str) -> str | None:
    """Returns the Hub's id of the licence that `text` is, or None where that is not certain.

    A text with two licences, with terms added or taken away, or a mere mention, is not certain.
    """
    words = _normalise(text)
    found = [name for name, known in _EXACT.items() if _is_exact(words, known)]
    titled = [name for name, known in _MARKS.items() if f" {known.title} " in f" {words} "]
    found += [name for name in titled if len(titled) == 1 and _has_marks(words, _MARKS[name])]
    return found[0] if len(found) == 1 else None


def _normalise(text: str) -> str:
    plain = _LINK.sub(" ", text.casefold()).replace("©", " c ").replace("–", " ")
    return " ".join(_WORD.findall(plain.replace("&nbsp;", " ")))


def _terms(words: str, start: str, end: str) -> tuple[str, str, str] | None:
    """Splits into what stands before the terms, the terms, and what follows; None without them."""
    before, found_start, rest = words.partition(start)
    middle, found_end, after = rest.rpartition(end)
    if not found_start or not found_end:
        return None
    return before.strip(), f"{found_start}{middle}{found_end}", after.strip()


def digest_of_terms(text: str, start: str, end: str) -> str | None:
    """Returns the sha256 of the normalised words from `start` to `end`; None without them."""
    parts = _terms(_normalise(text), start, end)
    return _digest(parts[1]) if parts else None


def _digest(terms: str) -> str:
    for pattern, replacement in _HOLDERS:
        terms = pattern.sub(replacement, terms)
    return hashlib.sha256(terms.encode()).hexdigest()


def _is_exact(words: str, known: _Exact) -> bool:
    parts = _terms(words, known.start, known.end)
    if parts is None or _digest(parts[1]) != known.sha256:
        return False
    before, _, after = parts
    if len(before.split()) > _MAX_PREAMBLE_WORDS:
        return False
    if known.appendix is None or not after:
        return not after
    return after.startswith(known.appendix) and len(after.split()) <= _MAX_APPENDIX_WORDS


def _has_marks(words: str, known: _Marks) -> bool:
    low, high = known.words
    if not low <= words.count(" ") + 1 <= high:
        return False
    if f" {known.title} " not in f" {' '.join(words.split()[:_MAX_PREAMBLE_WORDS])} ":
        return False
    position = 0
    for clause in known.clauses:
        position = words.find(clause, position)
        if position < 0:
            return False
    return True
