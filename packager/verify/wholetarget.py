"""Level `behaviour` of a merged model that a server loads as a whole.

Its files are those of the target `merged`, whose comparison with the truth stands for it. What is
asked besides are the answers that its server has to give: there is no base on it that could be
asked, so the base's answers are recorded with the truth's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.gather import Gathered
from packager.manifest import FileEntry
from packager.plan import AdapterSource
from packager.serving.answer import Answers, ExpectedModel, bound_divergence
from packager.serving.document import BASE_FOLDER
from packager.serving.path import merged_folder
from packager.serving.value import ServedBase
from packager.verify.proof import BehaviourCheck
from packager.verify.reference import References
from packager.verify.servedtarget import read_recorded

if TYPE_CHECKING:
    from packager.verify.behaviour import OnStep, Truth


@dataclass(frozen=True)
class WholeProof:
    """What a merged model that is served is compared with.

    Attributes:
        bundle: Its folder.
        folder: Of the server, within the bundle.
        base: What the server loads.
        entries: Files of the bundle.
        gathered: The sources.
        answers: Filled in while they are made; None compares with those that the folder holds.
    """

    bundle: Path
    folder: str
    base: ServedBase
    entries: tuple[FileEntry, ...]
    gathered: Gathered
    answers: Answers | None


def prove_whole(
    request: WholeProof,
    source: AdapterSource,
    proven: BehaviourCheck,
    references: References,
    report: OnStep,
) -> BehaviourCheck:
    """Makes the answers that a merged model has to give, or checks those recorded.

    Args:
        request: What to compare with.
        source: The adapter.
        proven: What came of comparing the merged model with the truth.
        references: The truths of the release.
        report: Told about steps.

    Raises:
        WeakEffectError: The server could not tell the merged model from the base.
        LorapackError: Of `measure_truth`; a model cannot be loaded, the recorded answers are
            damaged.
    """
    from packager.verify.model import attach_adapter, load_base

    truth, _ = references.find(source)
    report("answers of the served models", 0, 1)
    base = load_base(request.gathered.ref.directory, training=request.gathered.base.training)
    tuned = attach_adapter(base, source.spec.directory).model
    own, problems = _expect(request, source.name, tuned, truth)
    problems += _differing_copies(request)
    del base, tuned
    if own is not None and not problems:
        problems = _check_weights(request, own)
    report("answers of the served models", 1, 1)
    return replace(proven, problems=(*proven.problems, *problems))


def _expect(
    request: WholeProof, name: str, model: Any, truth: Truth
) -> tuple[ExpectedModel | None, tuple[str, ...]]:
    """Returns what has to be answered, made now or recorded, and what is wrong with it."""
    from packager.verify.answer import ask, check_effect, check_own, mean_effect

    dtype = request.base.dtype
    recorded = read_recorded(request.bundle / request.folder, request.answers)
    if recorded is not None:
        found = next((item for item in recorded.models if item.name == name), None)
        return found, check_own(model, found, name, recorded.served_dtype, dtype)
    questions, _ = ask(model, truth)
    effect = mean_effect(questions)
    own = ExpectedModel(name, "merged", effect, bound_divergence(effect, dtype), questions)
    if request.answers is not None:
        check_effect(name, effect, dtype)
        request.answers[name] = (own,)
    return own, ()


def _check_weights(request: WholeProof, own: ExpectedModel) -> tuple[str, ...]:
    """Asks the merged weights themselves, in float32: rounding them may not use up the bound."""
    from packager.verify.answer import answer, mean_divergence
    from packager.verify.model import load_artefact

    model = load_artefact(request.bundle / merged_folder(own.name)).model
    given = [answer(model, question) for question in own.questions]
    found = mean_divergence(own.questions, given)
    if found <= own.kl_bound / 2:
        return ()
    return (
        f"the merged weights of {own.name} answer {found:.2g} nats from the truth, and a server "
        f"that computes in {request.base.dtype} is allowed {own.kl_bound:.2g}",
    )


def _differing_copies(request: WholeProof) -> tuple[str, ...]:
    """Of a model that is part of the server's folder: files that are not the merged model's."""
    digests = {entry.path: entry.sha256 for entry in request.entries}
    place = f"{request.folder}/{BASE_FOLDER}/"
    copies = {path.removeprefix(place): path for path in digests if path.startswith(place)}
    differing = [
        path
        for name, path in copies.items()
        if digests[path] != digests.get(f"{merged_folder(request.base.name)}/{name}")
    ]
    return tuple(f"{path} is not the merged model's" for path in differing)
