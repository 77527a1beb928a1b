"""A bundle for vLLM on a small random model, changed by hand, and read by vLLM's own loader."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from packager.manifest import MANIFEST_NAME
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import Release, release

_LOAD = """
import sys, torch
from safetensors.torch import save_file
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

folder, out, modules = sys.argv[1:4]
helper = PEFTHelper.from_local_dir(folder, 512)
model = LoRAModel.from_local_checkpoint(
    folder, set(modules.split(",")), peft_helper=helper, lora_model_id=1, device="cpu",
    dtype=torch.float32,
)
made = {}
for name, lora in model.loras.items():
    lora.optimize()
    made[name] = (lora.lora_b.double() @ lora.lora_a.double()).contiguous()
save_file(made, out)
"""


def make_bundle(base: Path, out: Path, options: ReleaseOptions, **adapters: Path) -> Release:
    """Releases for vLLM."""
    request = ReleaseRequest(tuple(adapters.items()), out, base=str(base), options=options)
    return release(request, Silent())


def load_in_vllm(python: Path, adapter: Path, out: Path, modules: set[str]) -> dict[str, Tensor]:
    """Returns ΔW of every module as vLLM's loader understands an adapter, in float64."""
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    subprocess.run(
        [python, "-c", _LOAD, adapter, out, ",".join(sorted(modules))],
        check=True,
        env=environment,
        timeout=600,
    )
    return load_file(out)


def change_file(bundle: Path, path: str, change: Callable[[bytes], bytes]) -> None:
    """Changes a file of a bundle, and the manifest with it: its digest tells nothing then."""
    place = bundle / path
    place.write_bytes(change(place.read_bytes()))
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    entry = next(item for item in manifest["files"] if item["path"] == path)
    content = place.read_bytes()
    entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
