"""A proof for the terminal: a few aligned lines per target."""

from __future__ import annotations

import unicodedata

from packager.verify.figure import printable
from packager.verify.proof import Proof, TargetProof
from packager.verify.wording import Tone, judge_proof, level_results

_MARKS: dict[Tone, str] = {"passed": "ok", "partial": "-", "failed": "FAILED"}
_LEVEL_WIDTH = len("behaviour")
_MARK_WIDTH = len("FAILED")
_SHOWN_PROBLEMS = 5


def render_proof_text(proof: Proof) -> str:
    """Returns a compact summary, without colours, ending in a newline.

    Names and problems come from strangers' files: control characters in them are shown, not sent.
    """
    verdict = judge_proof(proof)
    width = max((_width(_title(target)) for target in proof.targets), default=0)
    blocks = [_target_block(target, width) for target in proof.targets]
    lines = [line for block in blocks for line in (*block, "")]
    lines += [f"{verdict.headline}.", verdict.sentence]
    return "\n".join(lines) + "\n"


def _target_block(target: TargetProof, width: int) -> list[str]:
    title = _title(target)
    tone: Tone = "passed" if target.passed else "failed"
    lines = [f"{title}{' ' * (width - _width(title))}  {_MARKS[tone]}"]
    for result in level_results(target):
        head = f"  {result.level:<{_LEVEL_WIDTH}}  {_MARKS[result.tone]:<{_MARK_WIDTH}}  "
        indent = " " * len(head)
        shown = [f"! {problem}" for problem in result.problems[:_SHOWN_PROBLEMS]]
        more = len(result.problems) - len(shown)
        if more > 0:
            shown.append(f"! and {more} more, all of them in VERIFY.json")
        first, *rest = (printable(line) for line in (*result.lines, *shown))
        lines += [head + first, *(indent + line for line in rest)]
    return lines


def _title(target: TargetProof) -> str:
    return printable(f"{target.target}/{target.name}")


def _width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf")
        else 2 if unicodedata.east_asian_width(char) in "WF"
        else 1
        for char in text
    )  # fmt: skip
