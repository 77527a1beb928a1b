"""Small bundles, written by hand with packager.manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from packager.manifest import (
    MANIFEST_NAME,
    AdapterRecord,
    BaseRecord,
    FileEntry,
    Manifest,
    Target,
    TargetRecord,
    render_manifest,
)

BASE = "org/base"
COMMIT = "c0ffee" + "0" * 34
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def card(target: Target, *, base: str | None = BASE, license_id: str = "apache-2.0") -> str:
    relation = "adapter" if target == "adapter" else "finetune"
    origin = f"base_model: {base}\nbase_model_relation: {relation}\n" if base else ""
    library = "peft" if target == "adapter" else "transformers"
    return (
        f"---\n{origin}license: {license_id}\nlibrary_name: {library}\n"
        "pipeline_tag: text-generation\ntags:\n- lora\n---\n# 模型 🙂\n"
    )


def write_target(folder: Path, target: Target, *, seed: int = 0, base: str | None = BASE) -> None:
    """Writes the files of a target; weights differ by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)

    def weights(name: str, tensor: str) -> None:
        value = generator.standard_normal((128, 300)).astype(np.float32)
        save_file({tensor: value}, folder / name)

    texts = {
        "README.md": card(target, base=base),
        "tokenizer.json": json.dumps({"version": "1.0", "词": "🙂"}, ensure_ascii=False),
        "additional_chat_templates/工具.jinja": "{{ '你好 🙂' }}",
    }
    if target == "adapter":
        weights("adapter_model.safetensors", "lora")
        texts["adapter_config.json"] = json.dumps({"base_model_name_or_path": base, "r": 8})
        texts["base.lock.json"] = "{}"
    else:
        for name in SHARDS:
            weights(name, name[:11])
        index = {"weight_map": {name[:11]: name for name in SHARDS}, "seed": seed}
        texts["model.safetensors.index.json"] = json.dumps(index)
        texts["config.json"] = json.dumps({"model_type": "llama", "seed": seed})
        texts["LICENSE"] = "Apache License 2.0"
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def write_bundle(
    root: Path,
    targets: Sequence[tuple[Target, str]] = (("merged", "pirate"),),
    *,
    seed: int = 0,
    gated: bool = False,
    base: str | None = BASE,
    directory: str = "/nowhere/else/base",
) -> Path:
    """Writes a whole bundle; a second one on the same folder replaces it."""
    for target, name in targets:
        write_target(root / target / name, target, seed=seed, base=base)
    return seal(root, targets, gated=gated, base=base, directory=directory)


def seal(
    root: Path,
    targets: Sequence[tuple[Target, str]],
    *,
    gated: bool = False,
    base: str | None = BASE,
    directory: str = "/nowhere/else/base",
) -> Path:
    """Writes the manifest over whatever lies in the folder."""
    files = tuple(
        FileEntry(path.relative_to(root).as_posix(), len(data), hashlib.sha256(data).hexdigest())
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
        for data in [path.read_bytes()]
    )
    record = BaseRecord(
        repo=base,
        commit=COMMIT if base else None,
        directory=directory,
        digest="sha256:" + "0" * 64,
        evidence="lock",
        license="apache-2.0",
        license_source="README.md",
        gated=gated,
        architecture="LlamaForCausalLM",
        files=(),
    )
    manifest = Manifest(
        schema_version=1,
        tool={"lorapack": "0"},
        created="2026-01-01T00:00:00Z",
        base=record,
        adapters=(AdapterRecord("pirate", "/nowhere/else/adapter", "sha256:" + "0" * 64, ()),),
        targets=tuple(TargetRecord(target, name, f"{target}/{name}") for target, name in targets),
        files=files,
    )
    (root / MANIFEST_NAME).write_text(render_manifest(manifest), encoding="utf-8")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """What a target's repository must hold, `.gitattributes` apart."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
