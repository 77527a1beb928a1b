"""Talking to the Hub through huggingface_hub: retries, silence, and errors without secrets.

Nothing that the client raises leaves this module: its texts hold addresses, and addresses can
hold credentials. What leaves is a `HubRefusedError` whose text has been cleaned.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from packager.errors import HubError, OutputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

Refused = Literal[
    "offline",  # HF_HUB_OFFLINE, or nothing answers at the Hub's address
    "no-token",
    "wrong-token",
    "gated",
    "no-repo",
    "no-revision",
    "no-file",
    "forbidden",
    "conflict",
    "invalid",
    "busy",  # 429
    "broken",  # 5xx, or the connection was cut
    "other",
]

ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_TRANSIENT = ("busy", "broken")
_MAX_TEXT_CHARS = 300

_TOKEN_SHAPES = (
    re.compile(r"\b(hf|api_org)_\w{6,}"),
    re.compile(r"(?<=Bearer )\S+"),
    re.compile(r"(?<=://)[^/\s@]+@"),
    # Signed addresses of the Hub's storage open it to whoever reads them.
    re.compile(
        r"(?<=[?&])(X-Amz-|X-Xet-|Signature|Policy|Key-Pair-Id|token)[^\s'\"]*", re.IGNORECASE
    ),
)


class HubRefusedError(HubError):
    """The Hub refused or did not answer; `refused` tells how, for the caller's own error."""

    def __init__(self, refused: Refused, what: str, *, found: str = "", hint: str = "") -> None:
        super().__init__(what, where=endpoint(), found=found, hint=hint)
        self.refused = refused

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.refused, self.what, self.found, self.hint, self.__dict__))


def _rebuild(
    refused: Refused, what: str, found: str, hint: str, fields: dict[str, object]
) -> HubRefusedError:
    problem = HubRefusedError(refused, what, found=found, hint=hint)
    problem.__dict__.update(fields)
    return problem


def endpoint() -> str:
    """Returns the Hub's address without credentials: HF_ENDPOINT, or huggingface.co."""
    from huggingface_hub import constants

    return clean_text(constants.ENDPOINT)


def client() -> HfApi:
    """Returns the real client for HF_ENDPOINT with the user's own token.

    Raises:
        HubError: HF_ENDPOINT holds a user name or password, which would end up in logs.
    """
    from huggingface_hub import HfApi, constants

    parts = urlsplit(constants.ENDPOINT)
    if parts.username or parts.password:
        raise HubError(
            "the Hub's address holds credentials",
            where="HF_ENDPOINT",
            found=endpoint(),
            hint="take them out of HF_ENDPOINT; put the token into HF_TOKEN or run: hf auth login",
        )
    return HfApi(library_name="lorapack")


def ask(call: Callable[[], T], *, attempts: int = ATTEMPTS) -> T:
    """Calls the client and returns what it returns; tries again where that can help.

    A 429 is waited for as long as `Retry-After` asks, up to a minute.

    Raises:
        HubRefusedError: The Hub refused, broke or did not answer.
        OutputError: The disk is full or read-only.
    """
    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(1, attempts + 1):
        refusal: HubRefusedError | OutputError | None = None
        wanted_pause: float | None = None
        with _quiet:
            try:
                return call()
            except _client_errors() as problem:
                cause = _innermost(problem)
                refusal = _refusal(cause)
                wanted_pause = _retry_after(cause)
        # Raised outside of the handler, so that no traceback shows the client's own text.
        if attempt == attempts or getattr(refusal, "refused", "") not in _TRANSIENT:
            raise refusal
        time.sleep(min(wanted_pause if wanted_pause is not None else pause, _LONGEST_PAUSE_SECONDS))
        pause *= 2
    raise AssertionError("unreachable")


def clean_text(text: str) -> str:
    """Returns text without tokens, passwords in addresses, and signatures of addresses."""
    for secret in _known_secrets():
        text = text.replace(secret, "<token>")
    for shape in _TOKEN_SHAPES:
        text = shape.sub("<hidden>", text)
    return text


def _known_secrets() -> Iterator[str]:
    from huggingface_hub import constants

    found = [os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")]
    try:
        found.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        found.append(None)
    yield from (secret.strip() for secret in found if secret and len(secret.strip()) >= 4)


def _client_errors() -> tuple[type[Exception], ...]:
    # `HTTPError` is that of the HTTP library that the installed client was built on.
    from huggingface_hub import errors

    return (
        errors.HTTPError,  # type: ignore[attr-defined]
        errors.EntryNotFoundError,
        errors.OIDCError,
        OSError,
        ValueError,
        RuntimeError,
    )


def _innermost(problem: BaseException) -> BaseException:
    """Returns the HTTP error or the like that the client wrapped, if any.

    Source: huggingface_hub 2.4, _commit_api.py: `RuntimeError("Error while uploading …") from`;
    file_download.py: `LocalEntryNotFoundError … from`.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    while (
        isinstance(problem, (RuntimeError, LocalEntryNotFoundError))
        and not isinstance(problem, (HfHubHTTPError, OfflineModeIsEnabled))
        and problem.__cause__ is not None
    ):
        problem = problem.__cause__
    return problem


def _refusal(problem: BaseException) -> HubRefusedError | OutputError:
    number = getattr(problem, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return OutputError(
            "the disk is full" if number != errno.EROFS else "the disk is read-only",
            where=str(getattr(problem, "filename", None) or "the Hub's cache"),
            hint="make room there, or point HF_HOME at another disk",
        )
    refused = _kind(problem)
    server_message = getattr(problem, "server_message", None)
    text = " ".join(clean_text(str(server_message or problem)).split())
    what, hint = _TEXTS[refused]
    return HubRefusedError(refused, what, found=text[:_MAX_TEXT_CHARS], hint=hint)


def _kind(problem: BaseException) -> Refused:
    from huggingface_hub import errors

    by_type: tuple[tuple[type[BaseException], Refused], ...] = (
        (errors.OfflineModeIsEnabled, "offline"),
        (errors.LocalTokenNotFoundError, "no-token"),
        (errors.GatedRepoError, "gated"),
        (errors.RevisionNotFoundError, "no-revision"),
        (errors.EntryNotFoundError, "no-file"),
        (errors.RepositoryNotFoundError, "no-repo"),
    )
    for kind, refused in by_type:
        if isinstance(problem, kind):
            return refused
    if isinstance(problem, errors.HfHubHTTPError):
        return _kind_of_status(problem.response.status_code)
    if isinstance(problem, errors.HTTPError):  # type: ignore[attr-defined]
        nobody = ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol")
        return "offline" if type(problem).__name__ in nobody else "broken"
    return "other"


def _kind_of_status(status: int) -> Refused:
    by_status: dict[int, Refused] = {
        400: "invalid",
        401: "wrong-token",
        403: "forbidden",
        404: "no-repo",
        409: "conflict",
        412: "conflict",
        422: "invalid",
        429: "busy",
    }
    return by_status.get(status, "broken" if status >= 500 else "other")


def _retry_after(problem: BaseException) -> float | None:
    headers = getattr(getattr(problem, "response", None), "headers", {})
    value = str(headers.get("retry-after", "")).strip()
    return float(value) if value.isdigit() else None


_TEXTS: dict[Refused, tuple[str, str]] = {
    "offline": ("the Hub cannot be reached", "check the network, HF_HUB_OFFLINE and HF_ENDPOINT"),
    "no-token": ("there is no token for the Hub", "hf auth login"),
    "wrong-token": ("the Hub does not know this token", "hf auth login --force"),
    "gated": ("the repository is gated", "accept its terms on the Hub, then: hf auth login"),
    "no-repo": (
        "there is no such repository, or the token may not see it",
        "check the name; if it is private: hf auth login",
    ),
    "no-revision": ("the repository has no such revision", "check the branch, tag or commit"),
    "no-file": ("the repository has no such file", "check the revision"),
    "forbidden": (
        "the token's rights do not reach so far",
        "make a token with more rights on the Hub's settings page, then: hf auth login",
    ),
    "conflict": ("the repository changed in the meantime", "look at what changed, then run again"),
    "invalid": ("the Hub calls the request invalid", "read what it found"),
    "busy": ("the Hub asks to wait (rate limit)", "run the same command again in a few minutes"),
    "broken": ("the Hub broke off", "run the same command again; finished files are kept"),
    "other": ("the Hub's client failed", "run the same command again"),
}


class _Quiet:
    """Keeps the client from printing while it is called; counts, so that threads can nest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                self._stack.enter_context(_silent_client())
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._stack.close()


@contextmanager
def _silent_client() -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from huggingface_hub.utils import logging as client_logging

    verbosity = client_logging.get_verbosity()
    hides_bars = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client_logging.set_verbosity(logging.CRITICAL)
        if hides_bars:
            disable_progress_bars()
        try:
            yield
        finally:
            client_logging.set_verbosity(verbosity)
            if hides_bars:
                enable_progress_bars()


_quiet = _Quiet()


@contextmanager
def silence() -> Iterator[None]:
    """Keeps the client silent over many calls, also those made by its own threads."""
    with _quiet:
        yield
