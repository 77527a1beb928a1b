"""From folders to the values that a plan is made from. Headers and small files are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packager.adapter import AdapterSpec, read_adapter
from packager.base import BaseIndex, BaseRef, read_base
from packager.base.file import is_identity_file, is_tokenizer_file
from packager.errors import BaseError
from packager.license import LicenseFinding, choose_license, find_license
from packager.lock import locate_base
from packager.manifest import Evidence
from packager.plan import AdapterSource, BaseSource
from packager.progress import Progress
from packager.untrusted import read_json_object, resolve_inside

_MAX_TOKENIZER_BYTES = 256 << 20
_UNFIT_FOR_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Gathered:
    """Everything that a release is planned and made from.

    Attributes:
        adapters: Under their names, in order.
        base: For the plan.
        ref: The exact base.
        finding: What the base says of its licence.
    """

    adapters: tuple[AdapterSource, ...]
    base: BaseSource
    ref: BaseRef
    finding: LicenseFinding


def gather(
    adapters: tuple[tuple[str | None, Path], ...],
    *,
    base: str | None,
    require_lock: bool = False,
    license_id: str | None = None,
    licensed: bool = True,
    progress: Progress,
) -> Gathered:
    """Reads adapters and finds their base.

    Args:
        adapters: (name or None, folder) of each.
        base: `--base`.
        require_lock: `--require-lock`.
        license_id: `--license`.
        licensed: Whether the licence has to be known; without a card it need not be.
        progress: Told of hashing and of what a floating revision was resolved to.

    Raises:
        AdapterError: An adapter cannot be read.
        BaseError: The base cannot be found, or two adapters have different bases.
        LicenseError: The licence is unknown or contradicts the base's.
    """
    specs = [(name, read_adapter(folder)) for name, folder in adapters]
    progress.stage("identify the base")
    found = [
        locate_base(
            spec, base, require_lock=require_lock, say=progress.say, on_bytes=progress.advance
        )
        for _, spec in specs
    ]
    ref = _one_base(specs, [ref for ref, _ in found])
    evidence: Evidence = "lock" if all(kind == "lock" for _, kind in found) else "name-and-shape"
    finding = find_license(ref.directory)
    chosen = choose_license(finding, license_id) if licensed else ""
    index = read_base(ref.directory)
    sources = tuple(gather_adapter(spec, name) for name, spec in specs)
    return Gathered(sources, _base_source(ref, index, evidence, chosen, finding), ref, finding)


def gather_adapter(spec: AdapterSpec, name: str | None) -> AdapterSource:
    """Reads what stands beside the weights of an adapter.

    Raises:
        UnsafeInputError: A file is a link that leads outside.
        InputError: The tokenizer is damaged.
    """
    files = {
        file: (resolve_inside(spec.directory, file, where=str(spec.directory))).stat().st_size
        for file in sorted(_names(spec.directory))
        if is_tokenizer_file(file)
    }
    return AdapterSource(
        name or default_name(spec.directory), spec, files, count_tokens(spec.directory)
    )


def default_name(directory: Path) -> str:
    """Returns the name that a folder's adapter gets when none is given."""
    return _UNFIT_FOR_NAMES.sub("-", directory.resolve().name).strip("-._") or "adapter"


def count_tokens(directory: Path) -> int | None:
    """Returns the largest token id of a `tokenizer.json` plus one, or None without that file.

    Source: tokenizers 0.22, `model.vocab` (a mapping, or for Unigram a list) and
    `added_tokens`.

    Raises:
        InputError: The file is damaged.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    document = read_json_object(path, max_bytes=_MAX_TOKENIZER_BYTES)
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        ids = [value for value in vocabulary.values() if isinstance(value, int)]
    else:
        ids = [len(vocabulary) - 1] if isinstance(vocabulary, list) else []
    for token in document.get("added_tokens") or []:
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            ids.append(token["id"])
    return max(ids) + 1 if ids else None


def _base_source(
    ref: BaseRef, index: BaseIndex, evidence: Evidence, license_id: str, finding: LicenseFinding
) -> BaseSource:
    return BaseSource(
        title=ref.title,
        evidence=evidence,
        license=license_id,
        index=index,
        files={
            name: (ref.directory / name).stat().st_size
            for name in ref.names
            if is_identity_file(name)
        },
        documents={
            name: (resolve_inside(ref.directory, name, where=str(ref.directory))).stat().st_size
            for name in finding.documents
        },
        token_count=count_tokens(ref.directory),
    )


def _one_base(specs: list[tuple[str | None, AdapterSpec]], refs: list[BaseRef]) -> BaseRef:
    first = refs[0]
    for (_, spec), ref in zip(specs, refs, strict=True):
        same = (ref.directory, ref.commit) == (first.directory, first.commit)
        if not same and ref.digest != first.digest:
            raise BaseError(
                "the adapters have different bases",
                where=str(spec.directory),
                expected=f"{first.title}, as {specs[0][1].directory}",
                found=ref.title,
                hint="release them one by one",
            )
    return first


def _names(directory: Path) -> list[str]:
    top = [path.name for path in directory.iterdir() if path.is_file()]
    nested = directory.glob("additional_chat_templates/*.jinja")
    return [*top, *(path.relative_to(directory).as_posix() for path in nested)]
