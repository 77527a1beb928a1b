"""Tokenizers whose files are unusual, each beside a configuration without weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests import models
from tests.gguf.cases import count_pieces

VARIANTS = {
    "smollm2": "tokenizer.ggml.merges",
    "llama-hf": "tokenizer.ggml.scores",
    "code-llama": "tokenizer.ggml.eot_token_id",
    "phi3-overlaid": "tokenizer.ggml.scores",
    "phi4": "tokenizer.ggml.merges",
    "template-end": "tokenizer.ggml.eot_token_id",
    "template-pair": "tokenizer.ggml.add_sep_token",
    "roberta": "tokenizer.ggml.add_sep_token",
    "stated-ends": "tokenizer.ggml.add_eos_token",
    "added": "tokenizer.ggml.merges",
    "old-merges": "tokenizer.ggml.merges",
    "normalized": "tokenizer.ggml.normalizer.lowercase",
    "named-templates": "tokenizer.chat_template.tool_use",
    "template-files": "tokenizer.chat_template.rag",
    "template-json": "tokenizer.chat_template",
    "template-twice": "tokenizer.chat_template",
    "no-tokenizer-config": "tokenizer.ggml.bos_token_id",
}
"""Each variant, with a key that it is about."""


def write_variant(name: str, out: Path, pieces: Path) -> Path:
    """Writes a variant into a new folder and returns it."""
    if name == "smollm2":
        return shutil.copytree(
            models.keep_smollm2(), out, ignore=shutil.ignore_patterns("*.safetensors", "README.md")
        )
    if name in ("llama-hf", "code-llama", "phi3-overlaid"):
        return _write_pieces(name, out, pieces)
    count = models.write_tokenizer(out)
    _CHANGES[name](out)
    _write_config(out, "Phi3" if name == "phi4" else "Llama", count + 8)
    return out


def _write_pieces(name: str, out: Path, pieces: Path) -> Path:
    shutil.copytree(pieces, out)
    rows = count_pieces(out) + 2
    if name == "code-llama":
        rows = 32016
    else:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(pieces).save_pretrained(out)
    if name == "llama-hf":
        (out / "tokenizer.model").unlink()
        rows = len(read(out / "tokenizer.json")["model"]["vocab"]) + 2
    if name == "phi3-overlaid":
        write(out / "added_tokens.json", {"<|tool|>": rows, "<|beyond|>": rows + 99})
        change(
            out,
            "tokenizer.json",
            lambda file: file["added_tokens"].append(
                {
                    "id": rows + 1,
                    "content": "<|overlaid|>",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": False,
                }
            ),
        )
        rows += 4
    _write_config(out, "Phi3" if name == "phi3-overlaid" else "Llama", rows)
    return out


def _write_config(out: Path, kind: str, rows: int) -> None:
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4}  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=rows, bos_token_id=1, eos_token_id=[2, 0], pad_token_id=0, **sizes
    )
    config.architectures = [f"{kind}ForCausalLM"]
    config.save_pretrained(out)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def change(folder: Path, name: str, edit: Any) -> None:
    """Edits a JSON file in place."""
    document = read(folder / name)
    edit(document)
    write(folder / name, document)


def _special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def _text(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _set_template(folder: Path, single: list[Any], pair: list[Any]) -> None:
    used = {each["SpecialToken"]["id"] for each in single + pair if "SpecialToken" in each}
    ids = {
        token["content"]: token["id"] for token in read(folder / "tokenizer.json")["added_tokens"]
    }
    processor = {
        "type": "TemplateProcessing", "single": single, "pair": pair,
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in used
        },
    }  # fmt: skip
    change(folder, "tokenizer.json", lambda file: file.update(post_processor=processor))


def _template_end(folder: Path) -> None:
    first, last = _special("<|im_start|>"), _special("<|endoftext|>")
    single = [first, _text("A"), last]
    _set_template(folder, single, [*single, first, _text("B"), last])


def _template_pair(folder: Path) -> None:
    between = _special("<|im_end|>")
    _set_template(folder, [_text("A")], [_text("A"), between, between, _text("B")])
    change(folder, "tokenizer_config.json", lambda file: file.update(cls_token="<|im_start|>"))
    change(folder, "tokenizer_config.json", lambda file: file.pop("bos_token"))


def _roberta(folder: Path) -> None:
    processor = {
        "type": "RobertaProcessing", "sep": ["<|im_end|>", 2], "cls": ["<|im_start|>", 1],
        "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    change(folder, "tokenizer.json", lambda file: file.update(post_processor=processor))


def _stated_ends(folder: Path) -> None:
    stated = {
        "add_bos_token": True, "add_eos_token": True, "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "special": True},
        "mask_token": "<|endoftext|>", "sep_token": "<|im_end|>", "add_sep_token": False,
    }  # fmt: skip
    change(folder, "tokenizer_config.json", lambda file: file.update(stated))


def _added(folder: Path) -> None:
    count = max(read(folder / "tokenizer.json")["model"]["vocab"].values()) + 1
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": False}  # fmt: skip
    in_file = [
        {**plain, "id": count, "content": "<|looks_special|>"},
        {**plain, "id": count + 1, "content": "▁two▁words"},
        {**plain, "id": count + 2, "content": "Ġé<odd>", "normalized": True},
        {**plain, "id": count + 3, "content": "<unused7>"},
    ]
    change(folder, "tokenizer.json", lambda file: file["added_tokens"].extend(in_file))
    stated = {str(token["id"]): token for token in read(folder / "tokenizer.json")["added_tokens"]}
    stated = {key: {k: v for k, v in token.items() if k != "id"} for key, token in stated.items()}
    stated[str(count + 4)] = {**plain, "content": "<only in the configuration>", "special": True}
    change(
        folder,
        "tokenizer_config.json",
        lambda file: file.update(added_tokens_decoder=stated, extra_special_tokens=["<extra>"]),
    )


def _old_merges(folder: Path) -> None:
    def edit(file: dict[str, Any]) -> None:
        file["model"]["merges"] = [" ".join(merge) for merge in file["model"]["merges"]]

    change(folder, "tokenizer.json", edit)


def _normalized(folder: Path) -> None:
    steps = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"},
                                                 {"type": "StripAccents"}]}  # fmt: skip
    change(folder, "tokenizer.json", lambda file: file.update(normalizer=steps))


def _named_templates(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
        {"name": "über-all", "template": "{{ documents }}"},
    ]
    change(folder, "tokenizer_config.json", lambda file: file.update(chat_template=named))


def _template_files(folder: Path) -> None:
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("{{ documents }}\n", encoding="utf-8")
    (more / "tool.jinja").write_text("{{ tools }}", encoding="utf-8")


def _template_json(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    write(folder / "chat_template.json", {"chat_template": "{{ messages[0] }} 🙂"})


def _template_twice(folder: Path) -> None:
    change(folder, "tokenizer_config.json", lambda file: file.update(chat_template="{{ mine }}"))


def _no_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    _template_end(folder)


_CHANGES = {
    "phi4": lambda folder: change(
        folder, "tokenizer_config.json", lambda file: file.update(tokenizer_class="GPT2Tokenizer")
    ),
    "template-end": _template_end,
    "template-pair": _template_pair,
    "roberta": _roberta,
    "stated-ends": _stated_ends,
    "added": _added,
    "old-merges": _old_merges,
    "normalized": _normalized,
    "named-templates": _named_templates,
    "template-files": _template_files,
    "template-json": _template_json,
    "template-twice": _template_twice,
    "no-tokenizer-config": _no_config,
}
