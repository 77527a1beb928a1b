"""What adapters are merged onto: the base as it is stored, or as training saw it quantised."""

from __future__ import annotations

from dataclasses import replace

from packager.base import BaseIndex
from packager.errors import BaseError, InputError
from packager.gather import Gathered
from packager.plan.option import MergeBase, ReleaseOptions
from packager.plan.source import BaseSource
from packager.quantisation.training import TrainingQuantisation, dequantised_tensors
from packager.trainingfact import read_training

DEFAULT: MergeBase = "dequantized"
"""Where it cannot be measured: these are the weights that the adapter was trained to correct."""

_EVIDENCE = {
    "lock": "the adapter's lock", "card": "the adapter's card", "option": "--loaded-in",
}  # fmt: skip


def settle_merge_base(gathered: Gathered, options: ReleaseOptions) -> Gathered:
    """Returns the sources with the base that is merged onto, and what is known of training.

    Args:
        gathered: The sources, with the base as it is stored.
        options: What a user chose; without a choice it is `dequantized` for adapters that were
            trained on one and the same quantised load, and `16bit` for those of different ones,
            which are merged onto one base together.

    Raises:
        BaseError: The base is stored quantised, and its 16-bit form is wanted.
        BaseMismatchError: A user says otherwise than an adapter's lock.
        InputError: The dequantised form is wanted, and nothing tells it, or several do; or what
            an adapter tells cannot be read.
    """
    base, wanted = gathered.base, options.merge_base
    if base.index.quantised_count:
        if wanted == "16bit":
            raise BaseError(
                "the base is stored quantised: its 16-bit form is not here",
                where=str(base.index.directory),
                expected="a 16-bit checkpoint for --merge-base 16bit",
                found=", ".join(base.index.dtypes[:3]),
                hint="give the 16-bit original with --base, or leave --merge-base out",
            )
        return replace(gathered, base=replace(base, merge_base="dequantized"))
    gathered = replace(
        gathered,
        adapters=tuple(
            replace(source, training=read_training(source.spec.directory, options.loaded_in))
            for source in gathered.adapters
        ),
    )
    trainings = {source.training for source in gathered.adapters}
    known = trainings - {None}
    if wanted == "16bit" or (wanted is None and (not known or len(trainings) > 1)):
        return replace(gathered, base=replace(base, merge_base="16bit" if known else None))
    training = _agreed(gathered, trainings)
    return replace(gathered, base=_dequantised(base, training))


def as_stored(gathered: Gathered) -> Gathered:
    """Returns the sources merged onto the base in 16 bits instead of its dequantised form."""
    tensors = {
        name: getattr(getattr(ref, "encoding", None), "plain", ref)
        for name, ref in gathered.base.index.tensors.items()
    }
    index = replace(gathered.base.index, tensors=tensors)
    base = replace(gathered.base, index=index, merge_base="16bit", training=None)
    return replace(gathered, base=base)


def _dequantised(base: BaseSource, training: TrainingQuantisation) -> BaseSource:
    index = base.index
    tensors = dequantised_tensors(index.tensors, index.config, _by_stored_name(index, training))
    return replace(
        base,
        index=replace(index, tensors=tensors),
        merge_base="dequantized",
        training=training,
    )


def _by_stored_name(index: BaseIndex, training: TrainingQuantisation) -> TrainingQuantisation:
    """Returns what is known of training with modules named as the checkpoint names them."""
    if training.modules is None:
        return training
    refs = {module: index.naming.find_tensor(f"{module}.weight") for module in training.modules}
    missing = [module for module, ref in refs.items() if ref is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(refs)} modules that were quantised in training are not in the "
            "base",
            where=str(index.directory),
            expected="the weights that the lock names",
            found=", ".join(missing[:3]),
            hint="give the base trained on with --base, or merge onto it as it is stored: "
            "--merge-base 16bit",
        )
    names = (ref.name.removesuffix(".weight") for ref in refs.values() if ref is not None)
    return replace(training, modules=tuple(names))


def _agreed(
    gathered: Gathered, trainings: set[TrainingQuantisation | None]
) -> TrainingQuantisation:
    where = ", ".join(str(source.spec.directory) for source in gathered.adapters)[:200]
    if trainings == {None}:
        raise InputError(
            "nothing says how the base was quantised while the adapter was trained",
            where=where,
            expected="a lock written in training, or a card that PEFT wrote",
            hint="say it: --loaded-in nf4, nf4-double, fp4, fp4-double or int8; or merge onto the "
            "base as it is stored: --merge-base 16bit",
        )
    (training, *others) = trainings
    if training is None or others:
        raise InputError(
            "the adapters were trained on differently quantised bases",
            where=where,
            expected="one",
            found="; ".join(
                sorted("16 bits" if item is None else item.loaded_in for item in trainings)
            ),
            hint="release them one by one, or with --merge-base 16bit",
        )
    return training


def settled_options(options: ReleaseOptions, gathered: Gathered) -> ReleaseOptions:
    """Returns the options with what was chosen, so that a bundle can be planned again."""
    known = [source.training for source in gathered.adapters if source.training is not None]
    base = gathered.base
    if base.merge_base is None:
        return options
    loaded_in = known[0].loaded_in if known and base.training is not None else options.loaded_in
    return replace(options, merge_base=base.merge_base, loaded_in=loaded_in)


def merge_base_notes(gathered: Gathered) -> list[str]:
    """Says what adapters are merged onto, where that is not just the base."""
    base = gathered.base
    count = base.index.quantised_count
    if base.training is not None:
        note = (
            f"merged onto {base.training.describe()}, as training saw it (known from "
            f"{_EVIDENCE[base.training.evidence]}); --merge-base 16bit merges onto the base as it "
            "is stored"
        )
        return [note, *_rounding_notes(base.training)]
    if count:
        return [f"{count} tensors of the base are stored quantised; they are dequantised"]
    if base.merge_base == "16bit":
        return [_plain_note(gathered)]
    return []


def default_notes(gathered: Gathered, options: ReleaseOptions) -> list[str]:
    """Says how it was decided what to merge onto, where nothing was measured.

    Measuring runs the model several times, which `lorapack release` does and `lorapack merge`
    does not.
    """
    if options.merge_base is not None or gathered.base.training is None:
        return []
    return [
        f"--merge-base: {DEFAULT}, the default, not measured: these are the weights that the "
        "adapter was trained to correct; lorapack release measures which of both is closer to "
        "training"
    ]


def _rounding_notes(training: TrainingQuantisation) -> list[str]:
    if training.loaded_in != "int8":
        return []
    return [
        "in training, LLM.int8() rounded what goes into each layer to 8 bits too; no weights can "
        "hold that, so that it is in no merge"
    ]


def _plain_note(gathered: Gathered) -> str:
    """Says that adapters are merged onto another base than they were trained on, and which are."""
    seen = {
        source.name: "16 bits" if source.training is None else source.training.loaded_in
        for source in gathered.adapters
    }
    if len(set(seen.values())) == 1:
        return (
            "the adapter was trained on a quantised load of the base; it is merged onto the base "
            "as it is stored"
        )
    listed = ", ".join(f"{name} in {held}" for name, held in seen.items())
    return (
        f"the adapters were trained on differently loaded bases ({listed}); all are merged onto "
        "the base as it is stored. For each on what it saw in training, release them one by one"
    )
