"""Work in threads, a few pieces ahead of who takes the results, which come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def run_ahead(
    pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], T]], most: int
) -> Generator[T, None, None]:
    """Yields what each job returns, in order; jobs are taken as they are begun.

    Closing the generator cancels what has not begun.

    Args:
        pool: That runs them.
        jobs: Work without arguments.
        most: Jobs whose results may be waiting or in the making, at least 1.
    """
    waiting: deque[Future[T]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
