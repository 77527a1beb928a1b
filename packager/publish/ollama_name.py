"""The names of models in Ollama: their grammar, their defaults, and their place on the disk. Pure.

Source: ollama v0.33.0-rc2, types/model/name.go: ParseNameBare, Merge, isValidPart, DisplayShortest,
Filepath.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from packager.errors import OllamaError

DEFAULT_TAG = "latest"

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
_START = "[A-Za-z0-9_]"
_PARTS = {
    "host": re.compile(_START + "[A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(_START + "[A-Za-z0-9_-]{0,79}"),
    "model": re.compile(_START + "[A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(_START + "[A-Za-z0-9_.-]{0,79}"),
}
_GRAMMAR = "[HOST/][NAMESPACE/]MODEL[:TAG] of letters, digits, - _ and ., each at most 80 long"


@dataclass(frozen=True)
class ModelName:
    """One model of an Ollama.

    Attributes:
        host: Of the registry that it is pushed to.
        namespace: Whose it is there; `library` for names without one.
        model: Its own name.
        tag: Which of its variants; None where the text named none.
    """

    host: str
    namespace: str
    model: str
    tag: str | None = None

    @property
    def text(self) -> str:
        """What `ollama run` takes, without the parts that are the defaults."""
        prefix = ""
        if self.host != DEFAULT_HOST:
            prefix = f"{self.host}/{self.namespace}/"
        elif self.has_owner:
            prefix = f"{self.namespace}/"
        return f"{prefix}{self.model}:{self.tag or DEFAULT_TAG}"

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """The folders and the file of its manifest, below `manifests`."""
        return self.host, self.namespace, self.model, self.tag or DEFAULT_TAG

    @property
    def has_owner(self) -> bool:
        """Whether it names a namespace of a registry, so that it can be pushed."""
        return self.namespace != DEFAULT_NAMESPACE

    @property
    def is_on_default_host(self) -> bool:
        """Whether it is pushed to ollama.com."""
        return self.host == DEFAULT_HOST

    @property
    def url(self) -> str | None:
        """Where it can be seen once it has been pushed; None for one that stays here."""
        if not self.has_owner:
            return None
        place = "ollama.com" if self.is_on_default_host else self.host
        return f"https://{place}/{self.namespace}/{self.model}:{self.tag or DEFAULT_TAG}"

    def tagged(self, tag: str) -> ModelName:
        """Returns the same model with another tag.

        Raises:
            OllamaError: That is no tag.
        """
        return check_name(replace(self, tag=tag), where="the tag")


def parse_model_name(text: str, *, where: str) -> ModelName:
    """Parses `[HOST/][NAMESPACE/]MODEL[:TAG]`.

    Args:
        text: The name.
        where: The option or file that holds it, for the error.

    Raises:
        OllamaError: Ollama would not take that name.
    """
    rest, tag = text, None
    if text.rfind(":") > text.rfind("/"):
        rest, _, tag = text.rpartition(":")
    *before, model = rest.split("/")
    if len(before) > 2:
        raise _name_error(f"{text!r:.200}", where)
    namespace = before.pop() if before else DEFAULT_NAMESPACE
    host = before.pop() if before else DEFAULT_HOST
    return check_name(ModelName(host, namespace, model, tag), where=where)


def check_name(name: ModelName, *, where: str) -> ModelName:
    """Returns a name if every part of it is one that Ollama takes.

    Raises:
        OllamaError: With the part that is not.
    """
    for part, pattern in _PARTS.items():
        value = getattr(name, part)
        if value is not None and not pattern.fullmatch(value):
            raise _name_error(f"{part} {value!r:.90}", where)
    return name


def _name_error(found: str, where: str) -> OllamaError:
    return OllamaError(
        "Ollama does not take this name",
        where=where,
        expected=_GRAMMAR,
        found=found,
        hint="give another name, such as NAME, or USER/NAME:TAG",
    )
