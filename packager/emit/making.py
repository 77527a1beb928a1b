"""What the making of files depends on besides their plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from packager.plan import ReleaseOptions

if TYPE_CHECKING:
    from packager.gguf.imatrix import Imatrix


@dataclass(frozen=True)
class Making:
    """Choices and means of one release.

    Attributes:
        options: What a user chose.
        threads: That quantise.
        imatrix: Weights of columns, or None.
    """

    options: ReleaseOptions = field(default_factory=ReleaseOptions)
    threads: int = 1
    imatrix: Imatrix | None = None
