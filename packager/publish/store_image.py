"""A model as Ollama's store holds it: layers, configuration and manifest, byte for byte. Pure.

Source: ollama v0.33.0-rc2, server/create.go (createModel, set…), manifest/manifest.go
(WriteManifest), types/model/config.go (ConfigV2), format/format.go (HumanNumber). Newer versions
leave `architecture` and `os` out of the configuration, and read it with and without them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packager.errors import OllamaError
from packager.publish.ollama_bundle import BundledModel
from packager.publish.ollama_gguf import GgufHeader
from packager.publish.ollama_json import Json, encode_go

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.ollama.image."

# Ollama renders the conversations of these by code of its own, chosen when a model is made.
_RENDERED = ("gemma4", "laguna", "nemotron_h", "nemotron_h_moe", "nemotron_h_omni")
_UNITS = ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0))


@dataclass(frozen=True)
class Blob:
    """One blob of a store.

    Attributes:
        media_type: What it is for.
        sha256: 64 hexadecimal digits.
        size: In bytes.
        data: Its content, or None where `source` holds it.
        source: The file that holds it.
    """

    media_type: str
    sha256: str
    size: int
    data: bytes | None = None
    source: Path | None = None

    @property
    def digest(self) -> str:
        """As manifests name it."""
        return f"sha256:{self.sha256}"

    def to_json(self) -> dict[str, Json]:
        """Returns what a manifest says of it, in the order of Ollama's fields."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Image:
    """One model: a configuration and layers, in the order in which Ollama makes them."""

    config: Blob
    layers: tuple[Blob, ...]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Everything that must be in the store before the manifest."""
        return (*self.layers, self.config)

    @property
    def manifest(self) -> bytes:
        """The manifest's bytes."""
        return encode_go(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": self.config.to_json(),
                "layers": [layer.to_json() for layer in self.layers],
            }
        )


def make_image(model: BundledModel) -> Image:
    """Returns what Ollama's own create would make of a model, without its looking for a template.

    Raises:
        OllamaError: Only a running Ollama can make this model.
    """
    _check_whole(model)
    (entry,) = model.files
    source = model.folder / entry.path
    weights = Blob(LAYER_TYPE + "model", entry.sha256, entry.size, source=source)
    layers = (weights, *_text_layers(model))
    return Image(_blob(CONFIG_TYPE, encode_go(render_config(model))), layers)


def render_config(model: BundledModel) -> dict[str, Json]:
    """Returns the configuration of a model, its fields in the order of Ollama's structure."""
    header, requires = model.header, model.modelfile.requires
    return {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": human_number(header.parameters),
        "file_type": file_type_name(header),
        **({"requires": requires} if requires else {}),
        "architecture": "amd64",
        "os": "linux",
    }


def human_number(count: int) -> str:
    """Returns a number of parameters as Ollama shows it, such as `134.52M`."""
    for unit, letter, digits in _UNITS:
        if count >= unit:
            number = count / unit
            whole = number == math.floor(number)
            return f"{number:.{0 if whole else digits}f}{letter}"
    return str(count)


def file_type_name(header: GgufHeader) -> str:
    """Returns what Ollama calls a mixture of tensor types; all float32 has no name there.

    Source: ollama v0.33.0-rc2, fs/ggml/type.go and ggml.go (KV.FileType): llama.cpp's names.
    """
    from gguf import LlamaFileType

    names = {int(kind): str(kind.name) for kind in LlamaFileType}
    name = names.get(header.file_type, "")
    return name.removeprefix("MOSTLY_") if name.startswith("MOSTLY_") else "unknown"


def _text_layers(model: BundledModel) -> Iterator[Blob]:
    """Yields the layers of what the Modelfile says; nothing said is no layer."""
    said = model.request("")
    for name in ("template", "system"):
        if name in said:
            yield _blob(LAYER_TYPE + name, said[name].encode())
    for text in said.get("license", ()):
        yield _blob(LAYER_TYPE + "license", text.encode())
    if "parameters" in said:
        yield _blob(LAYER_TYPE + "params", encode_go(dict(sorted(said["parameters"].items()))))
    if "messages" in said:
        yield _blob(LAYER_TYPE + "messages", encode_go(said["messages"]))


def _blob(media_type: str, data: bytes) -> Blob:
    return Blob(media_type, hashlib.sha256(data).hexdigest(), len(data), data=data)


def _check_whole(model: BundledModel) -> None:
    header = model.header
    place = str(model.folder / model.files[0].path)
    if len(model.files) > 1 or header.splits > 1:
        raise OllamaError(
            "a model in several files cannot be put into a store",
            where=place,
            found=f"{max(len(model.files), header.splits)} files",
            hint="release again with a larger --max-gguf-size, or give it to a running Ollama: "
            "--ollama NAME",
        )
    if header.kind not in ("", "model"):
        raise OllamaError(
            "this GGUF is no model",
            where=place,
            expected="general.type model",
            found=header.kind[:80],
            hint="release again with --target ollama",
        )
    if not header.architecture or header.architecture in _RENDERED:
        raise OllamaError(
            "only a running Ollama can make a model of this architecture",
            where=place,
            found=header.architecture or "no general.architecture",
            hint="give it to one: --ollama NAME",
        )
