"""How pictures come to a Ray cluster.

An actor holds those under way, a thread of the run fills it, and a source of Ray Data reads from it. Processes that
only pass pictures on import this module, which does without torch.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from sharp_cog.dataset.engine import Job
from sharp_cog.errors import DepthError, ImageError, SharpError


class ClusterError(SharpError):
    """The Ray cluster cannot be reached, or fails in a way that it does not mend itself."""

    code = "cluster_failed"


class Feed:
    """An actor that holds the pictures under way, and knows how often each was begun."""

    def __init__(self) -> None:
        self._contents: dict[int, bytes] = {}
        self._begun: Counter[int] = Counter()
        self._num_put, self._is_over = 0, False
        self._changed = asyncio.Condition()

    async def put(self, content: bytes) -> None:
        """Adds a job, at the next place."""
        async with self._changed:
            self._contents[self._num_put] = content
            self._num_put += 1
            self._changed.notify_all()

    async def end(self) -> None:
        """There are no more."""
        async with self._changed:
            self._is_over = True
            self._changed.notify_all()

    async def take(self, place: int) -> bytes | None:
        """The job of a place, once it is there: nothing in it where it is done already; None behind the last one."""
        async with self._changed:
            await self._changed.wait_for(lambda: place < self._num_put or self._is_over)
        return self._contents.get(place, b"") if place < self._num_put else None

    async def begin(self, place: int) -> int:
        """Notes that a job is begun; returns how often it was."""
        self._begun[place] += 1
        return self._begun[place]

    async def drop(self, place: int) -> None:
        """Lets go of a job that is done."""
        self._contents.pop(place, None)
        self._begun.pop(place, None)


class FeedSource(Datasource):
    """What a feed holds, as a source of Ray Data: one task that reads as long as the run lasts."""

    def __init__(self, feed: Any) -> None:
        self._feed = feed

    supports_distributed_reads = False
    """The pictures are on this machine."""

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        del parallelism, args, kwargs
        feed = self._feed

        def read() -> Iterator[pyarrow.Table]:
            place = 0
            while (content := ray.get(feed.take.remote(place))) is not None:
                yield one_row(place, content)
                place += 1

        return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]


def one_row(place: int, content: bytes) -> pyarrow.Table:
    return pyarrow.table(
        {"place": pyarrow.array([place], pyarrow.int64()), "content": pyarrow.array([content], pyarrow.large_binary())}
    )


class Feeder:
    """A thread that reads pictures and feeds them, so many under way at once."""

    def __init__(self, jobs: Iterable[Job], feed: Any, *, max_under_way: int) -> None:
        self._jobs, self._feed = jobs, feed
        self._under_way: dict[int, Job] = {}
        self._room = threading.Semaphore(max_under_way)
        self._is_stopped = threading.Event()
        self._failure: BaseException | None = None
        threading.Thread(target=self._feed_all, name="feed", daemon=True).start()

    def take_back(self, place: int) -> Job | None:
        """The job of a place, once."""
        job = self._under_way.pop(place, None)
        if job is not None:
            self._feed.drop.remote(place)
        return job

    def is_done(self) -> None:
        """Makes room for another one."""
        self._room.release()

    def stop(self) -> None:
        """Ends it; what is under way is given up."""
        self._is_stopped.set()
        self._room.release()

    def check(self) -> None:
        """Raises what ended it.

        Raises:
            ClusterError: Jobs got lost on the way.
        """
        if self._failure is not None:
            raise self._failure
        if self._under_way:
            names = ", ".join(sorted(job.photo.id for job in self._under_way.values())[:3])
            raise ClusterError(f"{len(self._under_way)} photographs did not come back from Ray, such as {names}")

    def _feed_all(self) -> None:
        try:
            for place, job in enumerate(self._paced()):
                self._under_way[place] = job
                ray.get(self._feed.put.remote(_packed(job)))
        except BaseException as error:  # noqa: BLE001 - raised again by `check`
            self._failure = error
        finally:
            if not self._is_stopped.is_set():
                self._feed.end.remote()

    def _paced(self) -> Iterator[Job]:
        jobs = iter(self._jobs)
        while True:
            self._room.acquire()
            job = None if self._is_stopped.is_set() else next(jobs, None)
            if job is None:
                return
            yield job


def _packed(job: Job) -> bytes:
    """A photograph and the bytes of its picture and its depth map; an error instead where one cannot be read."""
    try:
        image = _read(job.image, ImageError)
        depth = _read(Path(job.photo.depth), DepthError) if job.photo.depth else b""
    except SharpError as error:
        return pickle.dumps(error)
    return pickle.dumps((job, image, depth))


def _read(path: Path, error_type: type[ImageError] | type[DepthError]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror or error}") from error
