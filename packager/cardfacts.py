"""What a card says of one target, collected from the plan, the sources and the proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packager.adapter import AdapterSpec, Feature
from packager.card import (
    AdapterFacts,
    BaseFacts,
    CardFacts,
    CardTarget,
    GgufFacts,
    GgufFileFacts,
    LicenseFacts,
)
from packager.chat import ChatChoice
from packager.dtype import TORCH_NAMES
from packager.errors import InputError
from packager.filekind import PROCESSOR_PATTERNS
from packager.frontmatter import parse_front_matter, text_values
from packager.gather import Gathered
from packager.gguf.value import key_value
from packager.manifest import FileEntry
from packager.obligation import display_text, name_prefix, obligations
from packager.plan import AdapterSource, TargetPlan
from packager.plan.fourbit import merge_parts
from packager.plan.layout import create_name, modelfile_name
from packager.task import class_count, find_task
from packager.untrusted import read_json_object, read_text
from packager.verify.adaptertarget import adapter_digest
from packager.verify.gguftarget import list_variants
from packager.verify.proof import Proof, TargetProof, VariantProof

_TARGETS: dict[str, CardTarget] = {
    "adapter": "adapter", "merged": "merged", "ollama": "ollama", "gguf-adapter": "gguf-adapter",
}  # fmt: skip
PICTURE_NAME = "size-against-kl.svg"
"""The picture beside the card of a GGUF release."""
_WEIGHT_ENDINGS = (".safetensors", ".gguf")


def card_facts(
    folder: Path,
    target: TargetPlan,
    gathered: Gathered,
    entries: list[FileEntry],
    proofs: tuple[TargetProof, Proof],
) -> CardFacts:
    """Collects the facts of one target's card.

    Args:
        folder: Of the target, with everything but the card.
        target: Its plan.
        gathered: The sources.
        entries: Files of the bundle written so far.
        proofs: Of this target, and the whole.
    """
    source = next(item for item in gathered.adapters if item.name == target.name)
    spec, index = source.spec, gathered.base.index
    task = find_task(spec.config.task_type, index.architecture, index.config)
    merged = target.target in ("merged", "ollama")
    weights = _weights_bytes(target, spec)
    loaded = _loaded_bytes(target, spec)
    metadata = _own_card(spec)
    chat = gathered.chats.get(target.name)
    return CardFacts(
        name=target.name,
        target=_TARGETS[target.target],
        base=_base_facts(gathered),
        license=_license_facts(gathered),
        adapter=_adapter_facts(source),
        task_type=spec.config.task_type,
        parameter_count=index.parameter_count + (0 if merged else spec.parameter_count),
        dtype=_dtype(target, spec),
        total_bytes=weights,
        load_bytes=loaded if merged else index.weights_bytes + weights,
        vocabulary_size=index.embedding.shape[0] if index.embedding is not None else 0,
        has_tokenizer=target.gguf is not None or (folder / "tokenizer_config.json").exists(),
        has_chat_template=_has_chat_template(folder) or bool(chat and chat.jinja),
        keeps_dtype=not any(tensor.rule == "cast" for tensor in target.tensors),
        languages=text_values(metadata, "language"),
        datasets=text_values(metadata, "datasets"),
        tags=text_values(metadata, "tags"),
        proof=proofs[0],
        digests={
            entry.path.removeprefix(f"{target.path}/"): entry.sha256
            for entry in entries
            if entry.path.startswith(f"{target.path}/") and entry.path.endswith(_WEIGHT_ENDINGS)
        },
        versions=proofs[1].versions,
        gguf=_gguf_facts(folder, target, chat),
        sees=task.reads_pictures,
        has_processor=any(entry.name in PROCESSOR_PATTERNS for entry in folder.iterdir()),
        architecture=target.task.architecture if target.task is not None else None,
        class_count=class_count(task, spec.saved_shapes),
    )


def _weights_bytes(target: TargetPlan, spec: AdapterSpec) -> int:
    if target.gguf is not None:
        return target.gguf.nbytes
    if target.gguf_lora is not None:
        return target.gguf_lora.size
    return sum(shard.nbytes for shard in target.shards) or spec.weights_bytes


def _loaded_bytes(target: TargetPlan, spec: AdapterSpec) -> int:
    """Of what a user loads: one quantisation, the first."""
    variants = list_variants(target)
    return variants[0].total_bytes if variants else _weights_bytes(target, spec)


def _dtype(target: TargetPlan, spec: AdapterSpec) -> str:
    """The type of most weights in torch's words, or the quantisations."""
    if target.gguf is not None:
        return ", ".join(variant.quant for variant in list_variants(target))
    if target.gguf_lora is not None:
        return target.gguf_lora.type
    merged = merge_parts(target.tensors)
    dtypes = [tensor.dtype for tensor in merged] or list(spec.dtypes)
    if len(merged) < len(target.tensors):
        return f"{TORCH_NAMES[max(sorted(set(dtypes)), key=dtypes.count)]}, then 4 bits (NF4)"
    return TORCH_NAMES[max(sorted(set(dtypes)), key=dtypes.count)]


def _gguf_facts(folder: Path, target: TargetPlan, chat: ChatChoice | None) -> GgufFacts | None:
    if target.gguf_lora is not None:
        lora = target.gguf_lora
        return GgufFacts((GgufFileFacts(lora.type, (lora.path,), lora.size),))
    plan = target.gguf
    if plan is None:
        return None
    context = key_value(plan.keys, f"{plan.architecture}.context_length")
    return GgufFacts(
        files=tuple(_gguf_file(folder, target, variant) for variant in list_variants(target)),
        go_template=bool(chat and chat.go_template),
        stops=chat.stops if chat else (),
        requires=chat.requires if chat else "",
        capabilities=chat.capabilities if chat else (),
        context_length=context if isinstance(context, int) else None,
        picture=PICTURE_NAME if (folder / PICTURE_NAME).exists() else None,
    )


def _gguf_file(folder: Path, target: TargetPlan, variant: VariantProof) -> GgufFileFacts:
    assert target.gguf is not None
    modelfile = modelfile_name(variant.quant)
    return GgufFileFacts(
        quant=variant.quant,
        paths=tuple(file.path for file in target.gguf.files if file.quant == variant.quant),
        total_bytes=variant.total_bytes,
        modelfile=modelfile if (folder / modelfile).exists() else None,
        request=create_name(variant.quant),
    )


def _base_facts(gathered: Gathered) -> BaseFacts:
    ref = gathered.ref
    return BaseFacts(
        repo=ref.repo,
        commit=ref.commit,
        digest=ref.digest,
        evidence=gathered.base.evidence,
        architecture=gathered.base.index.architecture,
        gated=ref.gated,
    )


def _license_facts(gathered: Gathered) -> LicenseFacts:
    chosen, finding = gathered.base.license, gathered.finding
    return LicenseFacts(
        id=chosen,
        name=finding.name,
        link=finding.link,
        documents=finding.documents,
        duties=obligations(chosen),
        name_prefix=name_prefix(chosen),
        display=display_text(chosen),
    )


def _adapter_facts(source: AdapterSource) -> AdapterFacts:
    spec = source.spec
    refusals = [
        feature.support["vllm"].reason
        for feature in spec.features
        if feature.support["vllm"].status not in ("works", "normalised")
    ]
    return AdapterFacts(
        peft_type=spec.config.peft_type,
        ranks=spec.ranks,
        alphas=spec.alphas,
        scales=spec.scales,
        target_modules=spec.targets,
        trained_parameters=spec.parameter_count,
        digest=adapter_digest(source),
        features=tuple(map(_feature_text, spec.features[1:])),
        vllm_refusal=refusals[0] if refusals else None,
    )


def _feature_text(feature: Feature) -> str:
    """What is in use, and of what: `modules_to_save: lm_head`."""
    return feature.name if feature.detail == "true" else f"{feature.name}: {feature.detail}"


def _own_card(spec: AdapterSpec) -> dict[str, Any]:
    """The front matter of the adapter's own card; one that cannot be read counts as silent."""
    path = spec.directory / "README.md"
    if not path.is_file():
        return {}
    try:
        return parse_front_matter(read_text(path), where=str(path))
    except InputError:
        return {}


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(read_json_object(path).get("chat_template"))
