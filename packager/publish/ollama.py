"""Publishing a bundle through a running Ollama: send, make, compare, ask, push."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from packager.bundle import read_manifest
from packager.errors import OllamaError
from packager.progress import Progress, Silent
from packager.publish.check import check_bundle
from packager.publish.ollama_bundle import BundledModel, choose_names, read_ollama_models
from packager.publish.ollama_check import Answer, check_answer, check_shown, check_version
from packager.publish.ollama_client import OllamaServer, RefusedError
from packager.publish.ollama_name import ModelName, parse_model_name

QUESTION = "Hello! Who are you?"
_MAX_ANSWER_TOKENS = 48
_DENIED = ("unauthorized", "access denied", "not authorized", "signed in")

Chosen = tuple[tuple[ModelName, BundledModel], ...]


@dataclass(frozen=True)
class SentFile:
    """One GGUF, and whether the Ollama had it before."""

    path: str
    digest: str
    size: int
    state: Literal["new", "there"]


@dataclass(frozen=True)
class CreatedModel:
    """A model that a running Ollama has made, or would.

    Attributes:
        name: What `ollama run` takes.
        target: The adapter's name in the release.
        quant: Such as `Q4_K_M`.
        server: The Ollama's address.
        version: The Ollama's version.
        files: What it was made of.
        answer: To the test question; None in a dry run.
        url: Where it was pushed to, or would be; None where it stays on the machine.
    """

    name: str
    target: str
    quant: str
    server: str
    version: str
    files: tuple[SentFile, ...]
    answer: Answer | None
    url: str | None

    @property
    def sent_bytes(self) -> int:
        """Size of the files that were not there yet, in bytes."""
        return sum(file.size for file in self.files if file.state == "new")


def publish_ollama(
    bundle: Path,
    name: str,
    *,
    host: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> tuple[CreatedModel, ...]:
    """Gives the models of a bundle's ollama targets to a running Ollama, and tries them out.

    Before the first byte the whole bundle is hashed against its manifest, and the Ollama is asked
    for its version and, where it shall push, for its account. Every model is compared with what
    was asked for and has to answer a question; only then the first one is pushed.

    Args:
        bundle: What `lorapack release` wrote.
        name: `NAME` stays on the machine, `USER/NAME` is pushed as well, perhaps with a tag; see
            `choose_names` for tags.
        host: The Ollama's address; None for that of `OLLAMA_HOST`, or the default.
        dry_run: Do every check that changes nothing, and return what would be done.
        progress: Told of stages and bytes.

    Returns:
        One value per model, in order of making.

    Raises:
        BundleError: The bundle is not what its manifest says, or incomplete.
        OllamaError: A name does not fit; no Ollama answers, or an old one; it refuses; or it has
            made something else than it was asked for.
    """
    told = progress or Silent()
    wanted = parse_model_name(name, where="the name")
    manifest = read_manifest(bundle)
    chosen = choose_names(read_ollama_models(bundle, manifest), wanted)
    with OllamaServer(host) as server:
        told.stage("asking Ollama")
        version = server.read_version()
        for _, model in chosen:
            check_version(version, model, server.address)
        _check_account(server, (named for named, _ in chosen))
        check_bundle(bundle, manifest, told)
        drafts = _drafts(server, version, chosen)
        if dry_run:
            return drafts
        return _publish(server, chosen, drafts, told)


def _check_account(server: OllamaServer, names: Iterable[ModelName]) -> None:
    """Refuses to begin where the last step would fail for want of an account."""
    pushed = next((name for name in names if name.has_owner and name.is_on_default_host), None)
    if pushed is not None and server.is_signed_in() is False:
        raise _not_signed_in(server, pushed, "nobody is signed in")


def _drafts(server: OllamaServer, version: str, chosen: Chosen) -> tuple[CreatedModel, ...]:
    there: dict[str, bool] = {}
    drafts = []
    for name, model in chosen:
        files = []
        for entry in model.files:
            digest = f"sha256:{entry.sha256}"
            known = there[digest] if digest in there else server.has_blob(digest)
            there[digest] = True
            files.append(SentFile(entry.path, digest, entry.size, "there" if known else "new"))
        drafts.append(
            CreatedModel(
                name=name.text,
                target=model.target,
                quant=model.quant,
                server=server.address,
                version=version,
                files=tuple(files),
                answer=None,
                url=name.url,
            )
        )
    return tuple(drafts)


def _publish(
    server: OllamaServer, chosen: Chosen, drafts: tuple[CreatedModel, ...], progress: Progress
) -> tuple[CreatedModel, ...]:
    answers: dict[tuple[str, str], Answer] = {}
    made = []
    for (name, model), draft in zip(chosen, drafts, strict=True):
        _send(server, model, draft, progress)
        server.create(model.request(name.text), progress)
        if note := check_shown(name, model, server.show(name.text)):
            progress.say(note)
        key = (model.target, model.quant)
        if key not in answers:
            progress.stage(f"asking {name.text}")
            reply = server.chat(name.text, QUESTION, _MAX_ANSWER_TOKENS)
            answers[key] = check_answer(name, QUESTION, reply)
        made.append(replace(draft, answer=answers[key]))
    for name, _ in chosen:
        if name.has_owner:
            _push(server, name, progress)
    return tuple(made)


def _send(
    server: OllamaServer, model: BundledModel, draft: CreatedModel, progress: Progress
) -> None:
    for file in draft.files:
        if file.state == "new":
            progress.stage(f"sending {file.path}", file.size)
            server.send_blob(model.folder / file.path, file.digest, file.size, progress.advance)


def _push(server: OllamaServer, name: ModelName, progress: Progress) -> None:
    try:
        server.push(name.text, progress)
    except RefusedError as refusal:
        if any(word in refusal.found.lower() for word in _DENIED):
            raise _not_signed_in(server, name, refusal.found) from refusal
        raise


def _not_signed_in(server: OllamaServer, name: ModelName, found: str) -> OllamaError:
    return OllamaError(
        "this Ollama may not push to that name",
        where=server.address,
        expected=f"one whose user owns {name.namespace}",
        found=found,
        hint="sign in: ollama signin; or give a name without USER/ to keep the model here",
    )
