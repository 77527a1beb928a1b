"""The model card: what it says, what the Hub reads in it, and what strangers cannot make it say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from packager.card import CardFacts, LicenseFacts, card_metadata, render_card
from packager.frontmatter import parse_front_matter, split_front_matter
from packager.verify.proof import TargetProof
from tests.card_facts import (
    ADAPTER,
    ADAPTER_DIGEST,
    BASE_DIGEST,
    CARDS,
    COMMIT,
    LLAMA_LICENSE,
    LOCAL,
    LOCAL_ADAPTER,
    MERGED,
    PROOF,
)

READER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def body(facts: CardFacts) -> str:
    return split_front_matter(render_card(facts))[1]


def section(facts: CardFacts, title: str) -> str:
    _, _, rest = body(facts).partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("name", CARDS)
def test_goldens(name: str, check_golden: Callable[[str, str], None]) -> None:
    check_golden(f"card/{name}.md", render_card(CARDS[name]))


@pytest.mark.parametrize("name", CARDS)
def test_the_hub_client_reads_the_card(name: str) -> None:
    text = render_card(CARDS[name])
    card = ModelCard(text)
    assert isinstance(card.data, ModelCardData)
    assert card.data.to_dict() == card_metadata(CARDS[name])
    assert card.content == text


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_tidy(name: str) -> None:
    text = render_card(CARDS[name])
    outside_code = re.sub(r"```.*?```", "```", text, flags=re.DOTALL)
    assert "\n\n\n" not in outside_code
    assert not re.search(r"[ \t]+$", text, flags=re.MULTILINE)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert not re.search(r"\b(None|True|False|Undefined|LORA)\b|\{\{|\{%", outside_code)


def test_metadata_of_a_merged_model() -> None:
    assert list(card_metadata(MERGED).items()) == [
        ("base_model", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("base_model_relation", "finetune"),
        ("license", "apache-2.0"),
        ("library_name", "transformers"),
        ("pipeline_tag", "text-generation"),
        ("tags", ["lora", "lorapack", "pirate"]),
        ("language", ["en"]),
        ("datasets", ["org/pirate-talk"]),
    ]


def test_metadata_of_an_adapter() -> None:
    metadata = card_metadata(ADAPTER)
    assert metadata["base_model"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert metadata["base_model_relation"] == "adapter"
    assert metadata["library_name"] == "peft"
    assert metadata["license"] == "llama3.2"
    assert not {"language", "datasets", "license_name"} & set(metadata)


def test_a_base_that_is_not_on_the_hub_is_no_base_model() -> None:
    metadata = card_metadata(LOCAL)
    assert not {"base_model", "base_model_relation"} & set(metadata)
    assert metadata["license_name"] == "fernwald-terms"
    assert metadata["license_link"] == "https://example.org/terms"
    assert BASE_DIGEST in section(LOCAL, "Provenance")
    assert "huggingface.co/" not in body(LOCAL)


def test_a_known_licence_needs_no_name() -> None:
    licence = LicenseFacts("mit", name="own", link="https://example.org/terms")
    assert "license_name" not in card_metadata(replace(MERGED, license=licence))


@pytest.mark.parametrize("commit", ["main", "0" * 39, "0" * 41, "A" * 40, "../x", ""])
@pytest.mark.parametrize("facts", [MERGED, ADAPTER])
def test_what_is_no_commit_is_not_pinned(facts: CardFacts, commit: str) -> None:
    text = render_card(replace(facts, base=replace(facts.base, commit=commit)))
    assert "/tree/" not in text
    assert "BASE_COMMIT" not in text
    assert "--revision" not in text


@pytest.mark.parametrize("repo", ["../../etc", "a b/c", "org/name/more", "name", "-a/b", "o/n\n"])
def test_what_is_no_repository_is_not_linked(repo: str) -> None:
    facts = replace(MERGED, base=replace(MERGED.base, repo=repo))
    assert "base_model" not in card_metadata(facts)
    assert "](https://huggingface.co" not in render_card(facts)


def test_a_norwegian_card_is_not_false() -> None:
    text = render_card(LOCAL)
    assert yaml.safe_load(split_front_matter(text)[0])["language"] == ["de", "no"]


def test_what_the_hub_would_refuse_is_left_out_of_the_metadata_only() -> None:
    facts = replace(
        MERGED,
        languages=("en", "English", "zz-ZZ", "multilingual", "en"),
        datasets=("org/data", "./local/train.jsonl", "squad", "a b", "org/data"),
        tags=("base_model:adapter:/home/me/x", "license:mit", "", "x" * 61, "two\nlines", "ok",
              "license-plates", "lora"),
    )  # fmt: skip
    metadata = card_metadata(facts)
    assert metadata["language"] == ["en", "multilingual"]
    assert metadata["datasets"] == ["org/data", "squad"]
    assert metadata["tags"] == ["lora", "lorapack", "ok", "license-plates"]
    assert "`./local/train.jsonl`" in section(facts, "What was trained")


@pytest.mark.parametrize(
    ("task_type", "architecture", "tag", "auto_class"),
    [
        ("CAUSAL_LM", "X", "text-generation", "AutoModelForCausalLM"),
        (None, "Qwen2ForCausalLM", "text-generation", "AutoModelForCausalLM"),
        ("SEQ_CLS", "X", "text-classification", "AutoModelForSequenceClassification"),
        (None, "BertForTokenClassification", "token-classification",
         "AutoModelForTokenClassification"),
        ("SEQ_2_SEQ_LM", "X", None, "AutoModelForSeq2SeqLM"),
        ("FEATURE_EXTRACTION", "X", "feature-extraction", "AutoModel"),
        ("NEW_TASK", "Unknown", None, "AutoModelForCausalLM"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("facts", [MERGED, ADAPTER])
def test_tasks(
    facts: CardFacts, task_type: str | None, architecture: str, tag: str | None, auto_class: str
) -> None:
    base = replace(facts.base, architecture=architecture)
    changed = replace(facts, task_type=task_type, base=base)
    assert card_metadata(changed).get("pipeline_tag") == tag
    assert f"= {auto_class}.from_pretrained(" in body(changed)
    assert ("vllm serve" in body(changed)) == (tag == "text-generation")


def test_the_proof_is_told_figure_by_figure() -> None:
    told = section(MERGED, "How it behaves")
    for expected in (
        "24 prompts (general-1), 1,536 tokens",
        "| Effect of the adapter lost | 0.0161 % |",
        "| Mean KL divergence | 0.000213 nats |",
        "the base without the adapter is off by 1.32.",
        "| Largest KL divergence | 0.0041 nats |",
        "| Same most likely token | 99.74 % |",
        "| Perplexity ratio | 1.00021 |",
        "all 272 tensors were recomputed",
        "All 420 tensors of the adapter were used exactly once.",
        "The largest rounding error is 0.5 units in the last place",
        "rounding took at most 1.23 % of the change",
        "9 files, 271 MB, read back from disk",
        "it does not show how good its answers are",
    ):
        assert expected in told
    assert "Not checked" not in told
    assert "Problem" not in told


def test_size_and_memory_are_different_things() -> None:
    text = body(ADAPTER)
    assert "| Weights in this repository | 9.79 MB, bfloat16 |" in text
    assert "| Memory to load it with the base | about 2.48 GB;" in text


def test_a_sample_is_called_a_sample() -> None:
    assert PROOF.weights is not None
    weights = replace(PROOF.weights, checked=40, adapter_tensors_used=419, figures=())
    told = section(replace(MERGED, proof=replace(PROOF, weights=weights)), "How it behaves")
    assert "a sample of 40 out of 272 tensors" in told
    assert "all 272" not in told
    assert "All 420 tensors of the adapter were expected to be used, 419 were." in told
    assert "rounding" not in told


def test_skipped_levels_are_admitted() -> None:
    told = section(ADAPTER, "How it behaves")
    assert "- **Not checked:** weights (an adapter has no merged weights)." in told
    assert "- **Not checked:** behaviour (needs 12 GB)." in told
    assert "KL" not in told
    assert "The figures above" not in body(ADAPTER)


def test_an_adapter_is_compared_with_itself() -> None:
    assert ADAPTER.proof is not None
    proof = replace(ADAPTER.proof, weights=PROOF.weights)
    told = section(replace(ADAPTER, proof=proof), "How it behaves")
    assert "272 of 272 tensors compared with the adapter as it was trained." in told
    assert "base's bytes" not in told


def test_no_proof_is_admitted() -> None:
    assert "No check was run on this release" in section(LOCAL, "How it behaves")
    assert "The figures above" not in body(LOCAL)


def test_problems_are_not_hidden() -> None:
    assert PROOF.behaviour is not None
    failed = replace(PROOF.behaviour, problems=("effect_lost is 0.7, allowed is 0.05",))
    told = section(replace(MERGED, proof=replace(PROOF, behaviour=failed)), "How it behaves")
    assert "- **Problem:** effect_lost is 0.7, allowed is 0.05" in told


def test_evidence_is_not_overstated() -> None:
    assert "compared by sha256 with the lock" in section(MERGED, "What was trained")
    assert "is not proven" not in section(MERGED, "Limitations")
    assert "not certain that it was trained on these very bytes" in section(
        ADAPTER, "What was trained"
    )
    assert "is not proven" in section(ADAPTER, "Limitations")


def test_provenance_names_exact_versions() -> None:
    told = section(MERGED, "Provenance")
    assert f"/tree/{COMMIT})" in told
    assert f"commit `{COMMIT}`, content `{BASE_DIGEST}`" in told
    assert f"content `{ADAPTER_DIGEST}`" in told
    assert "lorapack 0.1.0, torch 2.13.0, transformers 5.23.0" in told
    assert f"| model.safetensors | `{'d4' * 32}` |" in told


def test_a_converted_release_says_so() -> None:
    assert "the base's, byte for byte" in section(MERGED, "What was trained")
    assert "the base's, converted to float16" in section(LOCAL, "What was trained")
    assert "byte for byte" not in body(LOCAL)


def test_llama_shows_what_its_licence_wants() -> None:
    text = body(ADAPTER)
    assert "\n**Built with Llama**\n" in text
    assert "The base is gated" in text
    assert "`LICENSE.txt`, `USE_POLICY.md`" in text
    assert "The name has to change" not in text
    misnamed = body(replace(ADAPTER, name="pirate"))
    assert "pirate does not begin with “Llama”" in misnamed
    for duty in LLAMA_LICENSE.duties:
        assert f"- {duty}\n" in text


def test_a_link_that_is_no_address_is_text() -> None:
    licence = LicenseFacts("other", name="own", link="LICENSE")
    assert "own, holds for this release: LICENSE." in body(replace(LOCAL, license=licence))
    assert "<https://example.org/terms>" in body(LOCAL)


def test_a_licence_without_a_summary_is_to_be_read() -> None:
    assert "Read it before you use this model or pass it on." in section(LOCAL, "Licence")
    assert "Read it before" not in body(MERGED)


def test_adapters_pin_their_base() -> None:
    text = body(ADAPTER)
    commit = ADAPTER.base.commit
    assert f'BASE_COMMIT = "{commit}"' in text
    assert text.count("revision=BASE_COMMIT") == 3
    assert f"vllm serve meta-llama/Llama-3.2-1B-Instruct --revision {commit}" in text
    assert 'ADAPTER = "pirates/llama-pirate"\n' in text
    assert "revision=BASE_COMMIT" not in body(LOCAL_ADAPTER)


@pytest.mark.parametrize(
    ("ranks", "expected"), [((1,), 1), ((2,), 8), ((8,), 8), ((8, 40), 64), ((512,), 512)]
)
def test_vllm_gets_a_sufficient_rank(ranks: tuple[int, ...], expected: int) -> None:
    facts = replace(ADAPTER, adapter=replace(ADAPTER.adapter, ranks=ranks))
    assert f"--enable-lora --max-lora-rank {expected} \\" in body(facts)


def test_vllm_is_not_promised_what_it_refuses() -> None:
    assert "DoRA is refused at load" in body(LOCAL_ADAPTER)
    assert "vllm serve" not in body(LOCAL_ADAPTER)
    wide = body(replace(ADAPTER, adapter=replace(ADAPTER.adapter, ranks=(8, 513))))
    assert "it takes ranks up to 512" in wide
    assert "vllm serve" not in wide


def test_other_methods_than_lora() -> None:
    loha = replace(MERGED.adapter, peft_type="LOHA", ranks=(), alphas=(), scales=())
    facts = replace(MERGED, adapter=loha)
    assert "- **Method:** LOHA.\n" in body(facts)
    assert card_metadata(facts)["tags"] == ["loha", "lorapack", "pirate"]


def test_long_module_lists_are_cut() -> None:
    modules = tuple(f"layers.{number}.q_proj" for number in range(100))
    told = body(replace(MERGED, adapter=replace(MERGED.adapter, target_modules=modules)))
    assert "`layers.39.q_proj` and 60 more." in told


# -- hostile values ---------------------------------------------------------------------------

HOSTILE = [
    "</code><script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](https://evil.example) ![i](https://evil.example/p.png) <https://evil.example>",
    "x\n---\nlicense: mit\n---\n# Owned\n```\nrm -rf /\n```",
    '```\n\'; rm -rf / #"""',
    "{{ 7 * 7 }}{% include 'card_merged.md.j2' %}{{ self.__init__.__globals__ }}",
    "| a | b |\n| - | - |",
    "$$\\href{javascript:alert(1)}{x}$$ \\\\(y\\\\)",
    "`$(touch /tmp/owned)` && touch /tmp/owned; $(id)",
    "!!python/object/apply:os.system ['id'] &a *a : - ? | >",
    "\u202egnp.exe\u2066 \x00\x1b[31m",
]
TEXT = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.sampled_from("`*_[]()<>&|\\#~${}%-+=.:'\" \n1a猫"), min_size=1, max_size=20),
)
FILLED = TEXT.filter(lambda text: re.search(r"[^\s\x00-\x1f\u202a-\u202e\u2066-\u2069]", text))


def poison(facts: CardFacts, text: str) -> CardFacts:
    """Puts `text` wherever an adapter's or a base's author can write."""
    assert isinstance(facts.proof, TargetProof)
    return replace(
        facts,
        name=text,
        tags=(text,),
        datasets=(text,),
        languages=(text,),
        base=replace(facts.base, architecture=text),
        adapter=replace(facts.adapter, target_modules=(text,), features=(text,)),
        license=replace(facts.license, documents=(text,), name_prefix=None),
        proof=replace(facts.proof, skipped={"weights": text, "behaviour": text}),
        limitations=(text,),
        digests={text: "c3" * 32},
        versions={"lorapack": text},
        example_prompt=text,
    )


def skeleton(tokens: list[Token]) -> list[Any]:
    """The structure of a document without its words."""
    shape: list[Any] = []
    for token in tokens:
        children = [child.type for child in token.children or [] if child.type != "text"]
        shape.append((token.type, token.tag, token.level, token.attrGet("href"), children))
    return shape


def links(tokens: list[Token]) -> list[object]:
    return [
        child.attrGet("href") or child.attrGet("src")
        for token in tokens
        for child in token.children or []
        if child.type in ("link_open", "image")
    ]


@pytest.mark.parametrize("facts", [MERGED, ADAPTER])
@settings(max_examples=40, deadline=None)
@given(text=FILLED)
@example(text=HOSTILE[0])
@example(text=HOSTILE[2])
@example(text=HOSTILE[3])
@example(text=HOSTILE[4])
def test_strangers_words_change_no_structure(facts: CardFacts, text: str) -> None:
    harmless, hostile = (render_card(poison(facts, word)) for word in ("word", text))
    plain, poisoned = (READER.parse(split_front_matter(card)[1]) for card in (harmless, hostile))
    assert skeleton(poisoned) == skeleton(plain)
    assert links(poisoned) == links(plain)
    metadata = parse_front_matter(hostile, where="card")
    assert metadata == card_metadata(poison(facts, text))
    assert metadata["license"] == facts.license.id
    assert set(metadata) - {"language", "datasets"} <= set(card_metadata(facts))
    assert yaml.safe_load(split_front_matter(hostile)[0]) == metadata


@pytest.mark.parametrize("text", HOSTILE)
def test_what_hides_on_a_screen_is_gone(text: str) -> None:
    card = render_card(poison(ADAPTER, text))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", card)


def test_the_room_is_pure() -> None:
    script = (
        "import sys, packager.card, packager.license, packager.obligation;"
        "print({'torch', 'huggingface_hub', 'click', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
