"""Three minutes of sixteen clients against one served bundle, good ones and bad ones, and its end.

Long, so it has a marker of its own: `just test-load`. LORAPACK_SOAK_SECONDS makes it shorter.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.serve.crowd import DEEDS, MOST_CLIENTS, crowd
from tests.serve.running import serving, wait_gone
from tests.vllm_engine import keep_vllm

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("LORAPACK_SOAK_SECONDS", "180"))


def test_many_clients_good_and_bad_and_an_end_in_the_middle(
    mixed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAPACK_MAX_CONCURRENCY", str(MOST_CLIENTS - 2))
    with serving(tmp_path, mixed_bundle, "--vllm-python", keep_vllm()) as running:
        family = running.family()
        with crowd(running, running.document["models"], MOST_CLIENTS) as seen:
            seen.over.wait(SECONDS)
            # They go on asking while it ends.
            seen.stopping = time.monotonic()
            code = running.stop(signal.SIGTERM)
        print(json.dumps(seen.counts, indent=1, sort_keys=True))  # noqa: T201
        assert not seen.wrong, seen.wrong[:5]
        assert code == 0
        assert not wait_gone(family)
    assert all(seen.counts[deed] for deed in DEEDS), seen.counts


def test_killed_parent_takes_every_process_of_vllm_along(
    mixed_bundle: Path, tmp_path: Path
) -> None:
    with serving(tmp_path, mixed_bundle, "--vllm-python", keep_vllm()) as running:
        family = running.family()
        # lorapack, and two servers of three processes each.
        assert len(family) >= 7
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        assert not wait_gone(family, 60)
