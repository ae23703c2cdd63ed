"""A run: photographs from a source, claimed, fetched, made into splats, shared, published; each step beside the others.

Every step is in the journal before it counts. Whatever ends a run, the next one with its name goes on from there.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from sharp_cog.atomic import open_atomically
from sharp_cog.dataset.claims import Claims
from sharp_cog.dataset.journal import Entry, Journal
from sharp_cog.dataset.make import image_suffix
from sharp_cog.dataset.photo import Photo, RateLimitError, Source, SourceError
from sharp_cog.dataset.publish import Finished, Publisher
from sharp_cog.dataset.settings import DatasetSettings
from sharp_cog.errors import CheckpointError, DeviceError, OutputError, SettingError, SharpError

_LOG = logging.getLogger(__name__)

TICK_S = 0.2
KEEP_S = 20.0
"""How often claims are looked after."""
GIVE_BACK_S = 300.0
"""How often claims on photographs that failed are given back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A photograph whose picture is on disk."""

    photo: Photo
    image: Path


class Engine(Protocol):
    """What makes splats of pictures."""

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
        """Makes splats of jobs as they come, and gives what `sharp_cog.dataset.make.make` returns or raises for each.

        At most a few jobs are taken ahead.
        """
        ...


class Share(Protocol):
    """Shares one splat elsewhere; never fails the photograph."""

    def __call__(self, photo: Photo, splats: dict[str, Path]) -> dict[str, str]:
        """Returns what the index says of it."""
        ...


@dataclass
class Progress:
    """What a run can tell while it goes on.

    Attributes:
        start: When it began, by `time.time`.
        num_scanned: Photographs that the source gave.
        num_elsewhere: Photographs that others had done or were at.
        waiting: Sizes of the queues by name.
        is_paused: Whether a file pauses it.
        rate_limit_left: Requests left at the source in this hour; None where it does not say.
        note: What it waits for, if for anything.
    """

    start: float = field(default_factory=time.time)
    num_scanned: int = 0
    num_elsewhere: int = 0
    waiting: dict[str, int] = field(default_factory=dict)
    is_paused: bool = False
    rate_limit_left: int | None = None
    note: str = ""


class Run:
    """One run of the pipeline; `work` does it all."""

    def __init__(
        self,
        settings: DatasetSettings,
        journal: Journal,
        source: Source,
        engine: Engine,
        *,
        claims: Claims | None = None,
        publisher: Publisher | None = None,
        share: Share | None = None,
        max_pixels: int = 100_000_000,
    ) -> None:
        self.settings, self.journal, self.progress = settings, journal, Progress()
        self._source, self._engine, self._claims = source, engine, claims
        self._publisher, self._share, self._max_pixels = publisher, share, max_pixels
        self._images, self._gaussians = (settings.run_dir / name for name in ("images", "gaussians"))
        for folder in (self._images, self._gaussians):
            folder.mkdir(parents=True, exist_ok=True)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._jobs: queue.Queue[Job | None] = queue.Queue(settings.download_queue_max)
        self._made: queue.Queue[str | None] = queue.Queue(settings.upload_queue_max)
        self._shared: queue.Queue[str | None] = queue.Queue(settings.upload_queue_max)
        self._control = Path(settings.control_dir).expanduser() if settings.control_dir else settings.run_dir
        self._held: set[str] = set()
        self._dropped: set[str] = set()
        self._held_lock = threading.Lock()

    def stop(self) -> None:
        """Begins nothing new; what is under way is finished."""
        self._stopping.set()

    def work(self) -> None:
        """Does the run, until the source has no more, or it is stopped.

        Raises:
            SharpError: Something failed that no other photograph would mend: the disk, the device, the hub, a setting.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("fetch", self._fetch_all), ("publish", self._publish_all), ("keep", self._keep))
        ]
        sharers = [
            threading.Thread(target=self._guarded, args=(self._share_all,), name=f"share-{number}", daemon=True)
            for number in range(self.settings.upload_workers)
        ]
        for thread in (*threads, *sharers):
            thread.start()
        fetching, publishing, keeping = threads
        try:
            self._guarded(self._make_all)
            fetching.join()
            for _ in sharers:
                self._made.put(None)
            for thread in sharers:
                thread.join()
            self._shared.put(None)
            publishing.join()
        finally:
            self._stopping.set()
            keeping.join()
            self._give_back(all_of_them=True)
        if self._failure is not None:
            raise self._failure

    def _guarded(self, work: Callable[[], None]) -> None:
        """Runs a step; what it raises ends the run, and is raised in `work`."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again where the run was started
            self._failure = self._failure or error
            self._stopping.set()
            if work == self._make_all:
                return
            _LOG.debug("a step ended", exc_info=error)

    # ---- photographs into jobs

    def _fetch_all(self) -> None:
        try:
            num_wanted = self.settings.max_images or None
            begun = itertools.islice(self._claimed(), num_wanted)
            for photo in begun:
                if self._stopping.is_set():
                    break
                self._wait_while_paused()
                job = self._fetch(photo)
                if job is not None:
                    self._put(self._jobs, job)
        finally:
            self._put(self._jobs, None, always=True)

    def _claimed(self) -> Iterator[Photo]:
        """Photographs that are ours: those left from before, those of the source, then those to be tried again."""
        left = [entry.photo for entry in self.journal.entries("seen", "fetched")]
        for entry in self.journal.entries("made"):
            self._hold([entry.photo])
            self._put(self._made, entry.photo.id)
        yield from self._claim_in_batches(left)
        yield from self._claim_in_batches(self._scanned())
        while again := [e.photo for e in self.journal.entries("seen") if e.tries and e.photo.id not in self._held]:
            if self._stopping.is_set():
                return
            yield from self._claim_in_batches(again)
            # What is under way may fail once more, and then is not `seen` any longer.
            while self._held and not self._stopping.is_set() and not self._has_retries():
                time.sleep(TICK_S)

    def _has_retries(self) -> bool:
        return any(entry.tries and entry.photo.id not in self._held for entry in self.journal.entries("seen"))

    def _scanned(self) -> Iterator[Photo]:
        try:
            for photo in self._source.photos(self.journal.is_known):
                self.progress.num_scanned += 1
                if self.settings.max_scan and self.progress.num_scanned > self.settings.max_scan:
                    return
                yield photo
                if self._stopping.is_set():
                    return
        except RateLimitError as error:
            _LOG.warning("%s: the run ends when what is under way is done", error)

    def _claim_in_batches(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        batches = iter(photos)
        size = self.settings.claim_batch if self._claims is not None else 1
        while batch := list(itertools.islice(batches, size)):
            ours = batch
            if self._claims is not None:
                claimed = self._claims.claim(batch)
                ours = claimed.ours
                self.progress.num_elsewhere += len(batch) - len(ours)
                for photo in claimed.done:
                    self.journal.add(photo)
                    self.journal.advance(photo.id, "done", elsewhere=True)
                for photo in batch:
                    if photo not in ours and photo not in claimed.done:
                        self.journal.forget(photo.id)
            self._hold(ours)
            for photo in ours:
                self.journal.add(photo)
            yield from ours

    def _fetch(self, photo: Photo) -> Job | None:
        entry = self.journal.get(photo.id)
        assert entry is not None
        if entry.state == "fetched" and (self._images / entry.about["image"]).is_file():
            return Job(photo=photo, image=self._images / entry.about["image"])
        try:
            content = self._source.fetch(photo)
            path = self._images / f"{photo.id}{image_suffix(content, max_pixels=self._max_pixels)}"
        except RateLimitError as error:
            _LOG.warning("%s: the run ends when what is under way is done", error)
            self._drop(photo.id)
            self.stop()
            return None
        except (SourceError, SharpError) as error:
            self._fail(photo.id, error)
            return None
        with open_atomically(path) as file:
            file.write(content)
        self.journal.advance(photo.id, "fetched", image=path.name)
        self.progress.rate_limit_left = getattr(self._source, "rate_limit_left", None)
        return Job(photo=photo, image=path)

    # ---- jobs into splats

    def _make_all(self) -> None:
        for job, result in self._engine.run(self._waiting_jobs()):
            if isinstance(result, Exception):
                if isinstance(result, (OutputError, DeviceError, CheckpointError, SettingError)):
                    raise result
                self._fail(job.photo.id, result)
                continue
            self.journal.advance(job.photo.id, "made", **result)
            self._log_gpu(job.photo.id)
            self._put(self._made, job.photo.id, always=True)

    def _waiting_jobs(self) -> Iterator[Job]:
        while True:
            self._wait_while_paused()
            try:
                job = self._jobs.get(timeout=TICK_S)
            except queue.Empty:
                if self._failure is not None:
                    return
                continue
            if job is None:
                return
            if self._stopping.is_set():
                continue  # It is on disk, and the next run takes it from there.
            yield job

    # ---- splats out

    def _share_all(self) -> None:
        while (photo_id := self._made.get()) is not None:
            if self._share is not None and not self._stopped_hard():
                entry = self._entry(photo_id)
                if not entry.about.get("gsplat_url"):
                    about = self._share(entry.photo, self._splats(entry))
                    self.journal.advance(photo_id, "made", **about)
            self._put(self._shared, photo_id, always=True)

    def _publish_all(self) -> None:
        batch: list[str] = []
        since = time.monotonic()
        is_over = False
        while not is_over:
            try:
                photo_id = self._shared.get(timeout=TICK_S)
                is_over = photo_id is None
                if photo_id is not None:
                    since = since if batch else time.monotonic()
                    batch.append(photo_id)
            except queue.Empty:
                pass
            is_due = time.monotonic() - since >= self.settings.hf_index_flush_secs
            every = self.settings.hf_index_flush_every if self._publisher is not None else 1
            if batch and (is_over or is_due or len(batch) >= every):
                self._publish(batch)
                batch = []

    def _publish(self, photo_ids: list[str]) -> None:
        if self._publisher is not None:
            self._publisher.publish([self._finished(self._entry(photo_id)) for photo_id in photo_ids])
        elif self._claims is not None:
            self._claims.finish(photo_ids)
        for photo_id in photo_ids:
            self.journal.advance(photo_id, "done")
        with self._held_lock:
            self._held.difference_update(photo_ids)

    def _finished(self, entry: Entry) -> Finished:
        about = entry.about
        kept = ("focal_length_px", "focal_length_source", "width", "height", "num_gaussians", "model", "sharp_cog")
        shared = {name: str(value) for name, value in about.items() if name.startswith("gsplat_")}
        return Finished(
            id=entry.photo.id,
            image=self._images / about["image"],
            splats=self._splats(entry),
            row={
                **entry.photo.row,
                **shared,
                **{name: str(about[name]) for name in kept},
                "sha256": json.dumps(about["sha256"]),
            },
        )

    def _splats(self, entry: Entry) -> dict[str, Path]:
        return {name: self._gaussians / file for name, file in entry.about["splats"].items()}

    # ---- beside all that

    def _keep(self) -> None:
        looked = given_back = time.monotonic()
        while not self._stopping.wait(TICK_S):
            self.progress.waiting = {
                "fetched": self._jobs.qsize(),
                "made": self._made.qsize() + self._shared.qsize(),
            }
            self.progress.is_paused = (self._control / self.settings.pause_file).exists()
            if (self._control / self.settings.stop_file).exists():
                _LOG.info("%s is there: the run ends", self._control / self.settings.stop_file)
                self.stop()
            if self._claims is not None and time.monotonic() - looked > KEEP_S:
                looked = time.monotonic()
                for photo_id in self._claims.renew():
                    _LOG.warning("%s was taken over by another client", photo_id)
            if time.monotonic() - given_back > GIVE_BACK_S:
                given_back = time.monotonic()
                self._give_back(all_of_them=False)

    def _wait_while_paused(self) -> None:
        while (self._control / self.settings.pause_file).exists() and not self._stopping.is_set():
            time.sleep(TICK_S)

    def _hold(self, photos: Iterable[Photo]) -> None:
        with self._held_lock:
            self._held.update(photo.id for photo in photos)

    def _drop(self, photo_id: str) -> None:
        """Lets go of a photograph; its claim is given back with others, since at the hub each time is a commit."""
        with self._held_lock:
            self._held.discard(photo_id)
            self._dropped.add(photo_id)

    def _give_back(self, *, all_of_them: bool) -> None:
        """Gives back claims, so that others need not wait until they are stale."""
        with self._held_lock:
            left, self._dropped = self._dropped - self._held, set()
            if all_of_them:
                left |= self._held
                self._held = set()
        if self._claims is not None and left:
            self._claims.release(sorted(left))

    def _fail(self, photo_id: str, error: Exception) -> None:
        has_another = self.journal.fail(photo_id, f"{getattr(error, 'code', type(error).__name__)}: {error}")
        if not isinstance(error, SharpError):
            _LOG.error("%s", photo_id, exc_info=error)
        _LOG.warning("%s: %s%s", photo_id, error, " (once more, later)" if has_another else " (given up)")
        self._drop(photo_id)

    def _entry(self, photo_id: str) -> Entry:
        entry = self.journal.get(photo_id)
        assert entry is not None
        return entry

    def _put(self, where: queue.Queue[Any], item: Any, *, always: bool = False) -> None:
        """Puts an item where there is room for it; gives up when the run is failing, unless it must."""
        while True:
            try:
                where.put(item, timeout=TICK_S)
            except queue.Full:
                if self._failure is not None or (self._stopping.is_set() and not always):
                    return
            else:
                return

    def _stopped_hard(self) -> bool:
        return self._failure is not None

    def _log_gpu(self, photo_id: str) -> None:
        if not self.settings.log_gpu_mem:
            return
        path = self.settings.run_dir / "gpu_mem_log.csv"
        is_new = not path.exists()
        has_cuda = torch.cuda.is_available()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["time", "photo", "allocated_bytes", "reserved_bytes", "peak_bytes"])
            figures = (
                [torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.max_memory_allocated()]
                if has_cuda
                else [0, 0, 0]
            )
            writer.writerow([f"{time.time():.3f}", photo_id, *figures])
