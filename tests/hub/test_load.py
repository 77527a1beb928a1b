"""What was published loads back from the Hub with transformers and PEFT, and computes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packager import hub
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.publish import publish_hub
from packager.release import release
from tests.hub.bundle import card, seal
from tests.loopback_hub import Client, LoopbackHub
from tests.models import make_adapter, make_llama

StartClient = Callable[..., Client]
TOKEN = "hf_alicesownwritetoken"
WORDS = ["<unk>", "</s>", "ahoy", "matey", "海", "盗", "🙂", "rome", "be", "it"]


def make_models(base: Path, adapter: Path, merged: Path, base_repo: str) -> list[float]:
    """Runs in the client: a tiny Llama, a LoRA with weights of its own, and both merged.

    Returns:
        The logits of base + adapter for one prompt, flat.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    for folder in (base, adapter, merged):
        tokenizer.save_pretrained(folder)
    model.save_pretrained(base, max_shard_size="20KB")
    tuned: Any = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    tuned.peft_config["default"].base_model_name_or_path = base_repo
    tuned.save_pretrained(adapter)
    logits = tuned(torch.tensor([[2, 3, 4, 5]])).logits.flatten().tolist()
    tuned.merge_and_unload().save_pretrained(merged, max_shard_size="20KB")
    return list(logits)


def load(merged: str, adapter: str, commits: dict[str, str]) -> dict[str, Any]:
    """Runs in the client: both repositories, loaded from the Hub by commit."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = "ahoy matey 海 盗"
    results: dict[str, Any] = {}
    for repo, kind in ((merged, AutoModelForCausalLM), (adapter, AutoPeftModelForCausalLM)):
        tokens = AutoTokenizer.from_pretrained(repo, revision=commits[repo])(
            prompt, return_tensors="pt"
        )["input_ids"]
        model = kind.from_pretrained(repo, revision=commits[repo]).eval()
        with torch.no_grad():
            results[repo] = (tokens.tolist(), model(tokens).logits.flatten().tolist())
    return results


def test_published_models_load_and_compute_the_same(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    loopback_hub.add_token(TOKEN, "alice")
    process = client(token=TOKEN)
    base, bundle = tmp_path / "base", tmp_path / "bundle"
    adapter, merged = bundle / "adapter/pirate", bundle / "merged/pirate"
    wanted = process.call(make_models, base, adapter, merged, "org/base")
    loopback_hub.seed("org/base", base)
    for folder, target in ((adapter, "adapter"), (merged, "merged")):
        (folder / "README.md").write_text(card(target), encoding="utf-8")
    seal(bundle, (("adapter", "pirate"), ("merged", "pirate")))

    made = process.call(publish_hub, bundle, "alice/pirate")
    commits = {repo.repo: repo.commit or "" for repo in made}
    assert set(commits) == {"alice/pirate", "alice/pirate-adapter"}
    found = process.call(load, "alice/pirate", "alice/pirate-adapter", commits)
    for repo in commits:
        tokens, logits = found[repo]
        assert tokens == [[2, 3, 4, 5]]
        assert logits == pytest.approx(wanted, abs=1e-5)
    assert len(json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]) > 9

    # The same server serves the base with its commit, for a release to start from.
    remote = process.call(hub.resolve_repo, "org/base")
    folder = process.call(hub.fetch_files, remote, hub.wanted_base_files(remote))
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 2
    assert "Traceback" not in process.printed()


def make_release(adapter: Path, out: Path) -> str:
    """Runs in the client: releases from the base on the Hub, and returns its commit."""
    options = ReleaseOptions(targets=("adapter", "merged"))
    request = ReleaseRequest((("pirate", adapter),), out, "org/base", options=options)
    commit = release(request, Silent()).manifest.base.commit
    assert commit is not None
    return commit


def truth(base: Path, adapter: Path, tokens: list[list[int]]) -> list[float]:
    """The logits of base + adapter in float32, flat."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        return list(model(torch.tensor(tokens)).logits.flatten().tolist())


def test_a_release_from_a_hub_base_comes_back_from_the_hub(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    """The whole way through Xet storage: base, release, two repositories, and both loaded."""
    loopback_hub.xet = True
    loopback_hub.add_token(TOKEN, "alice")
    process = client(token=TOKEN)
    base = make_llama(tmp_path / "base", dtype="float32", max_shard_size="60KB")
    adapter = make_adapter(base, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(base)
    commit = loopback_hub.seed("org/base", base).oid
    assert process.call(make_release, adapter, tmp_path / "out") == commit
    made = process.call(publish_hub, tmp_path / "out", "alice/pirate")
    commits = {repo.repo: repo.commit or "" for repo in made}
    assert len(loopback_hub.asked("shard")) > 0
    card = loopback_hub.files("alice/pirate-adapter")["README.md"].decode()
    assert commit in card
    # PEFT loads the base that the published adapter names, at the commit that it names.
    (base / "config.json").write_text("{}", encoding="utf-8")
    loopback_hub.seed("org/base", base, title="Break the head of the branch")
    found = process.call(load, "alice/pirate", "alice/pirate-adapter", commits)
    whole = loopback_hub.files("org/base", commit)
    (base / "config.json").write_bytes(whole["config.json"])
    for tokens, logits in found.values():
        assert logits == pytest.approx(truth(base, adapter, tokens), abs=1e-4)
