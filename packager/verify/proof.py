"""The proof: what was checked, on what, with which figures. A value; JSON out and in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA_VERSION = 1
Level = Literal["files", "weights", "behaviour"]
Measure = Literal["next token", "class", "label", "span", "embedding"]
"""What is compared: predictions of the next token, of a class of the text, of a label of each
token, of where an answer starts and ends; or the vectors of a model without a head."""
LEVELS: tuple[Level, ...] = ("files", "weights", "behaviour")


@dataclass(frozen=True)
class FilesCheck:
    """Level `files`: every byte of the target against the manifest.

    Attributes:
        count: Files hashed.
        total_bytes: Bytes hashed.
        problems: One line per file that differs, is missing, or is not in the manifest.
    """

    count: int
    total_bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class TensorFigure:
    """Level `weights`, one tensor that a delta was merged into.

    Attributes:
        name: Name in the artefact.
        rule: The rule of the plan that made it, such as `lora`.
        layer: Number of the transformer layer, or None outside of the layers.
        delta_ratio: ‖ΔW‖ / ‖W‖, Frobenius norms, ΔW in float64.
        lost_to_rounding: ‖(W' − W) − ΔW‖ / ‖ΔW‖: what rounding to the output dtype took.
        max_error_ulp: Largest |stored − truth|, in units of the output dtype's last place at the
            larger of base and result.
    """

    name: str
    rule: str
    layer: int | None
    delta_ratio: float
    lost_to_rounding: float
    max_error_ulp: float


@dataclass(frozen=True)
class WeightsCheck:
    """Level `weights`: tensors recomputed from base + adapter.

    Attributes:
        checked: Tensors recomputed or compared byte by byte; in a sample, of large ones that are
            as in the base only blocks of rows.
        total: Tensors in the artefact.
        by_rule: Rule → (checked, total).
        adapter_tensors_used: Adapter tensors that the checked plan uses, each exactly once.
        adapter_tensors_total: Adapter tensors in the file.
        figures: One per checked merged tensor.
        problems: One line per tensor that differs, is missing, or is left over.
        delta_difference: Of an adapter in another form, ‖ΔW' − ΔW‖ / ‖ΔW‖ over all its modules,
            in float64: at most one rounding of B to float32.
    """

    checked: int
    total: int
    by_rule: dict[str, tuple[int, int]]
    adapter_tensors_used: int
    adapter_tensors_total: int
    figures: tuple[TensorFigure, ...]
    problems: tuple[str, ...]
    delta_difference: float | None = None


@dataclass(frozen=True)
class BehaviourCheck:
    """Level `behaviour`: teacher-forced comparison with base + adapter (PEFT, float32).

    Attributes:
        prompt_set: Name and version of the fixed prompt set.
        prompts: Number of prompts.
        tokens: Number of next-token distributions compared.
        kl_mean: Mean over tokens of KL(truth ‖ artefact), in nats.
        kl_max: Largest of them.
        base_kl_mean: Mean KL(truth ‖ base without the adapter), in nats: the adapter's effect.
        top1_agreement: Share of tokens with the same most likely next token, 0 to 1.
        perplexity_ratio: Perplexity of the artefact / of the truth on the same text.
        effect_lost: kl_mean / base_kl_mean; 0 is perfect, 1 is an artefact without the adapter.
            An effect too small for the artefact's format to hold counts as the smallest that it
            holds, and has no bound in `thresholds`.
        kl_per_token: Every KL, in prompt order, in nats (at most 4096 of them).
        base_kl_per_token: The same for the base without the adapter.
        thresholds: Name of a figure → the bound that it has to hold.
        problems: One line per figure out of its bound.
        measure: What a row is: `tokens` counts rows, and the choices of another task than
            writing take the place of the next token.
    """

    prompt_set: str
    prompts: int
    tokens: int
    kl_mean: float
    kl_max: float
    base_kl_mean: float
    top1_agreement: float
    perplexity_ratio: float
    effect_lost: float
    kl_per_token: tuple[float, ...]
    base_kl_per_token: tuple[float, ...]
    thresholds: dict[str, float]
    problems: tuple[str, ...]
    measure: Measure = "next token"


@dataclass(frozen=True)
class EmbeddingCheck:
    """Level `behaviour` of a model without a head: its vectors against those of base + adapter.

    Attributes:
        prompt_set: Name and version of the fixed prompt set.
        prompts: Number of prompts.
        tokens: Number of vectors compared, one for each token.
        cosine_min: Least cosine between a vector and the truth's.
        text_cosine_min: Least cosine between the mean vector of a prompt and the truth's.
        error_mean: Root of the mean squared ‖artefact − truth‖ / ‖truth‖.
        error_max: Largest of them.
        base_error: As `error_mean`, of the base without the adapter: the adapter's effect.
        effect_lost: error_mean / base_error; 0 is perfect, 1 is an artefact without the adapter.
        thresholds: Name of a figure → the bound that it has to hold.
        problems: One line per figure out of its bound.
    """

    prompt_set: str
    prompts: int
    tokens: int
    cosine_min: float
    text_cosine_min: float
    error_mean: float
    error_max: float
    base_error: float
    effect_lost: float
    thresholds: dict[str, float]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class BlocksCheck:
    """Level `weights` of a GGUF file: tensors recomputed from base + adapter, and quantised again.

    Attributes:
        checked: Tensors recomputed.
        total: Tensors in the file.
        by_type: Type of the blocks → (checked, total).
        equal_blocks: Share of the checked blocks that ggml makes just so from base + adapter in
            float64: what is missing to 1 are near-ties, in which the order of additions decides.
            None where the file was made with an importance matrix that is not at hand.
        error: Of the checked quantised tensors, ‖stored − truth‖ / ‖truth‖, truth in float64.
        error_from_16bit: What it were had the truth been rounded to `rounded_to` before, as
            happens on the way over a 16-bit checkpoint.
        rounded_to: F16 or BF16, the type of the base.
        problems: One line per tensor that differs, is missing, or is left over.
    """

    checked: int
    total: int
    by_type: dict[str, tuple[int, int]]
    equal_blocks: float | None
    error: float
    error_from_16bit: float
    rounded_to: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class EndingCheck:
    """Whether generation ends: greedy answers through llama.cpp where the truth's answer ends.

    Attributes:
        answers: Prompts that were answered.
        ended: Answers that came to an end by themselves.
        tokens: Of each answer, its end included.
        most: Tokens after which an answer is cut off.
        problems: One line if none ended, or if the truth's end is none to llama.cpp.
    """

    answers: int
    ended: int
    tokens: tuple[int, ...]
    most: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class ChatCheck:
    """Chat-template parity: the GGUF's template through llama.cpp, by token ids.

    Attributes:
        conversations: Compared with what transformers makes of them.
        equal: Those with the same token ids.
        problems: One line per conversation that differs.
    """

    conversations: int
    equal: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class MergeBaseCheck:
    """Which form of a base that was quantised in training a merge comes closer to training on.

    Both merges are PEFT's, rounded to the type of the base; KL(training ‖ merge) in nats, where
    training is the base as bitsandbytes held it with the adapter on it.

    Attributes:
        loaded_in: How the base was held in training, such as `nf4`.
        evidence: Where this is known from: `lock`, `card` or `option`.
        chosen: What this release merged onto: `16bit` or `dequantized`.
        tokens: Number of rows compared.
        kl_16bit: Mean KL of the merge onto the base as it is stored.
        kl_dequantized: Mean KL of the merge onto the base as training saw it.
        top1_16bit: Share of tokens with the same most likely next token, 0 to 1.
        top1_dequantized: The same of the other merge.
        base_kl: Mean KL(training ‖ training without the adapter): the adapter's effect.
    """

    loaded_in: str
    evidence: str
    chosen: str
    tokens: int
    kl_16bit: float
    kl_dequantized: float
    top1_16bit: float
    top1_dequantized: float
    base_kl: float

    @property
    def closer(self) -> Literal["16bit", "dequantized"]:
        """Which merge is closer to training."""
        return "16bit" if self.kl_16bit < self.kl_dequantized else "dequantized"


@dataclass(frozen=True)
class VariantProof:
    """The proof of one quantisation of a GGUF target; levels that were not run are None.

    Attributes:
        quant: Such as `Q4_K_M`.
        path: Its file, of a split model the first, relative to the target's folder.
        total_bytes: Of all its files.
        weights: Level `weights`.
        behaviour: Level `behaviour`.
        ending: Whether generation ends; None where no answer of the truth ended.
    """

    quant: str
    path: str
    total_bytes: int
    weights: BlocksCheck | None = None
    behaviour: BehaviourCheck | None = None
    ending: EndingCheck | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Every problem, with the quantisation in front."""
        checks = (self.weights, self.behaviour, self.ending)
        found = (line for check in checks if check is not None for line in check.problems)
        return tuple(f"{self.quant}: {line}" for line in found)


@dataclass(frozen=True)
class TargetProof:
    """The proof of one target of one adapter. A level that was not run says why in `skipped`.

    A target in several quantisations has a proof of each in `variants`, where weights and
    behaviour stand, and one of their chat template.
    """

    target: str
    name: str
    files: FilesCheck | None
    weights: WeightsCheck | None
    behaviour: BehaviourCheck | None
    skipped: dict[str, str]
    variants: tuple[VariantProof, ...] = ()
    chat: ChatCheck | None = None
    embedding: EmbeddingCheck | None = None
    merge_base: MergeBaseCheck | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Every problem of every level that was run."""
        single = (self.files, self.weights, self.behaviour, self.embedding)
        checks = (*single, *self.variants, self.chat)
        return tuple(line for check in checks if check is not None for line in check.problems)

    @property
    def passed(self) -> bool:
        """Whether no check that was run found a problem."""
        return not self.problems


@dataclass(frozen=True)
class Proof:
    """The whole proof of a bundle.

    Attributes:
        schema_version: Of this document.
        created: UTC, ISO 8601.
        base: What the base is called in the report, e.g. `org/name@commit`.
        base_digest: `sha256:<hex>`, as in the manifest.
        evidence: As in the manifest.
        adapters: Adapter name → digest.
        versions: Library → version, for those that took part.
        machine: Processor, cores, memory in one line.
        targets: One proof per target and adapter.
    """

    schema_version: int
    created: str
    base: str
    base_digest: str
    evidence: str
    adapters: dict[str, str]
    versions: dict[str, str]
    machine: str
    targets: tuple[TargetProof, ...]

    @property
    def passed(self) -> bool:
        """Whether every target passed."""
        return all(target.passed for target in self.targets)


def proof_document(proof: Proof) -> dict[str, Any]:
    """Returns the proof as a JSON-ready mapping, with `passed` spelled out."""
    document = asdict(proof)
    for raw, target in zip(document["targets"], proof.targets, strict=True):
        raw["passed"] = target.passed
    return {**document, "passed": proof.passed}


def render_proof(proof: Proof) -> str:
    """Returns `VERIFY.json`."""
    return json.dumps(proof_document(proof), ensure_ascii=False, indent=1) + "\n"
