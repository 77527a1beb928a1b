"""What a weight that is decomposed takes, against what the plan says of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from packager.plan.module import module_bytes
from packager.plan.target import TargetPlan
from packager.plan.update import Residual
from packager.plan.value import PlannedShard, PlannedTensor

_STATUS = Path("/proc/self/status")
_PROGRAM = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from packager.plan import PlannedTensor, Residual
from packager.tensorfile import read_header
from packager.updatereader import read_updates
path, rows, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
torch.set_num_threads(1)
torch.linalg.svd(torch.randn(8, 8, dtype=torch.float64))
save_file({"w": torch.randn(rows, width).bfloat16()}, path)
ref = read_header(path).tensors[0]
tensor = PlannedTensor("w", "BF16", (rows, width), "pissa+lora", "w",
                       (Residual("a", "m", 4, 1.0, "pissa"),))
before = peak()
read_updates(tensor, ref, {"a": {}}, torch.float32, base={"w": ref})
print(peak() - before)
"""


@pytest.mark.skipif(not _STATUS.exists(), reason="the system does not tell a process's peak")
@pytest.mark.parametrize(("rows", "width"), [(900, 900), (700, 1800)])
def test_a_decomposition_takes_what_the_plan_says(tmp_path: Path, rows: int, width: int) -> None:
    update = Residual("a", "m", 4, 1.0, "pissa")
    tensor = PlannedTensor("w", "BF16", (rows, width), "pissa+lora", "w", (update,))
    shard = PlannedShard("model.safetensors", (tensor,), 0)
    target = TargetPlan("merged", "a", "merged/a", (shard,), ())
    program = [sys.executable, "-c", _PROGRAM, str(tmp_path / "w.safetensors")]
    found = subprocess.run(
        [*program, str(rows), str(width)], check=True, capture_output=True, text=True
    )
    taken, planned = int(found.stdout), module_bytes(target)
    # Small allocations of libraries come on top.
    assert 0.4 * planned < taken < planned + (16 << 20)
