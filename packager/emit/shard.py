"""Merged weights into planned shards, two files at a time.

Each file has a lane of its own: one thread merges while another hashes and hands on to the disk.
What has to happen in order, hashing above all, is in order within a file only, so that two lanes
keep two cores busy where one lane would wait for its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from packager.gather import Gathered
from packager.manifest import FileEntry
from packager.plan import PlannedShard, TargetPlan
from packager.progress import Progress
from packager.sinks.safetensors import SafetensorsSink
from packager.stream import single_threaded_torch, stream_tensors
from packager.tensorfile import TensorRef
from packager.updatereader import AdapterTensors, adapter_tensors

_LANES = 2


def write_shards(
    folder: Path, target: TargetPlan, gathered: Gathered, progress: Progress
) -> tuple[FileEntry, ...]:
    """Merges into planned shards; returns them in order.

    Raises:
        AdapterError: NaN or infinity in the adapter or the result.
        InputError: A source file cannot be read.
        OutputError: The disk is full or fails.
    """
    progress.stage(f"merge {target.name}", sum(shard.nbytes for shard in target.shards))
    refs = {item.name: item.spec.tensors for item in gathered.adapters}
    lanes = min(_LANES, len(target.shards))
    job = _Job(
        folder,
        gathered.base.index.tensors,
        adapter_tensors(refs),
        progress,
        workers=_LANES // max(1, lanes),
    )
    with single_threaded_torch(), ThreadPoolExecutor(_LANES, thread_name_prefix="file") as pool:
        try:
            writing = [pool.submit(job.write, shard) for shard in target.shards]
            wait(writing, return_when=FIRST_EXCEPTION)
            for each in writing:
                if each.done():
                    each.result()
        except BaseException:
            job.stop.set()
            raise
    return tuple(entry for each in writing for entry in each.result())


@dataclass(frozen=True)
class _Job:
    """What the lanes share.

    Attributes:
        folder: Where the files are written.
        base: Base tensors by name.
        adapters: Adapter tensors.
        progress: Told of bytes.
        workers: Threads that merge, in each lane.
        stop: Set where another lane failed.
    """

    folder: Path
    base: Mapping[str, TensorRef]
    adapters: AdapterTensors
    progress: Progress
    workers: int
    stop: Event = field(default_factory=Event)

    def write(self, shard: PlannedShard) -> tuple[FileEntry, ...]:
        """Writes one file; nothing more of it once another lane failed."""
        chunks = stream_tensors(shard.tensors, self.base, self.adapters, self.workers)
        sink = SafetensorsSink(self.folder)
        try:
            sink.begin((shard,))
            with closing(chunks):
                for chunk in chunks:
                    if self.stop.is_set():
                        sink.abort()
                        return ()
                    sink.add(chunk)
                    self.progress.advance(len(chunk.data))
                    chunk.release()
            return sink.finish()
        except BaseException:
            sink.abort()
            raise
