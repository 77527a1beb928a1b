"""The truth of each adapter, measured once and used for every target made from it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from packager.dtype import MERGEABLE
from packager.errors import output_error
from packager.gather import Gathered
from packager.plan import AdapterSource
from packager.plan.layout import tokenizer_files
from packager.quantisation.scheme import CONFIG_KEY
from packager.quantisation.training import TrainingQuantisation
from packager.task import Task, class_count, find_task
from packager.untrusted import resolve_inside
from packager.verify.quantised import why_not_compared

if TYPE_CHECKING:
    from packager.verify.behaviour import OnStep, Truth
    from packager.verify.proof import MergeBaseCheck

_CONFIGS = ("config.json", "generation_config.json")
_WRAPPER = "base_model.model."


class References:
    """Measures truths as they are asked for. A context manager; it keeps one adapter's at a time.

    Args:
        gathered: The sources.
        progress: Told about steps.
        measured: Adapter name → how merges onto both forms of the base compare, where that has
            been measured before.
    """

    def __init__(
        self,
        gathered: Gathered,
        progress: OnStep,
        measured: Mapping[str, MergeBaseCheck] | None = None,
    ) -> None:
        self._gathered = gathered
        self._progress = progress
        self._stack = ExitStack()
        self._key: tuple[str, TrainingQuantisation | None] | None = None
        self._merge_bases = dict(measured or {})
        self._found: tuple[Truth, Path | None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def find(self, source: AdapterSource) -> tuple[Truth, Path | None]:
        """Returns the truth of an adapter, and the folder of its tokenizer, or None without one.

        Raises:
            LorapackError: As of `measure_truth`.
        """
        return self._find(source, self._gathered.base.training)

    def compare_merge_bases(self, source: AdapterSource) -> MergeBaseCheck | None:
        """Compares merges onto both forms of a base that was quantised in training.

        Returns:
            None where there is one form only.

        Raises:
            LorapackError: As of `measure_truth`.
        """
        from packager.verify.mergebase import MergeSources, measure_merge_bases

        base, training = self._gathered.base, source.training
        if training is None or base.merge_base is None or base.index.config.get(CONFIG_KEY):
            return None
        if why_not_compared(base.index, training):
            return None
        if source.name not in self._merge_bases:
            truth, _ = self._find(source, training)
            sources = MergeSources(
                self._gathered.ref.directory,
                source.spec.directory,
                training,
                self._labels(source, self._task(source)),
                next(name for name in (*base.index.dtypes, "F32") if name in MERGEABLE),
            )
            self._merge_bases[source.name] = measure_merge_bases(
                truth, sources, base.merge_base, progress=self._progress
            )
        return replace(self._merge_bases[source.name], chosen=base.merge_base)

    def _task(self, source: AdapterSource) -> Task:
        index = self._gathered.base.index
        return find_task(source.spec.config.task_type, index.architecture, index.config)

    def _find(
        self, source: AdapterSource, training: TrainingQuantisation | None
    ) -> tuple[Truth, Path | None]:
        from packager.verify.behaviour import measure_truth
        from packager.verify.reading import READINGS

        if self._found is None or self._key != (source.name, training):
            self._stack.close()
            self._found = None
            folder = self._stack.enter_context(tokenizer_folder(source, self._gathered))
            task = self._task(source)
            truth = measure_truth(
                self._gathered.ref.directory,
                source.spec.directory,
                folder,
                reading=READINGS[task.name],
                labels=self._labels(source, task),
                training=training,
                progress=self._progress,
            )
            self._found = (self._stack.enter_context(truth), folder)
            self._key = (source.name, training)
        return self._found

    def _labels(self, source: AdapterSource, task: Task) -> int | None:
        """Classes of the adapter's own head, or None where it has none or the base knows them."""
        shapes = {ref.name.removeprefix(_WRAPPER): ref.shape for ref in source.spec.tensors}
        return class_count(task, shapes)


@contextmanager
def tokenizer_folder(source: AdapterSource, gathered: Gathered) -> Iterator[Path | None]:
    """Gives a release's tokenizer a folder of its own: the adapter's, else the base's.

    Yields:
        The folder, with the configuration of the base, or None where there is no tokenizer.

    Raises:
        OutputError: There is no room for it.
    """
    roots = {"adapter": source.spec.directory, "base": gathered.ref.directory}
    files = tokenizer_files(source, gathered.base)
    if not source.files and all(file.path != "tokenizer_config.json" for file in files):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="lorapack-tokenizer-") as name:
        folder = Path(name)
        try:
            for file in files:
                root = roots[file.origin]
                place = folder / file.path
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(resolve_inside(root, file.path, where=str(root)), place)
            for config in _CONFIGS:
                if config in gathered.base.files:
                    root = gathered.ref.directory
                    shutil.copyfile(resolve_inside(root, config, where=str(root)), folder / config)
        except OSError as problem:
            raise output_error(problem, folder) from problem
        yield folder
