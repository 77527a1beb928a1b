"""Level `behaviour` of one adapter of a server: its truth, its answers, and those recorded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import output_error
from packager.gather import Gathered
from packager.plan import AdapterSource
from packager.plan.servedadapter import METADATA
from packager.serving.answer import EXPECTED_NAME, Answers, Expected, parse_expected
from packager.serving.path import adapter_path
from packager.serving.value import ServedLora, ServingPlan
from packager.tensorfile import read_header, render_header
from packager.untrusted import read_bytes
from packager.verify.proof import BehaviourCheck
from packager.verify.reference import References

if TYPE_CHECKING:
    from packager.verify.behaviour import OnStep

_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class ServerProof:
    """What the adapters of a server are compared with.

    Attributes:
        folder: Of the server.
        server: Its plan.
        lora: The adapter as it is served.
        gathered: The sources.
        answers: Filled in while they are made; None compares with those that the folder holds.
    """

    folder: Path
    server: ServingPlan
    lora: ServedLora
    gathered: Gathered
    answers: Answers | None


def prove_server(
    request: ServerProof, source: AdapterSource, references: References, report: OnStep
) -> BehaviourCheck:
    """Compares a normalised adapter with the one trained, and its recorded answers with the truth.

    Args:
        request: What to compare with.
        source: The adapter.
        references: The truths of the release.
        report: Told about steps.

    Raises:
        WeakEffectError: The server could not tell the adapter from the base.
        LorapackError: Of `measure_truth` and `check_served`; the recorded answers are damaged.
    """
    from packager.verify.answer import check_effect, check_served

    gathered, server = request.gathered, request.server
    with ExitStack() as stack:
        if gathered.base.training is not None:
            # The server loads the base as it is stored, however training saw it.
            stored = replace(gathered, base=replace(gathered.base, training=None))
            references = stack.enter_context(References(stored, report))
        truth, _ = references.find(source)
        check = check_served(
            truth,
            gathered.ref.directory,
            stack.enter_context(_as_trained(request.folder / adapter_path(source.name), request)),
            (server.base.name, source.name),
            server.base.dtype,
            recorded=read_recorded(request.folder, request.answers),
            progress=report,
        )
    if request.answers is not None:
        check_effect(source.name, check.adapter.effect, server.base.dtype)
        request.answers[source.name] = (check.base, check.adapter)
    return check.behaviour


def read_recorded(folder: Path, answers: Answers | None) -> Expected | None:
    """Returns the answers that a server's folder holds, or None where they are only made now.

    Args:
        folder: Of the server.
        answers: Filled in while they are made; None says that they were made before.

    Raises:
        BundleError: They are damaged.
    """
    path = folder / EXPECTED_NAME
    if answers is not None or not path.exists():
        return None
    return parse_expected(read_bytes(path), where=str(path))


@contextmanager
def _as_trained(folder: Path, request: ServerProof) -> Iterator[Path]:
    """Gives a normalised adapter the names that it was trained by, where it has others.

    A server maps names as the base's file has them; a language model that was trained by itself
    and is stored within a larger one has others.
    """
    names = {factor.name: factor.source for factor in request.lora.factors}
    if all(name == source for name, source in names.items()):
        yield folder
        return
    stored = read_header(folder / _WEIGHTS)
    rows = [(names.get(ref.name, ref.name), ref.dtype, ref.shape) for ref in stored.tensors]
    with tempfile.TemporaryDirectory(prefix="lorapack-served-") as name:
        place = Path(name)
        try:
            shutil.copyfile(folder / "adapter_config.json", place / "adapter_config.json")
            with stored.path.open("rb") as data, (place / _WEIGHTS).open("wb") as file:
                file.write(render_header(rows, METADATA))
                data.seek(stored.data_start)
                shutil.copyfileobj(data, file)
        except OSError as problem:
            raise output_error(problem, place) from problem
        yield place
