"""What Xet storage is sent: xorbs, which are packed chunks, and shards, which tell the files.

Source: huggingface/xet-core at af1a3ff9, xet_core_structures/src/xorb_object/xorb_chunk_format.rs
(chunk header), compression_scheme.rs, byte_grouping/bg4.rs, metadata_shard/shard_format.rs and
file_structs.rs (48-byte records), merklehash/data_hash.rs (how a hash is written); the LZ4 frame
and block formats (lz4/lz4, doc/lz4_Frame_format.md, doc/lz4_Block_format.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SHARD_HEAD_BYTES = 48
_RECORD_BYTES = 48
_END = b"\xff" * 32
_HAS_VERIFICATION, _HAS_SHA256 = 1 << 31, 1 << 30
_PLAIN, _LZ4, _GROUPED_LZ4 = range(3)
_LZ4_MAGIC = 0x184D2204


@dataclass(frozen=True)
class Chunk:
    """One chunk of a xorb: where its bytes lie, its header included, and how long it really is."""

    start: int
    end: int
    scheme: int
    length: int


@dataclass(frozen=True)
class Term:
    """A run of chunks of one xorb; `length` is that of the data."""

    xorb: str
    length: int
    first: int
    last: int


@dataclass(frozen=True)
class XetFile:
    """A file as its terms; `sha256` is what the client says it is."""

    xet_hash: str
    sha256: str
    terms: tuple[Term, ...]


def parse_chunks(xorb: bytes) -> list[Chunk]:
    """Finds the chunks of a xorb; a footer, which clients leave out, ends them."""
    chunks, at = [], 0
    while at < len(xorb) and xorb[at] == 0:
        packed = int.from_bytes(xorb[at + 1 : at + 4], "little")
        length = int.from_bytes(xorb[at + 5 : at + 8], "little")
        chunks.append(Chunk(at, at + 8 + packed, xorb[at + 4], length))
        at += 8 + packed
    return chunks


def unpack_chunk(xorb: bytes, chunk: Chunk) -> bytes:
    """Returns the data of one chunk."""
    packed = xorb[chunk.start + 8 : chunk.end]
    data = packed if chunk.scheme == _PLAIN else _unpack_lz4_frame(packed)
    if chunk.scheme == _GROUPED_LZ4:
        data = _ungroup(data)
    if len(data) != chunk.length:
        raise ValueError("a chunk of another length than its header says")
    return data


def parse_shard(shard: bytes) -> list[XetFile]:
    """Reads the files that a shard tells of."""
    files, at = [], _SHARD_HEAD_BYTES
    while shard[at : at + 32] != _END:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        name, at = _hash_text(shard, at), at + _RECORD_BYTES
        terms = []
        for place in range(at, at + count * _RECORD_BYTES, _RECORD_BYTES):
            length, first, last = struct.unpack_from("<III", shard, place + 36)
            terms.append(Term(_hash_text(shard, place), length, first, last))
        at += count * _RECORD_BYTES * (2 if flags & _HAS_VERIFICATION else 1)
        if not flags & _HAS_SHA256:
            raise ValueError("a file without its sha256")
        files.append(XetFile(name, _hash_text(shard, at), tuple(terms)))
        at += _RECORD_BYTES
    return files


def _hash_text(data: bytes, at: int) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", data, at))


def _ungroup(data: bytes) -> bytes:
    """Puts the bytes back that were sorted by their place in a group of four."""
    result = bytearray(len(data))
    at = 0
    for place in range(4):
        size = len(range(place, len(data), 4))
        result[place::4] = data[at : at + size]
        at += size
    return bytes(result)


def _unpack_lz4_frame(frame: bytes) -> bytes:
    magic, flags = struct.unpack_from("<IB", frame)
    if magic != _LZ4_MAGIC:
        raise ValueError("no LZ4 frame")
    at = 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    result = bytearray()
    while size := struct.unpack_from("<I", frame, at)[0]:
        at += 4
        block = frame[at : at + (size & 0x7FFFFFFF)]
        if size & 0x80000000:
            result += block
        else:
            _unpack_lz4_block(block, result)
        at += len(block) + (4 if flags & 0x10 else 0)
    return bytes(result)


def _unpack_lz4_block(block: bytes, result: bytearray) -> None:
    rest = iter(block)
    for token in rest:
        result += bytes(next(rest) for _ in range(_length(token >> 4, rest)))
        low = next(rest, None)
        if low is None:
            return
        distance = low | next(rest) << 8
        count = _length(token & 15, rest) + 4
        start = len(result) - distance
        for place in range(start, start + count):
            result.append(result[place])


def _length(nibble: int, rest: Iterator[int]) -> int:
    total = nibble
    more = 255 if nibble == 15 else 0
    while more == 255:
        more = next(rest)
        total += more
    return total
