"""The licence of a base and of what is made from it: found, chosen, and what it asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packager.errors import InputError, LicenseError
from packager.frontmatter import parse_front_matter, text_value, text_values
from packager.licensetext import recognise_license
from packager.untrusted import read_text, resolve_inside

# Source: huggingface/hub-docs at 242f4a1e (2026-08-22), docs/hub/repositories-licenses.md.
_HUB_IDS = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
    intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
    openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 grok2-community gemma unknown other
"""
HUB_LICENSES = frozenset(_HUB_IDS.split())
"""Every licence id that the Hub takes."""

MAX_DOCUMENT_BYTES = 1 << 20
"""The largest licence file that is read, in bytes."""

_MAX_CARD_BYTES = 4 << 20
_FAMILIES = frozenset({"bsd", "cc", "gpl", "lgpl", "openrail"})
_VAGUE = _FAMILIES | {"other", "unknown"}
_DOCUMENT = re.compile(
    r"(?:.*[-_.])?(?:licen[sc]es?|copying|notices?|use[-_ ]?policy|acceptable[-_ ]?use[-_ ]?policy|"
    r"prohibited[-_ ]?use[-_ ]?policy|third[-_ ]?party[-_ ]?notices?)(?:[-_.].*)?",
    re.IGNORECASE,
)
_TEXT_SUFFIXES = frozenset({"", ".txt", ".md", ".rst", ".html", ".pdf"})
_LICENSE_NAME = re.compile(r"(?:.*[-_.])?(?:licen[sc]es?|copying)(?:[-_.].*)?", re.IGNORECASE)
_LINK = re.compile(r"https?://[^\s<>\"'`\\]{1,500}")


@dataclass(frozen=True)
class LicenseFinding:
    """What a base says of its licence.

    Attributes:
        id: Hub id, or None where the base does not say, or contradicts itself.
        name: `license_name`, for `other`.
        link: `license_link`, for `other`: a web address or the name of one of `documents`.
        source: The file that says so, or the files that contradict each other.
        documents: Names of the licence, notice and policy files, which have to travel along.
        claims: The ids that contradict each other; empty where there is no contradiction.
    """

    id: str | None
    name: str | None
    link: str | None
    source: str
    documents: tuple[str, ...]
    claims: tuple[str, ...] = ()


def find_license(base_dir: Path) -> LicenseFinding:
    """Finds the licence of a base: its README.md first, then the text of its licence files.

    A licence file also sharpens a vague README (`other`, `gpl`), and contradicts a wrong one.
    A README that cannot be read counts as silent.

    Raises:
        LicenseError: A licence file is a link that leads outside, so it cannot travel along.
    """
    documents = _find_documents(base_dir)
    metadata = _read_metadata(base_dir)
    stated = _stated_id(metadata)
    proven = _recognise(base_dir, documents)
    texts = sorted(set(proven.values()))
    if stated in HUB_LICENSES - _VAGUE:
        clash = [name for name, found in proven.items() if found != stated]
        if clash and stated not in texts:
            return LicenseFinding(
                None, None, None, f"README.md and {clash[0]}", documents, (stated, *texts)
            )
        return LicenseFinding(stated, None, None, "README.md", documents)
    if len(texts) == 1 and _sharpens(texts[0], stated):
        return LicenseFinding(texts[0], None, None, next(iter(proven)), documents)
    if len(texts) > 1:
        return LicenseFinding(None, None, None, " and ".join(proven), documents, tuple(texts))
    if stated in HUB_LICENSES - {"unknown"}:
        name = text_value(metadata, "license_name") if stated == "other" else None
        link = _link(metadata, documents) if stated == "other" else None
        return LicenseFinding(stated, name, link, "README.md", documents)
    return LicenseFinding(None, None, None, "", documents)


def name_other(finding: LicenseFinding, wanted: str | None) -> LicenseFinding:
    """Lets a licence file stand for a licence that has no name, where the user asks for `other`.

    Args:
        finding: What the base says.
        wanted: The user's `--license`, or None.
    """
    texts = [name for name in finding.documents if _LICENSE_NAME.fullmatch(name)]
    if wanted != "other" or not texts:
        return finding
    return replace(
        finding, name=finding.name or "license-of-the-base", link=finding.link or texts[0]
    )


def choose_license(finding: LicenseFinding | None, wanted: str | None) -> str:
    """Returns the licence id of a release.

    Args:
        finding: What the base says; None where there was nothing to look at.
        wanted: The user's `--license`, or None.

    Raises:
        LicenseError: `wanted` is no id of the Hub or contradicts the base's; the base's is
            unknown and nothing is wanted; or it is `other` without a name and a link.
    """
    if wanted is not None:
        _check_wanted(wanted, finding)
        chosen = wanted
    elif finding is None or finding.id is None:
        raise _unknown(finding)
    else:
        chosen = finding.id
    if chosen == "other" and not (finding and finding.name and finding.link):
        raise LicenseError(
            "the licence `other` needs a name and a link",
            where=finding.source if finding else "--license",
            expected="license_name and license_link in the YAML block of the base's README.md",
            hint="give --license other where a licence file lies in the base; else add both lines "
            "to the README.md of a copy of it",
        )
    return chosen


def _check_wanted(wanted: str, finding: LicenseFinding | None) -> None:
    if wanted not in HUB_LICENSES - {"unknown"}:
        close = [
            known
            for known in sorted(HUB_LICENSES - {"unknown"})
            if _squash(known) == _squash(wanted)
        ]
        raise LicenseError(
            "this is no licence id of the Hub",
            where="--license",
            expected=close[0] if close else "an id such as apache-2.0, mit, llama3.2 or gemma",
            found=repr(wanted)[:80],
            hint="see https://huggingface.co/docs/hub/repositories-licenses",
        )
    if finding is None:
        return
    allowed = {finding.id, *finding.claims} - {None}
    vague = finding.id in _FAMILIES and wanted.startswith(str(finding.id))
    unnamed = finding.id == "other" and finding.name is None
    if allowed and wanted not in allowed and not vague and not unnamed:
        raise LicenseError(
            "the licence contradicts the base's: a base's licence binds what is derived from it",
            where="--license",
            expected=" or ".join(sorted(map(str, allowed))) + f", from {finding.source}",
            found=wanted,
            hint="leave --license out; to release under other terms, ask the base's owner",
        )


def _unknown(finding: LicenseFinding | None) -> LicenseError:
    if finding is not None and finding.claims:
        return LicenseError(
            "the base contradicts itself about its licence",
            where=finding.source,
            expected="one licence",
            found=" and ".join(finding.claims),
            hint="find out which one holds, then give it with --license ID",
        )
    return LicenseError(
        "the base does not say what its licence is",
        where="README.md and licence files of the base",
        expected="`license:` in the YAML block, or a licence text that is well known",
        found=f"only {', '.join(finding.documents)}, not recognised"
        if finding is not None and finding.documents
        else "neither",
        hint="look it up where the base comes from, then give it with --license ID",
    )


def _squash(license_id: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", license_id.casefold()).replace("license", "")


def _sharpens(proven: str, stated: str | None) -> bool:
    return stated not in _FAMILIES or proven.startswith(str(stated))


def _read_metadata(base_dir: Path) -> dict[str, Any]:
    try:
        path = resolve_inside(base_dir, "README.md", where=str(base_dir))
        text = read_text(path, max_bytes=_MAX_CARD_BYTES)
        return parse_front_matter(text, where=str(path))
    except InputError:
        return {}


def _stated_id(metadata: dict[str, Any]) -> str | None:
    stated = text_values(metadata, "license")
    return stated[0].casefold() if len(stated) == 1 else None


def _link(metadata: dict[str, Any], documents: tuple[str, ...]) -> str | None:
    link = text_value(metadata, "license_link")
    if link is None or _LINK.fullmatch(link):
        return link
    name = link.removeprefix("./")
    return name if name in documents else None


def _find_documents(base_dir: Path) -> tuple[str, ...]:
    """Names of the licence, notice and policy files at the top of the base, sorted."""
    names = sorted(
        path.name
        for path in base_dir.iterdir()
        if _DOCUMENT.fullmatch(path.name)
        and path.suffix.casefold() in _TEXT_SUFFIXES | _version_suffix(path)
        and path.is_file()
    )
    for name in names:
        try:
            resolve_inside(base_dir, name, where=str(base_dir))
        except InputError as problem:
            raise LicenseError(
                "a licence file of the base is a link that leads outside of it",
                where=problem.where,
                expected=problem.expected,
                found=problem.found,
                hint="replace the link by the file itself",
            ) from problem
    return tuple(names)


def _version_suffix(path: Path) -> set[str]:
    """What `LICENSE-2.0` or `LICENSE.MIT` has where other files have a file type."""
    suffix = path.suffix.casefold()
    return {suffix} if re.fullmatch(r"\.(?:\d[\w-]*|apache\d?|bsd|mit)", suffix) else set()


def _recognise(base_dir: Path, documents: tuple[str, ...]) -> dict[str, str]:
    """Name of a licence file → id, for those whose text is certain."""
    found = {}
    for name in documents:
        if not _LICENSE_NAME.fullmatch(name):
            continue
        try:
            text = read_text(base_dir / name, max_bytes=MAX_DOCUMENT_BYTES)
        except InputError:
            continue
        license_id = recognise_license(text)
        if license_id is not None:
            found[name] = license_id
    return found
