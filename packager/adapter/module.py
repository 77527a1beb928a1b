"""The tensors of one adapted layer, checked against the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from packager.adapter.config import AdapterConfig
from packager.adapter.scope import count_blocks, residual_kind
from packager.adapter.tensorname import Part
from packager.adapter.value import LoraModule
from packager.dtype import MERGEABLE
from packager.errors import AdapterError
from packager.tensorfile import TensorRef

FACTOR_DTYPES = (*MERGEABLE, "F64")
_MATRIX_DIMENSIONS = 2


@dataclass
class ModuleParts:
    """Tensors of one layer, as they are found."""

    parts: dict[Part, TensorRef] = field(default_factory=dict)
    idle: tuple[TensorRef, ...] = ()

    def add(self, part: Part, ref: TensorRef) -> None:
        """Takes one more."""
        if part == "idle":
            self.idle = (*self.idle, ref)
        else:
            self.parts[part] = ref

    @property
    def has_pair(self) -> bool:
        """Whether there is A or B."""
        return any(part in self.parts for part in (*_LINEAR, *_EMBEDDING))

    @property
    def is_grouped(self) -> bool:
        """Whether the layer is a convolution in groups: B has a part of the rank for each.

        Source: PEFT 0.21, tuners/lora/layer.py, _ConvNd.update_layer.
        """
        if not all(part in self.parts for part in _LINEAR):
            return False
        lora_a, lora_b = (self.parts[part].shape for part in _LINEAR)
        convolution = len(lora_a) == len(lora_b) > _MATRIX_DIMENSIONS
        return convolution and 0 < lora_b[1] < lora_a[0] and lora_a[0] % lora_b[1] == 0

    @property
    def is_embedding(self) -> bool:
        """Whether the layer is an embedding."""
        return any(part in self.parts for part in _EMBEDDING)


_LINEAR: tuple[Part, Part] = ("lora_a", "lora_b")
_EMBEDDING: tuple[Part, Part] = ("embedding_a", "embedding_b")
_SHOWN = {"lora_a": "lora_A", "lora_b": "lora_B"} | {
    "embedding_a": "lora_embedding_A", "embedding_b": "lora_embedding_B",
}  # fmt: skip


def build_module(name: str, own: ModuleParts, config: AdapterConfig, where: str) -> LoraModule:
    """Returns a layer whose tensors are of the shapes and types that the configuration tells.

    Raises:
        AdapterError: They are not, or half of the pair is missing.
    """
    first, second = _EMBEDDING if own.is_embedding else _LINEAR
    missing = [_SHOWN[part] for part in (first, second) if part not in own.parts]
    if missing:
        raise AdapterError(
            f"half of the adapter of module {name!r} is missing",
            where=where,
            expected=f"{_SHOWN[first]} and {_SHOWN[second]}",
            found=f"no {missing[0]}",
            hint="the file is incomplete: save or copy the adapter again",
        )
    module = LoraModule(
        module=name,
        lora_a=own.parts[first],
        lora_b=own.parts[second],
        rank=config.rank_of(name),
        alpha=config.alpha_of(name),
        scale=config.scale_of(name),
        embedding=own.is_embedding,
        magnitude=own.parts.get("magnitude") if config.raw.get("use_dora") else None,
        bias=own.parts.get("lora_bias") if config.raw.get("lora_bias") else None,
        blocks=count_blocks(config, name),
        idle=own.idle,
        diagonal=own.parts.get("diagonal") if config.raw.get("kasa_config") else None,
        residual=None if own.is_embedding else residual_kind(config),
    )
    _check_complete(module, config, where)
    _check_shapes(module, where)
    _check_dtypes(module, where)
    return module


def _check_complete(module: LoraModule, config: AdapterConfig, where: str) -> None:
    """Refuses a layer without what the configuration tells of: PEFT would load what is random."""
    for field_name, ref, name in (
        ("use_dora", module.magnitude, "lora_magnitude_vector"),
        ("lora_bias", module.bias, "lora_B.bias"),
        ("kasa_config", module.diagonal, "lora_diag"),
    ):
        if config.raw.get(field_name) and ref is None:
            raise AdapterError(
                f"a part of the adapter of module {module.module!r} is missing",
                where=where,
                expected=f"{name}, since {field_name} is set",
                found="no such tensor",
                hint="the file is incomplete: save or copy the adapter again",
            )


def _check_shapes(module: LoraModule, where: str) -> None:
    rank, (across, down) = module.rank, module.blocks
    lora_a, lora_b = module.lora_a.shape, module.lora_b.shape
    fits = len(lora_a) == len(lora_b) >= _MATRIX_DIMENSIONS
    fits = fits and lora_b[2:] == (1,) * len(module.kernel)
    plain = not module.kernel or (module.blocks == (1, 1) and not module.embedding)
    if not fits or not plain or lora_a[0] != rank or lora_b[1] * down != rank or rank % across:
        raise AdapterError(
            f"the tensors of module {module.module!r} contradict adapter_config.json",
            where=where,
            expected=f"rank {rank}: lora_A ({rank}, in), lora_B (out, {rank // down})",
            found=f"lora_A {lora_a}, lora_B {lora_b}",
            hint="config and weights belong to different trainings, or the rank was edited",
        )
    norms = (1, lora_b[0], *lora_b[2:]) if module.kernel else (lora_b[0],)
    for ref, shape in (
        (module.magnitude, norms),
        (module.bias, (lora_b[0],)),
        (module.diagonal, (rank,)),
    ):
        if ref is not None and ref.shape != shape:
            raise AdapterError(
                f"the adapter tensor {ref.name!r} has another length than its layer",
                where=where,
                expected=f"shape {shape}",
                found=str(ref.shape),
                hint="the file is damaged: save or copy the adapter again",
            )


def _check_dtypes(module: LoraModule, where: str) -> None:
    for tensor in module.tensors:
        if tensor.dtype not in FACTOR_DTYPES and tensor not in module.idle:
            raise AdapterError(
                f"the adapter tensor {tensor.name!r} is not of a type that LoRA is trained in",
                where=where,
                expected=", ".join(FACTOR_DTYPES),
                found=tensor.dtype,
                hint="save the adapter again with PEFT's save_pretrained",
            )
