"""How pictures come to a Ray cluster.

An actor holds those under way, a thread of the run fills it, and a source of Ray Data reads from it. Processes that
only pass pictures on import this module, which does without torch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
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

_LOG = logging.getLogger(__name__)


class ClusterError(SharpError):
    """The Ray cluster cannot be reached, or fails in a way that it does not mend itself."""

    code = "cluster_failed"


END = -1
"""The number that comes back when all jobs have been fed."""
WATCH_S = 5.0
"""How often the machines of the cluster are counted."""


class Feed:
    """An actor that holds the jobs under way by their numbers, and knows how often each was begun.

    It gives them out by place, the same ones however often it is asked. A job that may have been lost gets another
    place.
    """

    def __init__(self) -> None:
        self._contents: dict[int, bytes] = {}
        self._numbers: list[int] = []
        self._begun: Counter[int] = Counter()
        self._is_over = False
        self._changed = asyncio.Condition()

    async def put(self, number: int, content: bytes) -> None:
        """Adds a job."""
        async with self._changed:
            self._contents[number] = content
            self._numbers.append(number)
            self._changed.notify_all()

    async def again(self) -> None:
        """Gives out again everything that is under way."""
        async with self._changed:
            self._begun.clear()
            self._numbers += self._contents
            self._changed.notify_all()

    async def end(self) -> None:
        """Gives out nothing more."""
        async with self._changed:
            self._is_over = True
            self._changed.notify_all()

    async def take(self, place: int) -> tuple[int, bytes] | None:
        """The job of a place, once it is there: nothing in it where it is done already; None where it is over."""
        async with self._changed:
            await self._changed.wait_for(lambda: place < len(self._numbers) or self._is_over)
        if self._is_over:
            return None
        number = self._numbers[place]
        return number, self._contents.get(number, b"")

    async def begin(self, number: int) -> int:
        """Notes that a job is begun; returns how often it was."""
        self._begun[number] += 1
        return self._begun[number]

    async def drop(self, number: int) -> None:
        """Lets go of a job that is done."""
        self._contents.pop(number, None)
        self._begun.pop(number, None)


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
            for place in itertools.count():
                taken = ray.get(feed.take.remote(place))
                if taken is None:
                    return
                yield one_row(*taken)

        return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]


def one_row(number: int, content: bytes) -> pyarrow.Table:
    """A job, or what became of it, as it travels."""
    numbers = pyarrow.array([number], pyarrow.int64())
    return pyarrow.table({"number": numbers, "content": pyarrow.array([content], pyarrow.large_binary())})


class Feeder:
    """Threads that read pictures and feed them, so many under way at once, and again where a machine was lost."""

    def __init__(self, jobs: Iterable[Job], feed: Any, *, max_under_way: int) -> None:
        self._jobs, self._feed = jobs, feed
        self._under_way: dict[int, Job] = {}
        self._room = threading.Semaphore(max_under_way)
        self._machines = _machines()
        self._has_ended = False
        self._is_stopped = threading.Event()
        # Held while Ray is asked: what is asked of it once it is shut down would start it anew.
        self._asking = threading.Lock()
        self._failure: Exception | None = None
        for name, work in (("feed", self._feed_all), ("watch", self._watch)):
            threading.Thread(target=work, name=name, daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Whether all jobs have come back, and there will be none."""
        return self._has_ended and not self._under_way

    def take_back(self, number: int) -> Job | None:
        """The job of a number, the first time that it comes back."""
        job = self._under_way.pop(number, None)
        self._has_ended |= number == END
        if job is not None or number == END:
            self._feed.drop.remote(number)
        return job

    def is_done(self) -> None:
        """Makes room for another one."""
        self._room.release()

    def stop(self) -> None:
        """Ends it; what is under way is given up, and nothing is asked of Ray any more."""
        self._is_stopped.set()
        self._room.release()
        if self._asking.acquire(timeout=WATCH_S):
            self._asking.release()
        self._feed.end.remote()

    def check(self) -> None:
        """Raises what ended it.

        Raises:
            ClusterError: Jobs got lost on the way.
        """
        if self._failure is not None:
            raise self._failure
        if not self.is_over:
            names = ", ".join(sorted(job.photo.id for job in self._under_way.values())[:3])
            raise ClusterError(f"{len(self._under_way)} photographs did not come back from Ray, such as {names}")

    def _feed_all(self) -> None:
        try:
            for number, job in enumerate(self._paced()):
                content = _packed(job)
                with self._asking:
                    if self._is_stopped.is_set():
                        return
                    self._under_way[number] = job
                    ray.get(self._feed.put.remote(number, content))
        except Exception as error:  # noqa: BLE001 - raised again by `check`
            self._failure = error
        finally:
            with self._asking:
                if not self._is_stopped.is_set():
                    self._feed.put.remote(END, b"")

    def _paced(self) -> Iterator[Job]:
        jobs = iter(self._jobs)
        while True:
            self._room.acquire()
            job = None if self._is_stopped.is_set() else next(jobs, None)
            if job is None:
                return
            yield job

    def _watch(self) -> None:
        """Ray gives the tasks of a lost actor to the one that it starts in its place, and waits where it cannot."""
        before = self._machines
        while not self._is_stopped.wait(WATCH_S):
            with self._asking:
                if self._is_stopped.is_set():
                    return
                now = _machines()
                if before - now:
                    _LOG.warning("%d machines of the Ray cluster are lost, %d are left", len(before - now), len(now))
                    self._feed.again.remote()
            before = now


def _machines() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


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
