"""Plan → (tensor, bytes) in writing order, in chunks of bounded size."""

from packager.stream.chunk import CHUNK_BYTES, Chunk, Origin
from packager.stream.finite import check_finite
from packager.stream.pipeline import single_threaded_torch, stream_tensors

__all__ = [
    "CHUNK_BYTES",
    "Chunk",
    "Origin",
    "check_finite",
    "single_threaded_torch",
    "stream_tensors",
]
