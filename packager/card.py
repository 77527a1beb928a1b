"""The model card of a release: values in, Markdown out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from packager.frontmatter import render_front_matter
from packager.manifest import Evidence
from packager.markup import Markdown, card_environment, escape_markdown, is_plain_word
from packager.serving.engine import find_lora_rank
from packager.task import Task, find_task
from packager.verify.proof import LEVELS, BehaviourCheck, Measure, TargetProof

CardTarget = Literal["adapter", "merged", "ollama", "gguf-adapter"]

# Source: huggingface/hub-docs at 242f4a1e (2026-08-22), docs/hub/model-cards.md: "adapter",
# "merge", "quantized" and "finetune", where a merge has two or more base models. An adapter merged
# into the one base that it was trained on is a fine-tune of it.
_RELATIONS: dict[CardTarget, str] = {
    "adapter": "adapter", "merged": "finetune", "ollama": "finetune", "gguf-adapter": "adapter",
}  # fmt: skip
_LIBRARIES: dict[CardTarget, str] = {
    "adapter": "peft", "merged": "transformers", "ollama": "gguf", "gguf-adapter": "gguf",
}  # fmt: skip
_TEMPLATES: dict[CardTarget, str] = {
    "adapter": "card_adapter", "merged": "card_merged", "ollama": "card_ollama",
    "gguf-adapter": "card_gguf_adapter",
}  # fmt: skip

# Source: huggingface_hub 2.4, utils/_validators.py, REPO_ID_REGEX, with an owner.
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DATASET_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# Source: huggingface_hub 2.4, repocard_data.py, ModelCardData: ISO 639 codes or two words.
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
# The Hub makes these itself, from other keys or from the files.
_HUB_TAG = re.compile(r"(?:base_model|license|region|arxiv|dataset|doi):.*|endpoints_compatible")
_LINK = re.compile(r"https?://[\w.~/%?#=&+:,@-]+", re.ASCII)
_MAX_TAG_CHARS = 60
_MAX_LISTED = 40

_COUNTED: dict[Measure, tuple[str, str]] = {
    "next token": ("tokens", "next-token"),
    "class": ("texts", "class"),
    "label": ("tokens", "label"),
    "span": ("starts and ends of answers", "position"),
    "embedding": ("vectors", "vector"),
}


@dataclass(frozen=True)
class BaseFacts:
    """The base, as in the manifest.

    Attributes:
        repo: `org/name` on the Hub, or None.
        commit: 40 hexadecimal digits, or None.
        digest: `sha256:<hex>` of its content.
        evidence: How it is known that the adapter was trained on it.
        architecture: As in `config.json`.
        gated: Whether the Hub asks for an agreement before download.
    """

    repo: str | None
    commit: str | None
    digest: str
    evidence: Evidence
    architecture: str
    gated: bool = False


@dataclass(frozen=True)
class LicenseFacts:
    """The licence of the release.

    Attributes:
        id: Hub id.
        name: For `other`.
        link: For `other`: a web address, or one of `documents`.
        documents: Licence files in the release's folder.
        duties: What the licence asks for, one sentence each.
        name_prefix: What the name of the release has to start with, or None.
        display: What the licence wants to be shown prominently, or None.
    """

    id: str
    name: str | None = None
    link: str | None = None
    documents: tuple[str, ...] = ()
    duties: tuple[str, ...] = ()
    name_prefix: str | None = None
    display: str | None = None


@dataclass(frozen=True)
class AdapterFacts:
    """The adapter that was trained.

    Attributes:
        peft_type: Such as `LORA`.
        ranks: Every rank in use, ascending.
        alphas: Every alpha in use, ascending.
        scales: Every factor of B·A in use, ascending.
        target_modules: As in its configuration.
        trained_parameters: Their number.
        digest: `sha256:<hex>` of its content.
        features: Those beyond the tuner itself, by name, with what they are of.
        vllm_refusal: Why vLLM does not serve it beside its base; None where it does.
    """

    peft_type: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    scales: tuple[float, ...]
    target_modules: tuple[str, ...]
    trained_parameters: int
    digest: str
    features: tuple[str, ...] = ()
    vllm_refusal: str | None = None


@dataclass(frozen=True)
class GgufFileFacts:
    """One quantisation of a GGUF release.

    Attributes:
        quant: Such as `Q4_K_M`.
        paths: Its files, the one to load first.
        total_bytes: Of all of them.
        modelfile: Its Modelfile, or None where a Modelfile cannot carry what it has to.
        request: What creates the model over Ollama's HTTP interface.
    """

    quant: str
    paths: tuple[str, ...]
    total_bytes: int
    modelfile: str | None = None
    request: str = ""


@dataclass(frozen=True)
class GgufFacts:
    """What a GGUF release is and how it talks.

    Attributes:
        files: By quantisation, the default first; of a LoRA a single one.
        go_template: Whether the Modelfile brings a template of its own.
        stops: Texts that end an answer.
        requires: The least version of Ollama, or empty.
        capabilities: Beside plain chat, such as `tools`.
        context_length: In tokens, or None.
        picture: File of the picture of size against KL, or None.
    """

    files: tuple[GgufFileFacts, ...]
    go_template: bool = False
    stops: tuple[str, ...] = ()
    requires: str = ""
    capabilities: tuple[str, ...] = ()
    context_length: int | None = None
    picture: str | None = None


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says.

    Attributes:
        name: Of the release.
        target: What is in the folder.
        base: The base.
        license: The licence of the release.
        adapter: The adapter.
        task_type: PEFT's, or None.
        parameter_count: Of the model in use: base and adapter together.
        dtype: Of the weights in the folder, in torch's words.
        total_bytes: Of the weights in the folder.
        load_bytes: Estimate of the memory that the weights take when loaded.
        vocabulary_size: Rows of the input embedding.
        has_tokenizer: Whether tokenizer files lie in the folder.
        has_chat_template: Whether that tokenizer, or else the base's, has a chat template.
        keeps_dtype: Whether the weights have the base's dtype.
        languages: From the adapter's own card.
        datasets: From the adapter's own card.
        tags: From the adapter's own card.
        proof: The proof of this target, or None where none was made.
        digests: File of the folder → sha256.
        versions: Tool → version.
        example_prompt: For the code.
        limitations: Beyond those that hold for every release, one sentence each.
        repo: Where the release is published, if that is known.
        gguf: Of a release in GGUF.
        sees: Whether the model reads pictures besides text.
        has_processor: Whether processor files lie in the folder.
        architecture: Class of the model in use, where it is not the base's.
        class_count: Classes of a head that the adapter brings, or None.
    """

    name: str
    target: CardTarget
    base: BaseFacts
    license: LicenseFacts
    adapter: AdapterFacts
    task_type: str | None
    parameter_count: int
    dtype: str
    total_bytes: int
    load_bytes: int
    vocabulary_size: int
    has_tokenizer: bool
    has_chat_template: bool
    keeps_dtype: bool = True
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    proof: TargetProof | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    example_prompt: str = "What is the capital of France?"
    limitations: tuple[str, ...] = ()
    repo: str | None = None
    gguf: GgufFacts | None = None
    sees: bool = False
    has_processor: bool = False
    architecture: str | None = None
    class_count: int | None = None


def render_card(facts: CardFacts) -> str:
    """Returns the model card: YAML front matter and a body in Markdown.

    Whatever the adapter's author wrote into names, tags, modules or datasets shows as text.
    """
    template = card_environment().get_template(f"{_TEMPLATES[facts.target]}.md.j2")
    body = template.render(_context(facts))
    return f"{render_front_matter(card_metadata(facts))}\n{body}"


def card_metadata(facts: CardFacts) -> dict[str, str | list[str]]:
    """Returns the front matter; what the Hub would not take is left out."""
    base, licence = facts.base, facts.license
    metadata: dict[str, str | list[str]] = {}
    if base.repo is not None and _REPO_ID.fullmatch(base.repo):
        metadata["base_model"] = base.repo
        metadata["base_model_relation"] = _RELATIONS[facts.target]
    metadata["license"] = licence.id
    if licence.id == "other" and licence.name and licence.link:
        metadata["license_name"] = licence.name
        metadata["license_link"] = licence.link
    metadata["library_name"] = _LIBRARIES[facts.target]
    pipeline_tag = _task(facts).pipeline_tag
    if pipeline_tag is not None:
        metadata["pipeline_tag"] = pipeline_tag
    metadata["tags"] = _tags(facts)
    optional = {
        "language": [item for item in facts.languages if _LANGUAGE.fullmatch(item)],
        "datasets": [item for item in facts.datasets if _DATASET_ID.fullmatch(item)],
    }
    metadata.update({key: list(dict.fromkeys(items)) for key, items in optional.items() if items})
    return metadata


def _tags(facts: CardFacts) -> list[str]:
    own = [facts.adapter.peft_type.lower(), "lorapack"]
    given = [
        tag
        for tag in facts.tags
        if 0 < len(tag) <= _MAX_TAG_CHARS and tag.isprintable() and not _HUB_TAG.fullmatch(tag)
    ]
    return list(dict.fromkeys([*own, *given]))[:_MAX_LISTED]


def _task(facts: CardFacts) -> Task:
    config: dict[str, Any] | None = {"vision_config": {}} if facts.sees else None
    return find_task(facts.task_type, facts.base.architecture, config)


def _context(facts: CardFacts) -> dict[str, object]:
    base, adapter = facts.base, facts.adapter
    on_hub = base.repo is not None and _REPO_ID.fullmatch(base.repo) is not None
    prefix = facts.license.name_prefix
    task = _task(facts)
    return {
        "card": facts,
        "base": base,
        "adapter": adapter,
        "license": facts.license,
        "license_link": _license_link(facts.license),
        "task": task,
        "reader": "processor" if task.reads_pictures and facts.has_processor else "tokenizer",
        "encodes_twice": base.architecture.endswith("ForConditionalGeneration"),
        "base_link": _base_link(base) if on_hub else None,
        "base_source": base.repo if on_hub else "path/to/base",
        "revision": _commit(base) if on_hub else None,
        "here": facts.repo or "USER/NAME",
        "method": {"LORA": Markdown("LoRA")}.get(adapter.peft_type, adapter.peft_type),
        "modules": adapter.target_modules[:_MAX_LISTED],
        "modules_left_out": max(0, len(adapter.target_modules) - _MAX_LISTED),
        "datasets": facts.datasets[:_MAX_LISTED],
        "levels": LEVELS,
        "max_lora_rank": find_lora_rank(max(adapter.ranks)) if adapter.ranks else None,
        "lora_module": _lora_module(facts),
        "request": _request(facts),
        "gguf": facts.gguf,
        "counted": _counted(facts)[0],
        "chosen": _counted(facts)[1],
        "measured": _measured(facts),
        "ollama_name": _ollama_name(facts),
        "misnamed": prefix is not None and not facts.name.startswith(prefix),
    }


def _base_link(base: BaseFacts) -> Markdown:
    """A link to the exact version; `repo` has been checked to hold nothing but a repository id."""
    commit = _commit(base)
    tree = f"/tree/{commit}" if commit else ""
    return Markdown(f"[{escape_markdown(base.repo)}](https://huggingface.co/{base.repo}{tree})")


def _commit(base: BaseFacts) -> str | None:
    return base.commit if base.commit and _COMMIT.fullmatch(base.commit) else None


def _license_link(licence: LicenseFacts) -> Markdown | None:
    if licence.link is None:
        return None
    if _LINK.fullmatch(licence.link):
        return Markdown(f"<{licence.link}>")
    return escape_markdown(licence.link)


def _lora_module(facts: CardFacts) -> str | dict[str, str]:
    """What `--lora-modules` takes: `name=path`, or JSON for a name that this would break."""
    path = facts.repo or "USER/NAME"
    if is_plain_word(facts.name):
        return f"{facts.name}={path}"
    return {"name": facts.name, "path": path}


def _counted(facts: CardFacts) -> tuple[str, str]:
    """What the comparison counts, and what is chosen at each of them."""
    behaviour = facts.proof.behaviour if facts.proof is not None else None
    return _COUNTED[behaviour.measure if behaviour is not None else "next token"]


def _measured(facts: CardFacts) -> dict[str, BehaviourCheck]:
    """Quantisation → its comparison, of those that were compared."""
    variants = facts.proof.variants if facts.proof is not None else ()
    return {item.quant: item.behaviour for item in variants if item.behaviour is not None}


def _ollama_name(facts: CardFacts) -> str:
    """A name for `ollama create`, which takes letters, digits, dots, dashes and underscores.

    Source: ollama v0.33.0, types/model/name.go, isValidPart.
    """
    return facts.name.lower() if is_plain_word(facts.name) else "my-model"


def _request(facts: CardFacts) -> dict[str, object]:
    """The body of a request to a server that speaks OpenAI's protocol."""
    model = facts.name if facts.target == "adapter" else facts.repo or "USER/NAME"
    if facts.has_chat_template:
        message = {"role": "user", "content": facts.example_prompt}
        return {"model": model, "messages": [message]}
    return {"model": model, "prompt": facts.example_prompt, "max_tokens": 128}
