"""The exact base: which version it is, and where each of its tensors lies."""

from packager.base.index import BaseIndex, read_base
from packager.base.ref import BaseRef, resolve_base

__all__ = ["BaseIndex", "BaseRef", "read_base", "resolve_base"]
