"""PEFT as the oracle of a merge: an adapter of any configuration, released, and compared with it.

The truth is PEFT's own merge of the base in float64, where weights that are tied were taken apart
before, so that one side's update does not reach the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests.merge.conftest import load, read_tensors

BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")
MORE = 8
"""Tokens by which `enlarge` enlarges a vocabulary."""


@dataclass(frozen=True)
class Merged:
    """A base, an adapter, and the merged model of a release."""

    base: Path
    adapter: Path
    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """`config.json` of the merged model."""
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        return found


Change = Callable[[Any], None]
"""Done to the base model before the adapter is attached, such as resizing the vocabulary."""


def write_adapter(base: Path, out: Path, change: Change | None = None, **config: Any) -> Path:
    """Attaches an adapter, gives every tensor that it would train other values, and saves it."""
    # PEFT changes lists that it is given, to tie what they name.
    arguments = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **deepcopy(config)}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = load(base)
        if change is not None:
            change(model)
        tuned = get_peft_model(model, LoraConfig(**arguments))
        trained = [weight for weight in tuned.parameters() if weight.requires_grad]
        assert trained
        with torch.no_grad():
            for weight in trained:
                weight.add_(torch.randn_like(weight) * 0.15)
    tuned.save_pretrained(out)
    return out


def merge(base: Path, adapter: Path, out: Path, *, dtype: str | None = None) -> Merged:
    """Releases a merged model, whose weights the release proves."""
    request = ReleaseRequest(
        adapters=(("a", adapter),),
        out=out,
        base=str(base),
        options=ReleaseOptions(targets=("merged",), dtype=dtype),
        behaviour=False,
    )
    return Merged(base, adapter, release(request, Silent()).bundle / "merged/a")


def attach(merged: Merged, change: Change | None = None, dtype: str = "float32") -> Any:
    """Loads base and adapter with PEFT."""
    model = load(merged.base, dtype)
    if change is not None:
        change(model)
    return PeftModel.from_pretrained(model, merged.adapter).eval()


def true_tensors(merged: Merged, change: Change | None = None) -> dict[str, Tensor]:
    """Merges in float64, each weight for itself, by the names that a state has."""
    tuned = attach(merged, change).double()
    _take_apart(tuned)
    state: dict[str, Tensor] = tuned.merge_and_unload().state_dict()
    return state


def _take_apart(model: nn.Module) -> None:
    """Gives each layer that shares its weight with another one of its own."""
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            continue
        weight = module._parameters.get("weight")
        if weight is not None and id(weight) in seen:
            module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        seen.add(id(module._parameters.get("weight")))


def check_tensors(
    merged: Merged,
    change: Change | None = None,
    *,
    unknown: Iterable[str] = (),
    inexact: float = 0.0,
) -> set[str]:
    """Compares every tensor with the truth and with PEFT's merge in the output's own dtype.

    Args:
        merged: What to compare.
        change: Done to the base before.
        unknown: Tensors that PEFT does not merge itself.
        inexact: What PEFT's own values may be off by, where it computes in float32 whatever the
            dtype of the model.

    Returns:
        Names of the tensors that differ from the base's.
    """
    truth, found = true_tensors(merged, change), read_tensors(merged.folder)
    base = read_tensors(merged.base)
    dtype = merged.config["dtype"]
    rounded = attach(merged, change, dtype)
    _take_apart(rounded)
    peft = rounded.merge_and_unload().state_dict()
    changed = set()
    for name in found.keys() - set(unknown):
        values, wanted = found[name], truth[name]
        assert values.shape == wanted.shape, name
        error = (values.double() - wanted).abs()
        unit = 2.0 ** (wanted.abs().clamp_min(2.0**-60).log2().floor() - BITS[values.dtype])
        slack = 0 if values.dtype == torch.float32 else wanted.abs().max() * 2.0**-20
        assert bool((error <= 0.502 * unit + slack + inexact).all()), f"{name}: {error.max()}"
        theirs = (peft[name].double() - wanted).abs().mean()
        assert error.mean() <= theirs * (1 + 1e-6) + 1e-12 + inexact, name
        if name not in base or not torch.equal(values, base[name]):
            changed.add(name)
    for name in truth.keys() - found.keys() - set(unknown):
        if ".token_adapter." in name:
            continue
        assert name == "lm_head.weight"
        assert merged.config["tie_word_embeddings"] is True
        embedding = next(key for key in EMBEDDINGS if key in truth)
        assert torch.equal(truth[name], truth[embedding]), "the head is lost"
    return changed


def check_logits(
    merged: Merged, change: Change | None = None, *, lost: float = 1e-5, effect: float = 0.01
) -> None:
    """Compares the reloaded model with base and adapter, unmerged, in float32."""
    plain = load(merged.base)
    rows = plain.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        tuned = attach(merged, change)
        tokens = torch.arange(96) % tuned.get_input_embeddings().weight.shape[0]
        tokens[::12] = tuned.get_input_embeddings().weight.shape[0] - 1 - torch.arange(8)
        tokens = tokens.view(4, 24)
        truth = tuned(input_ids=tokens).logits.double()
        found = load(merged.folder)(input_ids=tokens).logits.double()
        before = plain(input_ids=tokens.clamp(max=rows - 1)).logits.double()
    assert found.shape == truth.shape
    width = min(rows, truth.shape[-1])
    changed = (before[..., :width] - truth[..., :width]).norm()
    assert changed > effect * truth.norm(), "the adapter has next to no effect"
    assert (found - truth).norm() <= lost * changed


def enlarge(model: Any) -> None:
    """Gives the model more tokens, as a trainer does who adds some."""
    rows = model.get_input_embeddings().weight.shape[0] + MORE
    model.resize_token_embeddings(rows, mean_resizing=False)


def make_model(folder: Path, config: Any, dtype: str = "float32") -> Path:
    """Writes a random model of any configuration, biases included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(std=0.1)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", "utf-8")
    return folder
