"""From a merged model's configuration, names and shapes to a GGUF's tensors and keys. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from packager.errors import BaseError, UnsupportedFeatureError
from packager.gguf.architecture import WAYS_OUT, find_family
from packager.gguf.family import Family, Stack
from packager.gguf.key import apply_rules, make_key, usual_keys
from packager.gguf.setting import Settings, read_settings
from packager.gguf.value import GgufKey, GgufModel, GgufTensor, Transform

# Source: llama.cpp 0c1e57098, conversion/base.py, `prepare_tensors`; gpt2.py.
_IGNORED = (
    ".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq", ".attn.bias",
    ".attn.masked_bias",
)  # fmt: skip
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_EXPERTS = ("num_local_experts", "num_experts")
_SUFFIX = re.compile(r"(.+)\.(weight|bias)")


def map_model(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> GgufModel:
    """Maps a merged model, general and tokenizer keys apart; see `with_keys` for those.

    Args:
        config: `config.json` of the merged model.
        shapes: Name → shape of every tensor; the file gets its tensors in this order.

    Raises:
        BaseError: A tensor is left over, or missing, or has a shape that does not fit.
        InputError: A setting is not what it has to be.
        UnsupportedFeatureError: There is no mapper for the architecture, or the format cannot
            hold what this model has.
    """
    family = find_family(config)
    settings = read_settings(config, family.defaults)
    work = _Mapping(family, settings)
    for name, shape in shapes.items():
        work.add(name, shape)
    work.check_complete()
    heads = settings.count(*_HEADS)
    key_heads = settings.find("num_key_value_heads", "n_kv_heads") or heads
    experts = settings.find(*_EXPERTS) if family.stacks else None
    return GgufModel(
        architecture=family.architecture,
        keys=_keys(family, settings),
        tensors=(*family.factors(settings), *work.tensors),
        dropped=tuple(work.dropped),
        layers=work.layers,
        experts=experts if isinstance(experts, int) else 0,
        grouped_heads=max(1, heads // key_heads) if isinstance(key_heads, int) else 1,
    )


def architecture_keys(config: Mapping[str, Any]) -> tuple[GgufKey, ...]:
    """Returns `general.architecture` and the keys below the architecture's name.

    Raises:
        InputError: A setting is not what it has to be.
        UnsupportedFeatureError: There is no mapper for the architecture.
    """
    family = find_family(config)
    return _keys(family, read_settings(config, family.defaults))


def with_keys(model: GgufModel, *groups: Iterable[GgufKey]) -> GgufModel:
    """Returns the model with more keys; where a name comes twice, the later key counts."""
    keys = {key.name: key for group in (model.keys, *groups) for key in group}
    return replace(model, keys=tuple(keys.values()))


def _keys(family: Family, settings: Settings) -> tuple[GgufKey, ...]:
    name = family.architecture
    keys = (
        GgufKey("general.architecture", "string", name),
        make_key(name, "block_count", "uint32", settings.count(*_LAYERS)),
        *apply_rules(name, family.rules, settings),
        *(usual_keys(name, settings) if family.usual else ()),
        *family.own_keys(name, settings),
    )
    return tuple({key.name: key for key in keys}.values())


@dataclass
class _Mapping:
    """The mapping of one model's tensors while it is being made."""

    family: Family
    settings: Settings
    tensors: list[GgufTensor] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    waiting: dict[tuple[int, str], dict[tuple[int, str], str]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return self.settings.count(*_LAYERS)

    def add(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape
        if name.startswith(self.family.foreign) or name.endswith(_IGNORED):
            self.dropped.append(name)
            return
        short = self._short_name(name)
        if short == "lm_head.weight" and not self.family.reads_head:
            self._drop_head(name)
            return
        place = re.match(rf"{re.escape(self.family.block)}(\d{{1,9}})\.(.+)", short)
        if place is None:
            self._put(name, short, self.family.outer, "")
        elif int(place[1]) >= self.layers:
            raise _left_over(name, f"layers 0 to {self.layers - 1}")
        elif not self._stack(name, int(place[1]), place[2]):
            self._put(name, place[2], self.family.inner, f"blk.{int(place[1])}.")

    def check_complete(self) -> None:
        """Refuses a model of which parts are missing."""
        for names in self.waiting.values():
            if names:
                raise _missing("tensors of the same group", next(iter(names.values())))
        for name in ("token_embd.weight", "output_norm.weight"):
            if name not in self.seen:
                raise _missing(f"the tensor that becomes {name}", "nothing like it")
        if self.family.needs_head and "output.weight" not in self.seen:
            raise UnsupportedFeatureError(
                "llama.cpp does not load this architecture without an output head of its own",
                where="config.json: tie_word_embeddings",
                expected="false, and a tensor lm_head.weight",
                found="a head that is the embedding",
                hint="release with --target merged, or train with lm_head in target_modules: the "
                "merged model then has a head of its own",
            )
        blocks = {name.split(".")[1] for name in self.seen if name.startswith("blk.")}
        if len(blocks) != self.layers:
            raise _missing(f"{self.layers} layers", f"{len(blocks)}")
        shape = self.shapes[self.seen["token_embd.weight"]]
        if shape[:1] != (self.settings.find("vocab_size"),):
            raise _unfit(
                self.seen["token_embd.weight"],
                f"as many rows as vocab_size says: {self.settings.find('vocab_size')}",
                shape,
            )

    def _short_name(self, name: str) -> str:
        """Returns a name without what stands before it in some checkpoints only."""
        prefix = self.family.optional_prefix
        if prefix and name.startswith(prefix):
            return name.removeprefix(prefix)
        # A composite model of transformers 5 has the prefix in second place.
        return name.replace(f"model.{prefix}", "model.", 1) if prefix else name

    def _put(self, name: str, short: str, names: Mapping[str, str], prefix: str) -> None:
        split = _SUFFIX.fullmatch(short)
        plain = names.get(split[1]) if split else None
        if split is None or plain is None:
            raise _left_over(name, "a name of this architecture")
        self._emit(f"{prefix}{plain}.{split[2]}", (name,), self._transform(plain, short), plain)

    def _emit(self, name: str, sources: tuple[str, ...], transform: Transform, plain: str) -> None:
        shape = self.shapes[sources[0]]
        if name in self.seen:
            raise _left_over(sources[0], f"one tensor for {name}, not {self.seen[name]} too")
        self.seen[name] = sources[0]
        if transform == "transpose" and len(shape) != 2:
            raise _unfit(sources[0], "a matrix", shape)
        shape = shape[::-1] if transform == "transpose" else shape
        if len(sources) > 1 or self._is_stacked(plain):
            shape = (len(sources), *shape)
        heads = self._heads(plain, sources[0], shape) if transform == "permute" else 0
        self.tensors.append(GgufTensor(name, shape, sources, transform, heads))

    def _is_stacked(self, plain: str) -> bool:
        return any(plain in stack.members.values() for stack in self.family.stacks)

    def _transform(self, plain: str, short: str) -> Transform:
        if plain in self.family.permuted:
            return "permute"
        if plain in self.family.transposed and short.endswith(".weight"):
            return "transpose"
        if self.family.shifts_norms and short.endswith("norm.weight"):
            return "add_one"
        return "none"

    def _heads(self, plain: str, source: str, shape: tuple[int, ...]) -> int:
        heads = self.settings.count(*_HEADS)
        if plain == "attn_k" and self.settings.find("num_key_value_heads") is not None:
            heads = self.settings.count("num_key_value_heads")
        if not shape or shape[0] % (2 * heads):
            raise _unfit(source, f"rows that {heads} heads of an even width can share", shape)
        return heads

    def _stack(self, name: str, layer: int, short: str) -> bool:
        """Takes a tensor of a group; the last one of a group puts the group out."""
        for stack in self.family.stacks:
            found = re.fullmatch(
                rf"{re.escape(stack.prefix)}(\d{{1,9}})(?:\.(\w+))?\.weight", short
            )
            if found and (found[2] or "") in stack.members:
                group = self.waiting.setdefault((layer, stack.prefix), {})
                group[int(found[1]), found[2] or ""] = name
                self._put_group(layer, stack, group)
                return True
        return False

    def _put_group(self, layer: int, stack: Stack, group: dict[tuple[int, str], str]) -> None:
        count = self.settings.count(*stack.count)
        if len(group) < count * len(stack.members):
            return
        for member, plain in stack.members.items():
            sources = tuple(group.get((index, member), "") for index in range(count))
            shapes = {self.shapes.get(source) for source in sources}
            if "" in sources or len(shapes) != 1:
                raise _missing(f"{count} tensors of one shape", ", ".join(group.values())[:200])
            self._emit(f"blk.{layer}.{plain}.weight", sources, "none", plain)
        group.clear()

    def _drop_head(self, name: str) -> None:
        if self.settings.find("tie_word_embeddings") is False:
            raise UnsupportedFeatureError(
                "llama.cpp reads no output head of its own for this architecture",
                where=name,
                expected="a head that is the embedding",
                found="tie_word_embeddings: false",
                hint=WAYS_OUT.partition(",")[0] + ", or train without a LoRA on lm_head",
            )
        self.dropped.append(name)


def _left_over(name: str, expected: str) -> BaseError:
    return BaseError(
        "a tensor of the model has no place in a GGUF file",
        where=name[:200],
        expected=expected,
        hint=WAYS_OUT,
    )


def _missing(expected: str, found: str) -> BaseError:
    return BaseError(
        "the model is incomplete, so that no GGUF can be written",
        where="the model's weights",
        expected=expected,
        found=found,
        hint="check that config.json belongs to the weights, and that no shard is missing",
    )


def _unfit(name: str, expected: str, shape: tuple[int, ...]) -> BaseError:
    return BaseError(
        "a tensor does not have the shape that the configuration asks for",
        where=name[:200],
        expected=expected,
        found=str(shape),
        hint="check that config.json belongs to the weights",
    )
