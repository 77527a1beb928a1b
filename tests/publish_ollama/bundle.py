"""Small bundles with an ollama target, around GGUFs that the gguf package wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from packager.manifest import (
    MANIFEST_NAME,
    AdapterRecord,
    BaseRecord,
    FileEntry,
    Manifest,
    TargetRecord,
    render_manifest,
)
from packager.modelfile import Message, Modelfile, Parameter, render_create, render_modelfile

NAME = "pirate"
JINJA = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
FULL = Modelfile(
    from_="./to-be-named.gguf",
    parameters=(
        Parameter("temperature", 0.7),
        Parameter("num_ctx", 4096),
        Parameter("top_p", 1e-7),
        Parameter("seed", 2**60),
        Parameter("use_mmap", True),
        Parameter("stop", "<|im_end|>"),
        Parameter("stop", "a & b\u2028\u7f8e"),
    ),
    template="{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}",
    system='You are a pirate. <Aye> & "aye" 🏴\u200d☠️\x7f\t',
    messages=(Message("user", "Ahoy & <hello>"), Message("assistant", "Arr \u2029 \x01\b\f \\")),
    licenses=("Apache License 2.0\n", "Notice\n"),
    requires="0.30.0",
)
PLAIN = Modelfile(from_="./to-be-named.gguf", requires="0.30.0")


def write_gguf(
    path: Path,
    *,
    file_type: int | None = 15,
    seed: int = 0,
    architecture: str = "llama",
    kind: str = "model",
    splits: int = 1,
) -> Path:
    """Writes a GGUF of 6,400 parameters that no program would want to run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    if file_type is not None:
        writer.add_file_type(file_type)
    if splits > 1:
        writer.add_uint16("split.count", splits)
    writer.add_chat_template(JINJA)
    writer.add_token_list(["<|im_start|>", "<|im_end|>", "词"])
    writer.add_array("test.floats", [0.5, 1.5])
    writer.add_float64("test.double", 2.5)
    generator = np.random.default_rng(seed)
    for name, shape in {"token_embd.weight": (48, 128), "output_norm.weight": (256,)}.items():
        writer.add_tensor(name, generator.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_target(
    root: Path,
    *,
    name: str = NAME,
    quants: Sequence[str] = ("Q4_K_M", "Q8_0"),
    modelfile: Modelfile = FULL,
    seed: int = 0,
) -> None:
    """Writes `ollama/<name>/` as a release does; the first quant is the default."""
    folder = root / "ollama" / name
    for number, quant in enumerate(quants):
        kinds = {"Q4_K_M": 15, "Q8_0": 7, "Q4_1": 3, "F16": 1, "F32": 0}
        path = folder / f"{name}-{quant}.gguf"
        if not path.exists():
            write_gguf(path, file_type=kinds[quant], seed=seed + number)
        digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        value = replace(modelfile, from_=f"./{path.name}")
        text = render_create(value, {path.name: digest})
        for prefix in ("", f"{quant}.") if number == 0 else (f"{quant}.",):
            (folder / f"create.{prefix}json").write_text(text, encoding="utf-8")
    (folder / "Modelfile").write_text(
        render_modelfile(replace(PLAIN, from_=f"./{name}-{quants[0]}.gguf")), encoding="utf-8"
    )
    (folder / "README.md").write_text("# A pirate\n", encoding="utf-8")


def write_bundle(root: Path, names: Sequence[str] = (NAME,), **target: object) -> Path:
    """Writes a whole bundle with one ollama target for each name."""
    for number, name in enumerate(names):
        write_target(root, name=name, seed=10 * number, **target)  # type: ignore[arg-type]
    return seal(root, names)


def seal(root: Path, names: Sequence[str] = (NAME,)) -> Path:
    """Writes the manifest over whatever lies in the folder."""
    files = tuple(
        FileEntry(path.relative_to(root).as_posix(), len(data), hashlib.sha256(data).hexdigest())
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
        for data in [path.read_bytes()]
    )
    zeros = "sha256:" + "0" * 64
    manifest = Manifest(
        schema_version=1,
        tool={"lorapack": "0"},
        created="2026-01-01T00:00:00Z",
        base=BaseRecord(
            repo="org/base",
            commit="c0ffee" + "0" * 34,
            directory="/nowhere/else/base",
            digest=zeros,
            evidence="lock",
            license="apache-2.0",
            license_source="README.md",
            gated=False,
            architecture="LlamaForCausalLM",
            files=(),
        ),
        adapters=tuple(AdapterRecord(name, "/nowhere/else/adapter", zeros, ()) for name in names),
        targets=tuple(TargetRecord("ollama", name, f"ollama/{name}") for name in names),
        files=files,
    )
    (root / MANIFEST_NAME).write_text(render_manifest(manifest), encoding="utf-8")
    return root


def gguf_of(bundle: Path, quant: str = "Q4_K_M", name: str = NAME) -> Path:
    return bundle / "ollama" / name / f"{name}-{quant}.gguf"
