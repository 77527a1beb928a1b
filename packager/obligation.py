"""What a licence asks of those who pass on something derived, as short lines for the card."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Terms:
    """The terms that concern a derived model.

    Attributes:
        duties: One sentence each.
        notice: The text that the licence wants in a file called `Notice`.
        name_prefix: What the name of a derived model has to start with.
        display: What has to be shown prominently.
    """

    duties: tuple[str, ...]
    notice: str | None = None
    name_prefix: str | None = None
    display: str | None = None


def _llama(release: str, policy: str, *, prefix: str, built_with: str, trains: bool) -> _Terms:
    """Terms of a Llama 3 or 4 licence, sections 1.b.i to 1.b.v and 2.

    Source: meta-llama/llama-models, models/llama3*/LICENSE and models/llama4/LICENSE.
    """
    agreement = f"{release} Community License"
    notice = (
        f"{release} is licensed under the {agreement}, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
    )
    duties = [
        f"Pass on a copy of the {agreement} Agreement with the model.",
        (
            f"Show “{built_with}” prominently on a related website, user interface, blog post, "
            "about page or product documentation."
        ),
        f"The name of a model made with {release} has to begin with “{prefix}”.",
        f"Keep the attribution notice in a file called `Notice`: “{notice}”",
        f"Follow the Acceptable Use Policy: {policy}",
        (
            "Whoever had more than 700 million monthly active users in the month before the "
            f"release of {release} needs a licence of their own from Meta."
        ),
    ]
    if not trains:
        duties.append(
            f"Neither the model nor its output may be used to improve a language model other than "
            f"{release} and what is derived from it."
        )
    return _Terms(tuple(duties), notice, prefix, built_with)


_LLAMA_2_NOTICE = (
    "Llama 2 is licensed under the LLAMA 2 Community License, "
    "Copyright (c) Meta Platforms, Inc. All Rights Reserved."
)
_GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms"
)
_CREDIT = "Give credit to the creators, name the licence with a link to it, and keep notices."
_CHANGED = "Say that the material was changed."
_SHARE_ALIKE = "Share what you derive under the same or a compatible licence."
_NON_COMMERCIAL = "Commercial use is not permitted."
_NO_DERIVATIVES = (
    "The licence does not permit sharing adapted material: whether this release may be passed on "
    "at all is for the base's owner to say."
)
_RAIL = (
    (
        "Pass the licence's use-based restrictions on as an enforceable term, and give every "
        "recipient a copy of the licence."
    ),
    "Mark changed files as changed, and keep copyright, patent, trademark and attribution notices.",
)

_TERMS: dict[str, _Terms] = {
    # Source: Apache-2.0, section 4.
    "apache-2.0": _Terms(
        (
            "Give recipients a copy of the licence.",
            (
                "Keep the copyright, patent, trademark and attribution notices, and the "
                "contents of a NOTICE file if there is one."
            ),
            "Changed files have to carry a notice that they were changed.",
        )
    ),
    "mit": _Terms(("Keep the copyright notice and the permission notice in every copy.",)),
    "bsd-2-clause": _Terms(("Keep the copyright notice, the conditions and the disclaimer.",)),
    "bsd-3-clause": _Terms(
        (
            "Keep the copyright notice, the conditions and the disclaimer.",
            "Do not use the authors' names to endorse what is derived without their permission.",
        )
    ),
    # Source: meta-llama/llama-models, models/llama2/LICENSE, sections 1.b and 2.
    "llama2": _Terms(
        (
            "Pass on a copy of the Llama 2 Community License Agreement with the model.",
            f"Keep the attribution notice in a file called `Notice`: “{_LLAMA_2_NOTICE}”",
            "Follow the Acceptable Use Policy: https://ai.meta.com/llama/use-policy",
            (
                "Whoever had more than 700 million monthly active users in the month before the "
                "release of Llama 2 needs a licence of their own from Meta."
            ),
            (
                "Neither the model nor its output may be used to improve a language model other "
                "than Llama 2 and what is derived from it."
            ),
        ),
        _LLAMA_2_NOTICE,
    ),
    "llama3": _llama(
        "Meta Llama 3",
        "https://llama.meta.com/llama3/use-policy",
        prefix="Llama 3",
        built_with="Built with Meta Llama 3",
        trains=False,
    ),
    **{
        f"llama{number}": _llama(
            f"Llama {number}", policy, prefix="Llama", built_with="Built with Llama", trains=True
        )
        for number, policy in (
            ("3.1", "https://llama.meta.com/llama3_1/use-policy"),
            ("3.2", "https://www.llama.com/llama3_2/use-policy"),
            ("3.3", "https://www.llama.com/llama3_3/use-policy"),
            ("4", "https://www.llama.com/llama4/use-policy"),
        )
    },
    # Source: ai.google.dev/gemma/terms (2026-04-01), sections 3.1 and 3.2.
    "gemma": _Terms(
        (
            (
                "Put the use restrictions of section 3.2 into every agreement under which you pass "
                "the model on, and tell recipients that they are bound by them."
            ),
            "Give recipients a copy of the Gemma Terms of Use: https://ai.google.dev/gemma/terms",
            "Changed files have to carry a prominent notice that they were changed.",
            f"Keep this text in a file called `Notice`: “{_GEMMA_NOTICE}”",
            "Follow the Prohibited Use Policy: https://ai.google.dev/gemma/prohibited_use_policy",
        ),
        _GEMMA_NOTICE,
    ),
    # Source: creativecommons.org, legalcode of the 4.0 licences, sections 2 and 3.
    "cc-by-4.0": _Terms((_CREDIT, _CHANGED)),
    "cc-by-sa-4.0": _Terms((_CREDIT, _CHANGED, _SHARE_ALIKE)),
    "cc-by-nc-4.0": _Terms((_CREDIT, _CHANGED, _NON_COMMERCIAL)),
    "cc-by-nd-4.0": _Terms((_CREDIT, _NO_DERIVATIVES)),
    "cc-by-nc-sa-4.0": _Terms((_CREDIT, _CHANGED, _NON_COMMERCIAL, _SHARE_ALIKE)),
    "cc-by-nc-nd-4.0": _Terms((_CREDIT, _NON_COMMERCIAL, _NO_DERIVATIVES)),
    # Source: BigScience Open RAIL-M License of 2022-08-18, section III.4.
    "bigscience-openrail-m": _Terms(_RAIL),
}

_UNLISTED = _Terms(())


def obligations(license_id: str) -> tuple[str, ...]:
    """Returns what the licence asks of those who pass on a derived model, one sentence each.

    A summary for the card, never a replacement of the licence; empty where there is none.

    Args:
        license_id: Hub id.
    """
    return _TERMS.get(license_id, _UNLISTED).duties


def notice_text(license_id: str) -> str | None:
    """Returns the text that the licence wants in a file called `Notice`, or None."""
    return _TERMS.get(license_id, _UNLISTED).notice


def name_prefix(license_id: str) -> str | None:
    """Returns what the name of a derived model has to start with, or None."""
    return _TERMS.get(license_id, _UNLISTED).name_prefix


def display_text(license_id: str) -> str | None:
    """Returns what the licence wants to be shown prominently, or None."""
    return _TERMS.get(license_id, _UNLISTED).display
