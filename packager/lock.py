"""`base.lock.json`: the base that an adapter was trained on; writer, parser, and the check."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from packager import __version__
from packager.adapter import AdapterSpec
from packager.base import BaseRef, read_base, resolve_base
from packager.base.ref import Say, is_pin
from packager.digest import OnBytes, content_digest, differing_files
from packager.errors import BaseError, BaseMismatchError, InputError, OutputError
from packager.filekind import is_chat_template, is_tokenizer_file
from packager.manifest import Evidence, FileEntry, parse_files
from packager.record import check_fields
from packager.untrusted import find_folder, parse_json_object, read_bytes

LOCK_NAME = "base.lock.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BaseLock:
    """The content of `base.lock.json`.

    Attributes:
        schema_version: Of this document.
        repo: `org/name` on the Hub, or None.
        commit: 40 hexadecimal digits, or None.
        digest: `sha256:<hex>` over `files`.
        files: Weights, configuration and tokenizer of the base.
        tensor_fingerprint: Over names, dtypes and shapes of the base's tensors.
        tokenizer_digest: Over the base's tokenizer files, or None.
        chat_template_digest: Over the base's chat template files, or None.
        training_quantization: How the base was quantised during training, or None.
        created: UTC, ISO 8601.
        tool: Name and version of the writer.
        evidence: `lock` where somebody said that this is the base trained on; a release of an
            adapter without a lock writes what it found, which fits by name and shape only.
    """

    schema_version: int
    repo: str | None
    commit: str | None
    digest: str
    files: tuple[FileEntry, ...]
    tensor_fingerprint: str
    tokenizer_digest: str | None
    chat_template_digest: str | None
    training_quantization: dict[str, Any] | None
    created: str
    tool: str
    evidence: Evidence = "lock"


def make_lock(
    base: BaseRef,
    *,
    training_quantization: dict[str, Any] | None = None,
    evidence: Evidence = "lock",
) -> BaseLock:
    """Describes a base as a lock.

    Raises:
        BaseError: The base is not a whole checkpoint.
    """
    tokenizer = [entry for entry in base.files if is_tokenizer_file(entry.path)]
    templates = [entry for entry in tokenizer if is_chat_template(entry.path)]
    return BaseLock(
        schema_version=SCHEMA_VERSION,
        repo=base.repo,
        commit=base.commit,
        digest=base.digest,
        files=base.files,
        tensor_fingerprint=read_base(base.directory).fingerprint,
        tokenizer_digest=content_digest(tokenizer) if tokenizer else None,
        chat_template_digest=content_digest(templates) if templates else None,
        training_quantization=training_quantization,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=f"lorapack {__version__}",
        evidence=evidence,
    )


def render_lock(lock: BaseLock) -> str:
    """Returns the text of `base.lock.json`."""
    return json.dumps(asdict(lock), ensure_ascii=False, indent=1) + "\n"


def parse_lock(text: bytes | str, *, where: str) -> BaseLock:
    """Parses `base.lock.json`.

    Raises:
        InputError: Unknown schema, a missing or wrong field, or a digest that does not match its
            files.
    """
    raw = parse_json_object(text, where=where, constants=False)
    try:
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {raw['schema_version']!r}")
        files = parse_files(raw.pop("files"), where=where)
        lock = BaseLock(files=files, **raw)
        check_fields(lock)
        if lock.repo is not None and not is_pin(lock.repo, lock.commit):
            raise ValueError(f"repository {lock.repo!r:.80} at {lock.commit!r:.60}")
        if lock.evidence not in get_args(Evidence):
            raise ValueError(f"evidence {lock.evidence!r}")
        if content_digest(files) != lock.digest:
            raise ValueError("the digest is not that of the files listed")
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise InputError(
            "the base lock is damaged or of another version",
            where=where,
            found=str(problem)[:200],
            hint="write it again: lorapack lock ADAPTER --base REF",
        ) from problem
    return lock


def read_lock(adapter: Path) -> BaseLock | None:
    """Reads the lock of an adapter directory, or returns None when it has none.

    Raises:
        InputError: As `parse_lock`.
    """
    path = adapter / LOCK_NAME
    if not path.exists():
        return None
    return parse_lock(read_bytes(path), where=str(path))


def write_lock(
    adapter: Path, base: BaseRef, *, training_quantization: dict[str, Any] | None = None
) -> BaseLock:
    """Writes `base.lock.json` into an adapter directory by one rename.

    Args:
        adapter: The adapter's folder.
        base: The exact base.
        training_quantization: How it was quantised during training, as
            `quantisation.training.parse_settings` reads it, or None.

    Raises:
        OutputError: The directory cannot be written.
    """
    lock = make_lock(base, training_quantization=training_quantization)
    path = adapter / LOCK_NAME
    aside = path.with_name(f".{LOCK_NAME}.{os.getpid()}")
    try:
        aside.write_text(render_lock(lock), encoding="utf-8")
        aside.replace(path)
    except OSError as problem:
        aside.unlink(missing_ok=True)
        raise OutputError(
            "the lock cannot be written",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="check the permissions of the adapter folder",
        ) from problem
    return lock


def check_lock(lock: BaseLock, base: BaseRef, *, where: str) -> None:
    """Refuses a base that is not the one in the lock.

    Raises:
        BaseMismatchError: With every file that differs.
    """
    differing = differing_files(lock.files, base.files)
    if not differing:
        return
    lines = [_difference(path, *pair) for path, pair in differing.items()]
    raise BaseMismatchError(
        f"{len(differing)} of {len(lock.files)} files of the base differ from the lock",
        where=where,
        expected=f"{lock.repo}@{lock.commit}" if lock.repo else lock.digest,
        found="; ".join(lines[:12]) + (f"; and {len(lines) - 12} more" if lines[12:] else ""),
        hint="give the version in the lock with --base; if the adapter really was trained on "
        "this one, lock it anew: lorapack lock ADAPTER --base REF",
    )


def locate_base(
    adapter: AdapterSpec,
    ref: str | None,
    *,
    require_lock: bool = False,
    say: Say,
    on_bytes: OnBytes | None = None,
    hollow: Path | None = None,
) -> tuple[BaseRef, Evidence]:
    """Finds the base of an adapter: `ref`, else its lock, else its configuration.

    A lock is obeyed however the base was found. `hollow` is for a dry run, as in `resolve_base`.

    Returns:
        The base, and how it is known to be the one trained on.

    Raises:
        BaseError: No base is named, or it cannot be had.
        BaseMismatchError: The base differs from the lock, or `require_lock` and there is none.
    """
    lock = read_lock(adapter.directory)
    where = str(adapter.directory / LOCK_NAME)
    if lock is None and require_lock:
        raise BaseMismatchError(
            "the adapter has no base lock, and --require-lock asks for one",
            where=where,
            hint=f"lorapack lock {adapter.directory} --base REF",
        )
    base = resolve_base(
        ref or _named_base(adapter, lock), say=say, on_bytes=on_bytes, hollow=hollow
    )
    if lock is None:
        _say_what_changed(adapter, base, say)
        return base, "name-and-shape"
    check_lock(lock, base, where=where)
    return base, lock.evidence


def _named_base(adapter: AdapterSpec, lock: BaseLock | None) -> str:
    if lock is not None and lock.repo is not None:
        return f"{lock.repo}@{lock.commit}" if lock.commit else lock.repo
    config = adapter.config
    if not config.base_name:
        raise BaseError(
            "the adapter does not say which base it was trained on",
            where=str(adapter.directory / "adapter_config.json"),
            expected='"base_model_name_or_path"',
            hint="give it with --base DIR or --base org/name@revision",
        )
    if config.base_revision and find_folder(config.base_name) is None:
        return f"{config.base_name}@{config.base_revision}"
    return config.base_name


def _difference(path: str, wanted: FileEntry | None, found: FileEntry | None) -> str:
    if wanted is None:
        return f"{path} is not in the lock"
    if found is None:
        return f"{path} is missing"
    if wanted.size != found.size:
        return f"{path} has {found.size} bytes, not {wanted.size}"
    return f"{path} has sha256 {found.sha256[:12]}…, not {wanted.sha256[:12]}…"


def _say_what_changed(adapter: AdapterSpec, base: BaseRef, say: Say) -> None:
    """Warns when the Hub got other weights after the adapter's file was written."""
    if base.repo is None or base.commit is None:
        return
    from packager import hub

    changes = hub.weight_changes_since(base.repo, adapter.made_at, base.commit)
    for change in changes:
        say(
            f"warning: {base.repo} changed {', '.join(change.files)} on {change.date:%Y-%m-%d} "
            f"(commit {change.commit[:12]}, {change.title!r}), after the adapter was made "
            f"on {adapter.made_at:%Y-%m-%d}"
        )
