"""From folders to the values that a plan is made from. Headers and small files are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packager.adapter import AdapterSpec, read_adapter
from packager.base import BaseIndex, BaseRef, read_base
from packager.chat import ChatChoice
from packager.chatfile import read_chat
from packager.digest import check_identity, content_digest, hash_files, identify_file
from packager.errors import BaseError, InputError
from packager.filekind import (
    is_chat_template,
    is_identity_file,
    is_tokenizer_file,
    list_model_files,
)
from packager.gguf.general import GeneralFacts
from packager.license import LicenseFinding, choose_license, find_license, name_other
from packager.lock import LOCK_NAME, locate_base
from packager.manifest import Evidence, Target
from packager.plan import AdapterSource, BaseSource
from packager.plan.release import allowed_targets
from packager.progress import Progress
from packager.serving.value import Origin
from packager.task import label_names, problem_type
from packager.untrusted import read_json_object, resolve_inside
from packager.vocabulary import read_vocabulary

_READ = ("adapter_config.json", "adapter_model.safetensors")
_MAX_TOKEN_ID = 1 << 31
_MAX_TOKENIZER_BYTES = 256 << 20
_UNREAD_DIGEST = "sha256:" + "?" * 64
"""In the plan of a dry run, which reads no weights; as long as the digest that will stand there."""
_UNFIT_FOR_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Gathered:
    """Everything that a release is planned and made from.

    Attributes:
        adapters: Under their names, in order.
        base: For the plan.
        ref: The exact base.
        finding: What the base says of its licence.
        identities: Of the adapters' files, as `identify_file` gave them before they were read.
        chats: Adapter name → how its chat reaches Ollama, where a model for it can be made.
    """

    adapters: tuple[AdapterSource, ...]
    base: BaseSource
    ref: BaseRef
    finding: LicenseFinding
    identities: Mapping[Path, str]
    chats: Mapping[str, ChatChoice] = field(default_factory=dict)

    def check_unchanged(self) -> None:
        """Refuses sources that were written to since they were gathered.

        Raises:
            InputError: A file was changed, replaced or removed.
        """
        self.ref.check_unchanged()
        for path, identity in self.identities.items():
            check_identity(path, identity)


def gather(
    adapters: tuple[tuple[str | None, Path], ...],
    *,
    base: str | None,
    require_lock: bool = False,
    license_id: str | None = None,
    licensed: bool = True,
    targets: tuple[Target, ...] | None = None,
    digests: Mapping[str, str] | None = None,
    another_converter: bool = False,
    hollow: Path | None = None,
    progress: Progress,
) -> Gathered:
    """Reads adapters and finds their base.

    Args:
        adapters: (name or None, folder) of each.
        base: `--base`.
        require_lock: `--require-lock`.
        license_id: `--license`.
        licensed: Whether the licence has to be known, and `license_id` to agree with it; without
            a card it need not be.
        targets: Wanted targets, or None for all: some need more from the disk.
        another_converter: Whether one helps where a model cannot be written as GGUF here.
        digests: Adapter name → digest of its files, where it is not that of the files there.
        hollow: For a dry run, an empty folder, as in `resolve_base`.
        progress: Told of hashing and of what a floating revision was resolved to.

    Raises:
        AdapterError: An adapter cannot be read.
        BaseError: The base cannot be found, or two adapters have different bases.
        LicenseError: The licence is unknown or contradicts the base's.
    """
    identities = {
        path: identity for _, folder in adapters for path, identity in _identify(folder).items()
    }
    specs = [(name, read_adapter(folder)) for name, folder in adapters]
    progress.stage("identify the base")
    found = [
        locate_base(
            spec,
            base,
            require_lock=require_lock,
            say=progress.say,
            on_bytes=progress.advance,
            hollow=hollow,
        )
        for _, spec in specs
    ]
    ref = _one_base(specs, [ref for ref, _ in found])
    evidence: Evidence = "lock" if all(kind == "lock" for _, kind in found) else "name-and-shape"
    finding = name_other(find_license(ref.directory), license_id)
    chosen = choose_license(finding, license_id) if licensed else license_id or finding.id or ""
    index = read_base(ref.directory)
    sources = tuple(gather_adapter(spec, name) for name, spec in specs)
    source = _base_source(ref, index, evidence, chosen, finding)
    gathered = Gathered(sources, source, ref, finding, identities)
    if any("vllm" in (targets or allowed_targets(source.spec.features)) for source in sources):
        gathered = _with_chats(gathered, digests or {})
    return _with_vocabularies(gathered, targets, digests or {}, another_converter, progress)


def _with_chats(gathered: Gathered, digests: Mapping[str, str]) -> Gathered:
    """Reads how base and adapters are talked to, and where the base can be had."""
    ref, base = gathered.ref, gathered.base
    digest = ref.digest if ref.remembers or ref.is_hashed else _UNREAD_DIGEST
    return replace(
        gathered,
        adapters=tuple(
            replace(
                source,
                chat=read_chat(source.spec.directory, source.files),
                digest=digests.get(source.name) or _adapter_digest(gathered, source),
            )
            for source in gathered.adapters
        ),
        base=replace(
            base,
            origin=Origin(ref.repo, ref.commit, digest, ref.gated),
            chat=read_chat(ref.directory, base.files),
        ),
    )


def _adapter_digest(gathered: Gathered, source: AdapterSource) -> str:
    folder, names = source.spec.directory, source.file_names
    return content_digest(hash_files(folder, names, remember=gathered.ref.remembers))


def _with_vocabularies(
    gathered: Gathered,
    targets: tuple[Target, ...] | None,
    digests: Mapping[str, str],
    another: bool,
    progress: Progress,
) -> Gathered:
    """Reads the tokenizers for those adapters of which a GGUF model may be made."""
    sources: list[AdapterSource] = []
    chats: dict[str, ChatChoice] = {}
    for source in gathered.adapters:
        if "ollama" not in (targets or allowed_targets(source.spec.features)):
            sources.append(source)
            continue
        progress.stage("read the tokenizer")
        facts = _general_facts(gathered, source, digests.get(source.name))
        found = read_vocabulary(source, gathered.base, facts, another=another)
        sources.append(replace(source, gguf=found.source))
        if found.chat is not None:
            chats[source.name] = found.chat
    return replace(gathered, adapters=tuple(sources), chats=chats)


def _general_facts(gathered: Gathered, source: AdapterSource, digest: str | None) -> GeneralFacts:
    ref, finding = gathered.ref, gathered.finding
    if digest is None:
        digest = _adapter_digest(gathered, source)
    return GeneralFacts(
        name=source.name,
        license=gathered.base.license,
        license_name=finding.name or "",
        license_link=finding.link or "",
        base_repo=ref.repo or "",
        base_commit=ref.commit or "",
        base_digest=ref.digest if ref.remembers or ref.is_hashed else _UNREAD_DIGEST,
        adapter_digest=digest,
    )


def gather_adapter(spec: AdapterSpec, name: str | None) -> AdapterSource:
    """Reads what stands beside the weights of an adapter.

    Raises:
        UnsafeInputError: A file is a link that leads outside.
        InputError: The tokenizer is damaged.
    """
    names = [name for name in list_model_files(spec.directory) if is_tokenizer_file(name)]
    files = {name: _size_inside(spec.directory, name) for name in names}
    own = _own_config(spec.directory)
    return AdapterSource(
        name or default_name(spec.directory),
        spec,
        files,
        count_tokens(spec.directory),
        _has_chat_template(spec.directory, files),
        labels=label_names(own),
        problem_type=problem_type(own),
    )


def default_name(directory: Path) -> str:
    """Returns the name that a folder's adapter gets when none is given."""
    return _UNFIT_FOR_NAMES.sub("-", directory.resolve().name).strip("-._") or "adapter"


def _own_config(directory: Path) -> Mapping[str, Any]:
    """A model's configuration beside an adapter's weights: a trainer may have saved it."""
    path = resolve_inside(directory, "config.json", where=str(directory))
    return read_json_object(path) if path.is_file() else {}


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
        ids = list(vocabulary.values())
    else:
        ids = [len(vocabulary) - 1] if isinstance(vocabulary, list) else []
    added = document.get("added_tokens")
    if isinstance(added, list):
        ids += [token["id"] for token in added if isinstance(token, dict) and "id" in token]
    for token_id in ids:
        if type(token_id) is not int or not -1 <= token_id < _MAX_TOKEN_ID:
            raise InputError(
                "the tokenizer is damaged: a token's id is not a whole number",
                where=str(path),
                expected=f"0 to {_MAX_TOKEN_ID - 1}",
                found=repr(token_id)[:40],
                hint="save the tokenizer again with save_pretrained",
            )
    return max(ids) + 1 if ids else None


def _has_chat_template(directory: Path, files: Iterable[str]) -> bool:
    """Tells whether a tokenizer brings a chat template, in a file or in its configuration.

    Source: transformers 5.x, tokenization_utils_base.py, `chat_template`.
    """
    if any(map(is_chat_template, files)):
        return True
    path = directory / "tokenizer_config.json"
    return path.is_file() and bool(read_json_object(path).get("chat_template"))


def _base_source(
    ref: BaseRef, index: BaseIndex, evidence: Evidence, license_id: str, finding: LicenseFinding
) -> BaseSource:
    return BaseSource(
        title=ref.title,
        evidence=evidence,
        license=license_id,
        index=index,
        files={
            name: _size_inside(ref.directory, name) for name in ref.names if is_identity_file(name)
        },
        documents={name: _size_inside(ref.directory, name) for name in finding.documents},
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
                expected=_lock_text(specs[0][1], first),
                found=_lock_text(spec, ref),
                hint="release them one by one",
            )
    return first


def _lock_text(spec: AdapterSpec, ref: BaseRef) -> str:
    """Says which base an adapter has, and how that is known."""
    evidence = "locked" if (spec.directory / LOCK_NAME).is_file() else "without a lock"
    return f"{ref.title} ({ref.digest}), as {spec.directory.name}, {evidence}"


def _identify(folder: Path) -> dict[Path, str]:
    if not folder.is_dir():
        return {}
    names = [name for name in list_model_files(folder) if name in _READ or is_tokenizer_file(name)]
    return {folder / name: identify_file(folder / name) for name in names}


def _size_inside(folder: Path, name: str) -> int:
    path = resolve_inside(folder, name, where=str(folder))
    try:
        return path.stat().st_size
    except OSError as problem:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="copy or download the folder again",
        ) from problem
