"""Which form of a base that was quantised in training merges come closer to training on."""

from __future__ import annotations

from pathlib import Path

from packager.gather import Gathered
from packager.plan import ReleasePlan
from packager.plan.option import MergeBase
from packager.progress import Progress
from packager.verify.check import ProofRequest, Steps, why_no_behaviour
from packager.verify.proof import MergeBaseCheck
from packager.verify.reference import References


def measure_closer_base(
    gathered: Gathered, plan: ReleasePlan, progress: Progress
) -> tuple[MergeBase, str, dict[str, MergeBaseCheck]]:
    """Measures which form of a base that was quantised in training merges come closer to it on.

    Args:
        gathered: The sources, with the base as training saw it.
        plan: Of a release of them.
        progress: Told about steps.

    Returns:
        The form; the figures in a line, or why it could not be measured; and the figures of each
        adapter by name.

    Raises:
        LorapackError: As of `prove`.
    """
    request = ProofRequest(Path(), (), plan, gathered)
    merged = [target for target in plan.targets if target.target in ("merged", "ollama")]
    if not merged:
        return "dequantized", "", {}
    reasons = [reason for target in merged if (reason := why_no_behaviour(request, target))]
    if reasons:
        return "dequantized", f"dequantized, the default; not measured: {reasons[0]}", {}
    names = {target.name for target in merged}
    with References(gathered, Steps(progress)) as references:
        found = {
            source.name: check
            for source in gathered.adapters
            if source.name in names
            and (check := references.compare_merge_bases(source)) is not None
        }
    plain = sum(check.kl_16bit for check in found.values())
    seen = sum(check.kl_dequantized for check in found.values())
    closer: MergeBase = "16bit" if plain < seen else "dequantized"
    figures = f"mean KL to training {seen:.3g} dequantized, {plain:.3g} 16bit"
    return closer, f"{closer} is closer: {figures}", found
