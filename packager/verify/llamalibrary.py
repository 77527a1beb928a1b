"""llama.cpp by its C interface: the library inside of xllamacpp, by ctypes. Runs in a worker only.

Structures whose layout changes from version to version are passed on as they come from
llama.cpp, in a room that is larger than any of them; they are the last argument wherever they
are passed by value, so what is too much is never looked at. Fields of the context's parameters
are set only where all known defaults lie at their known places.

Source: llama.cpp 0c1e57098, include/llama.h.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_ROOM = 1024
_VOID = ctypes.c_void_p
_INT = ctypes.c_int32
_GREATEST_TOKENS = 4096
_ERROR_LEVEL = 4
_CPU_LAYERS = 0
_MOST_LINES = 20


class LlamaError(Exception):
    """llama.cpp refuses; the text is what it said last."""


class _Params(ctypes.Structure):
    _fields_ = [("room", ctypes.c_uint8 * _ROOM)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", _INT),
        ("token", ctypes.POINTER(_INT)),
        ("embd", _VOID),
        ("pos", ctypes.POINTER(_INT)),
        ("n_seq_id", ctypes.POINTER(_INT)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_INT))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _VOID)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_version": (ctypes.c_char_p, []),
    "llama_log_set": (None, [_LOG, _VOID]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_Params, []),
    "llama_context_default_params": (_Params, []),
    "llama_model_load_from_file": (_VOID, [ctypes.c_char_p, _Params]),
    "llama_model_get_vocab": (_VOID, [_VOID]),
    "llama_vocab_n_tokens": (_INT, [_VOID]),
    "llama_vocab_is_eog": (ctypes.c_bool, [_VOID, _INT]),
    "llama_init_from_model": (_VOID, [_VOID, _Params]),
    "llama_n_ctx_seq": (ctypes.c_uint32, [_VOID]),
    "llama_n_batch": (ctypes.c_uint32, [_VOID]),
    "llama_set_n_threads": (None, [_VOID, _INT, _INT]),
    "llama_get_memory": (_VOID, [_VOID]),
    "llama_memory_clear": (None, [_VOID, ctypes.c_bool]),
    "llama_batch_init": (_Batch, [_INT, _INT, _INT]),
    "llama_decode": (_INT, [_VOID, _Batch]),
    "llama_get_logits_ith": (_VOID, [_VOID, _INT]),
    "llama_adapter_lora_init": (_VOID, [_VOID, ctypes.c_char_p]),
    "llama_set_adapters_lora": (
        _INT, [_VOID, ctypes.POINTER(_VOID), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)],
    ),
}  # fmt: skip

# Of llama_context_params, from its start: sizes, threads, enumerations.
_CONTEXT_HEAD = struct.Struct("<7I2i5i")
_KNOWN_HEAD = (512, 2048, 512, 1, 0, 0, 1, 4, 4, 0, -1, -1, -1, -1)
_CACHE_TYPES = struct.Struct("<2i")
_CACHE_TYPES_AT = 104
_TYPE_F32, _TYPE_F16 = 0, 1
_TOKENS_AT, _BATCH_AT, _MICRO_BATCH_AT, _FLASH_ATTENTION_AT = 0, 4, 8, 52
# Of llama_model_params: two pointers, then the number of layers on a GPU and how to split them.
_MODEL_HEAD = struct.Struct("<2Q2i")
_KNOWN_MODEL = (0, 0, -1, 1)
_LAYERS_AT = 16


class Library:
    """The loaded library, quiet: what llama.cpp says is kept for errors.

    Args:
        path: The shared object.

    Raises:
        LlamaError: It cannot be loaded or lacks a function.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as problem:
            raise LlamaError(f"xllamacpp's library cannot be loaded: {problem}") from problem
        self.said: list[str] = []
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name, None)
            if function is None:
                raise LlamaError(f"xllamacpp's library has no function {name}")
            function.restype, function.argtypes = result, arguments
        self.call: Any = library
        # Kept, because llama.cpp goes on calling it.
        self._log = _LOG(self._listen)
        library.llama_log_set(self._log, None)
        library.llama_backend_init()

    @property
    def version(self) -> str:
        """llama.cpp's own version."""
        return bytes(self.call.llama_version()).decode("ascii", "replace")

    def refuse(self, what: str) -> LlamaError:
        """Returns an error with what llama.cpp said."""
        said = " ".join(" ".join(self.said[-_MOST_LINES:]).split())
        return LlamaError(f"{what}: {said}" if said else what)

    def _listen(self, level: int, text: bytes, _data: object) -> None:
        if level == _ERROR_LEVEL:
            self.said.append(text.decode(errors="replace"))


class Model:
    """A GGUF file in llama.cpp, perhaps with a LoRA, on the processor.

    Args:
        library: The library.
        path: The file; of a split model the first.
        adapter: A GGUF LoRA, or None.
        scale: Its strength.
        tokens: Longest passage, in tokens.
        threads: To compute with.

    Raises:
        LlamaError: llama.cpp cannot load it.
    """

    def __init__(
        self,
        library: Library,
        path: str,
        *,
        adapter: str | None,
        scale: float,
        tokens: int,
        threads: int,
    ) -> None:
        self._library, call = library, library.call
        self._model = call.llama_model_load_from_file(path.encode(), _model_params(call))
        if not self._model:
            raise library.refuse("llama.cpp cannot load the model")
        self._vocabulary = call.llama_model_get_vocab(self._model)
        self.vocabulary = int(call.llama_vocab_n_tokens(self._vocabulary))
        params, self.is_exact = _context_params(call, tokens)
        self._context = call.llama_init_from_model(self._model, params)
        room = call.llama_n_ctx_seq(self._context) if self._context else 0
        if room < tokens or call.llama_n_batch(self._context) < tokens:
            raise library.refuse(f"llama.cpp makes no context of {tokens} tokens")
        call.llama_set_n_threads(self._context, threads, threads)
        if adapter is not None:
            self._apply(adapter, scale)
        self._batch = call.llama_batch_init(tokens, 0, 1)
        _check_batch(self._batch)

    def predict(self, ids: Sequence[int]) -> Iterator[memoryview]:
        """Returns the logits of every position but the last, `vocabulary` float32 each.

        A view is valid until the next call of this model.
        """
        self._clear()
        self._decode(ids, 0, range(len(ids) - 1))
        return map(self._logits, range(len(ids) - 1))

    def continue_greedily(self, ids: Sequence[int], most: int) -> tuple[list[int], bool]:
        """Writes on with the most likely token, until one that ends generation.

        Returns:
            What was written, and whether it ended within `most` tokens.
        """
        self._clear()
        self._decode(ids, 0, (len(ids) - 1,))
        written: list[int] = []
        place = len(ids) - 1
        for _ in range(most):
            token = _most_likely(self._logits(place))
            written.append(token)
            if self._library.call.llama_vocab_is_eog(self._vocabulary, token):
                return written, True
            self._decode((token,), len(ids) + len(written) - 1, (0,))
            place = 0
        return written, False

    def ends(self, token: int) -> bool:
        """Whether llama.cpp ends generation at a token."""
        return bool(self._library.call.llama_vocab_is_eog(self._vocabulary, token))

    def _apply(self, path: str, scale: float) -> None:
        call = self._library.call
        adapter = call.llama_adapter_lora_init(self._model, path.encode())
        if not adapter:
            raise self._library.refuse("llama.cpp cannot load the LoRA")
        adapters, scales = (_VOID * 1)(adapter), (ctypes.c_float * 1)(scale)
        if call.llama_set_adapters_lora(self._context, adapters, 1, scales) != 0:
            raise self._library.refuse("llama.cpp does not apply the LoRA")

    def _clear(self) -> None:
        call = self._library.call
        call.llama_memory_clear(call.llama_get_memory(self._context), True)

    def _decode(self, ids: Sequence[int], start: int, wanted: Sequence[int]) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place] = token
            batch.pos[place] = start + place
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = 0
        for place in wanted:
            batch.logits[place] = 1
        if self._library.call.llama_decode(self._context, batch) != 0:
            raise self._library.refuse(f"llama.cpp cannot compute {len(ids)} tokens")

    def _logits(self, place: int) -> memoryview:
        address = self._library.call.llama_get_logits_ith(self._context, place)
        if not address:
            raise self._library.refuse(f"llama.cpp gives no logits at {place}")
        row = (ctypes.c_float * self.vocabulary).from_address(address)
        return memoryview(row).cast("B")


def _most_likely(logits: memoryview) -> int:
    values = logits.cast("f").tolist()
    return max(range(len(values)), key=values.__getitem__)


def _model_params(call: Any) -> _Params:
    params: _Params = call.llama_model_default_params()
    if _MODEL_HEAD.unpack_from(params.room) == _KNOWN_MODEL:
        struct.pack_into("<i", params.room, _LAYERS_AT, _CPU_LAYERS)
    return params


def _context_params(call: Any, tokens: int) -> tuple[_Params, bool]:
    """Returns the parameters, and whether the cache of keys and values holds float32.

    Where the layout is another than known, llama.cpp's defaults stay: 512 tokens, and a cache
    in float16.
    """
    params: _Params = call.llama_context_default_params()
    head = _CONTEXT_HEAD.unpack_from(params.room)
    cache = _CACHE_TYPES.unpack_from(params.room, _CACHE_TYPES_AT)
    if head != _KNOWN_HEAD or cache != (_TYPE_F16, _TYPE_F16):
        return params, False
    room = min(_GREATEST_TOKENS, max(_KNOWN_HEAD[0], tokens))
    for place in (_TOKENS_AT, _BATCH_AT, _MICRO_BATCH_AT):
        struct.pack_into("<I", params.room, place, room)
    # Flash attention works with float16 on the way; without it the cache may be float32.
    struct.pack_into("<i", params.room, _FLASH_ATTENTION_AT, 0)
    _CACHE_TYPES.pack_into(params.room, _CACHE_TYPES_AT, _TYPE_F32, _TYPE_F32)
    return params, True


def _check_batch(batch: _Batch) -> None:
    """A batch for tokens has every array but embeddings; another layout would show here."""
    there = [
        bool(getattr(batch, name)) for name in ("token", "pos", "n_seq_id", "seq_id", "logits")
    ]
    if batch.n_tokens != 0 or batch.embd or not all(there):
        raise LlamaError("this version of xllamacpp has another llama_batch than lorapack knows")
