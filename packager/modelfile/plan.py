"""The Modelfile of a release: from what is known of a model's chat."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from packager.chat import ChatChoice
from packager.errors import InputError
from packager.modelfile.printable import find_dropped, is_printable
from packager.modelfile.value import Modelfile, Parameter

MAX_CONTEXT = 8192
"""The longest context that a model is started with, in tokens.

Ollama reserves the memory for all of it at the start, about 1 GiB for a model of 3 billion
parameters, and its own 4096 is less than most adapters are trained for. Who has the memory asks for
more: `/set parameter num_ctx`.
"""


def plan_modelfile(
    file_name: str,
    chat: ChatChoice,
    *,
    context_length: int,
    system: str = "",
    licenses: Sequence[str] = (),
) -> Modelfile:
    """Returns what `ollama create` is to be told about a finished GGUF file.

    Args:
        file_name: Of the GGUF, which lies beside the Modelfile.
        chat: How the model's chat reaches Ollama.
        context_length: What the model was made for, in tokens.
        system: A system message for conversations that bring none.
        licenses: Texts of the licences. Form feeds and unusual blanks, which a Modelfile cannot
            carry, become plain; not a word changes.

    Raises:
        InputError: There is a system message, and the model's chat template refuses them.
    """
    if system and "system" in chat.refused:
        raise InputError(
            "the chat template takes no system message",
            where="--system",
            found=system[:60],
            hint="leave --system out, or say it in the first question",
        )
    return Modelfile(
        from_=f"./{file_name}",
        parameters=(
            Parameter("num_ctx", min(context_length, MAX_CONTEXT)),
            *(Parameter("stop", stop) for stop in chat.stops),
        ),
        template=chat.go_template,
        system=system,
        licenses=tuple(map(plain_license, licenses)),
        requires=chat.requires,
    )


def plain_license(text: str) -> str:
    """Returns a text whose blanks are those that a Modelfile can carry."""
    if find_dropped(text) is None:
        return text
    return "".join(map(_plain, text))


def _plain(letter: str) -> str:
    if is_printable(letter) or letter in "\t\r\n":
        return letter
    return " " if unicodedata.category(letter) == "Zs" else ""
