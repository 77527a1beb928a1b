"""How large files travel to a Hub: through Xet where it has that, else as git LFS does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from packager.hub.client import ask

_NOT_THERE = (404, 405, 501)


@contextmanager
def suited_transfer(repo: str) -> Iterator[None]:
    """Lets the client send large files to `repo` in the way that its Hub understands.

    With hf_xet installed, the client sends everything to Xet storage and gives up on a Hub that
    has none, such as an older mirror.

    Source: huggingface_hub 2.4, _commit_api.py (_upload_files: no way back to LFS),
    utils/_runtime.py (is_xet_available reads the constant at every call), utils/_xet.py
    (xet_connection_info_refresh_url).

    Args:
        repo: `USER/NAME`, which exists.

    Raises:
        HubRefusedError: The Hub does not answer.
    """
    from huggingface_hub import constants

    was_disabled = constants.HF_HUB_DISABLE_XET
    if not was_disabled and not _has_xet(repo):
        constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = was_disabled


def _has_xet(repo: str) -> bool:
    """Tells whether a Hub gives out tokens for its Xet storage.

    Any other answer than that there is no such thing counts as yes: the client meets it again,
    and says what is wrong.
    """
    return ask(lambda: _token_status(repo)) not in _NOT_THERE


def _token_status(repo: str) -> int:
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
    )

    session: Any = get_session()
    address = f"{constants.ENDPOINT}/api/models/{repo}/xet-write-token/main"
    answer = session.get(address, headers=build_hf_headers(library_name="lorapack"))
    return int(answer.status_code)
