"""What must hold before the first byte is sent: the bundle's files, its cards, and its silence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePath

from packager.errors import BundleError, HubError, InputError
from packager.frontmatter import parse_front_matter, text_value, text_values
from packager.hub.client import HubRefusedError, ask, clean_text
from packager.manifest import Manifest
from packager.progress import Progress
from packager.publish.plan import RepoPlan
from packager.untrusted import read_bytes, read_text
from packager.verify.files import check_files

CARD_NAME = "README.md"
# Source: the Hub's documentation, model-cards, section "Specifying a base model".
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_TEXT_SUFFIXES = ("", ".json", ".jinja", ".md", ".txt", ".yaml", ".yml", ".py")
_MAX_TEXT_BYTES = 256 << 20


def check_bundle(bundle: Path, manifest: Manifest, progress: Progress) -> None:
    """Hashes every file of a bundle against its manifest.

    Raises:
        BundleError: A file differs, is missing, or is not in the manifest; all are named.
    """
    progress.stage("checking the bundle", sum(entry.size for entry in manifest.files))
    problems = check_files(bundle, manifest.files, progress.advance).problems
    if problems:
        raise BundleError(
            "the bundle is not what its manifest says",
            where=str(bundle),
            found="; ".join(problems[:8]) + ("; …" if len(problems) > 8 else ""),
            hint="release it again, or copy it again from where it was verified",
        )


def check_no_local_paths(bundle: Path, manifest: Manifest, plans: Iterable[RepoPlan]) -> None:
    """Refuses texts that name the folders of the releasing machine.

    Raises:
        BundleError: A file to be published holds such a path.
    """
    folders = [manifest.base.directory, *(adapter.directory for adapter in manifest.adapters)]
    private = [folder for folder in folders if len(PurePath(folder).parts) > 2]
    if not private:
        return
    spellings = {text for folder in private for text in (folder, json.dumps(folder)[1:-1])}
    names = "|".join(re.escape(text) for text in sorted(spellings, key=len, reverse=True))
    pattern = re.compile(f"(?<![\\w/.-])(?:{names})(?![\\w.-])".encode())
    for plan in plans:
        for entry in plan.files:
            path = bundle / plan.target.path / entry.path
            if path.suffix in _TEXT_SUFFIXES and (
                found := pattern.search(read_bytes(path, max_bytes=_MAX_TEXT_BYTES))
            ):
                raise BundleError(
                    "a file to be published names a folder of this machine",
                    where=str(path),
                    found=found[0].decode("utf-8", "replace"),
                    hint="release again with --base org/name@revision",
                )


def check_cards(bundle: Path, manifest: Manifest, plans: Iterable[RepoPlan]) -> None:
    """Checks every card's metadata here, and with the Hub's own validator where there is one.

    Raises:
        BundleError: A card is missing.
        HubError: Its metadata is not what the Hub takes.
    """
    for plan in plans:
        path = bundle / plan.target.path / CARD_NAME
        if not any(entry.path == CARD_NAME for entry in plan.files):
            raise BundleError(
                "a target has no model card", where=str(path), hint="release the bundle again"
            )
        text = read_text(path)
        _check_metadata(text, manifest, where=str(path))
        _check_by_hub(text, where=str(path))


def _check_metadata(text: str, manifest: Manifest, *, where: str) -> None:
    try:
        metadata = parse_front_matter(text, where=where)
    except InputError as problem:
        raise _card_error(where, str(problem)) from problem
    base = manifest.base.repo
    relation = text_value(metadata, "base_model_relation")
    problems = {
        "license is missing": text_value(metadata, "license") is None,
        "library_name is missing": text_value(metadata, "library_name") is None,
        f"base_model is not {base}": base not in (None, *text_values(metadata, "base_model")),
        f"base_model_relation is not one of {', '.join(_RELATIONS)}": relation is not None
        and relation not in _RELATIONS,
        "tags is not a list": not isinstance(metadata.get("tags", []), list),
    }
    if found := [problem for problem, holds in problems.items() if holds]:
        raise _card_error(where, "; ".join(found))


def _check_by_hub(text: str, *, where: str) -> None:
    try:
        problem = ask(lambda: _hub_opinion(text))
    except HubRefusedError as refusal:
        # A Hub without the validator answers 404; the check above then has to do.
        if refusal.refused == "no-repo":
            return
        raise
    if problem:
        raise _card_error(where, problem)


def _hub_opinion(text: str) -> str:
    """Returns what the Hub's validator finds wrong with a card, or an empty text.

    Source: huggingface_hub 2.4, repocard.py, RepoCard.validate: a 400 becomes a ValueError with
    the answer as its text.
    """
    from huggingface_hub import ModelCard

    try:
        ModelCard(text).validate(repo_type="model")
    except ValueError as problem:
        return clean_text(str(problem)) or "no reason given"
    return ""


def _card_error(where: str, found: str) -> HubError:
    return HubError(
        "the model card's metadata is not valid",
        where=where,
        expected="metadata that the Hub's validator takes",
        found=found[:300],
        hint="release again; with --license ID if the licence is what is wrong",
    )
