"""A run: photographs are fetched, turned into splats, shared and published, all steps at the same time.

Every step is in the journal before it counts. However a run ends, the next run of the same name continues from there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.dataset.bounded_queue import BoundedQueue
from sharp_cog.dataset.engine import Engine, Job
from sharp_cog.dataset.fetch import Fetcher
from sharp_cog.dataset.gpu_log import GpuLog
from sharp_cog.dataset.hub_dataset import HubDataset
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.leases import Leases
from sharp_cog.dataset.photo import Source
from sharp_cog.dataset.publish import Publisher, Share
from sharp_cog.errors import CheckpointError, DeviceError, NotInstalledError, OutputError, SettingError
from sharp_cog.files.atomic import cannot_write
from sharp_cog.text import trace

_LOG = logging.getLogger(__name__)

POLL_S = 0.2
"""Seconds between checks of the files that pause and stop a run."""
HEARTBEAT_S = 20.0
"""Longest time between calls of the heartbeats, which know themselves when they are due."""
RELEASE_S = 300.0
"""Seconds after which leases on photographs that failed are released."""

FATAL_ERRORS = (OutputError, DeviceError, CheckpointError, SettingError, NotInstalledError)
"""Errors that every other photograph would meet too, so that they end the run."""


class Run:
    """One run of the dataset pipeline; `work` does all of it."""

    def __init__(
        self,
        settings: DatasetSettings,
        journal: Journal,
        source: Source,
        engine: Engine,
        *,
        leases: Leases | None = None,
        dataset: HubDataset | None = None,
        share: Share | None = None,
        source_heartbeat: Callable[[bool], None] | None = None,
        stop_requested: threading.Event | None = None,
        max_pixels: int = 200_000_000,
    ) -> None:
        """Create the run's folders, and remove half-written files of a killed process.

        Args:
            settings: Settings of the run.
            journal: Journal of the run.
            source: Source of the photographs.
            engine: Makes the splats.
            leases: Leases of this client; None if it works alone.
            dataset: The published dataset; None keeps the splats on this machine.
            share: Called for each splat before it is published.
            source_heartbeat: Renews the leases of the source; called often, and at the end with True.
            stop_requested: Once it is set, no new work is started.
            max_pixels: Largest image to accept.

        Raises:
            OutputError: A folder cannot be written.
        """
        self.settings, self.journal, self.source = settings, journal, source
        self._engine, self._leases, self._source_heartbeat = engine, leases, source_heartbeat
        for folder in (settings.images_dir, settings.gaussians_dir):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # Unlike `sweep`, this also removes files of a machine that shared the folder.
                for left in folder.glob(".*.part"):
                    left.unlink()
            except OSError as error:
                raise cannot_write(folder, error) from error
        self._stop_requested = stop_requested or threading.Event()
        self._fetcher = Fetcher(settings, journal, source, self._stop_requested, leases=leases, max_pixels=max_pixels)
        self._publisher = Publisher(settings, journal, leases=leases, dataset=dataset, share=share)
        self._gpu_log = GpuLog(settings.run_dir / "gpu_mem_log.csv") if settings.log_gpu_mem else None
        # A slow step holds up those before it, so that images and splats do not fill the disk.
        self._jobs: BoundedQueue[Job] = BoundedQueue(settings.download_queue_max)
        self._made: BoundedQueue[str] = BoundedQueue(settings.upload_queue_max)
        self._shared: BoundedQueue[str] = BoundedQueue(settings.upload_queue_max)
        self._control_dir = Path(settings.control_dir).expanduser() if settings.control_dir else settings.run_dir
        self._is_over = threading.Event()
        self._failure: Exception | None = None

    @property
    def is_paused(self) -> bool:
        """Whether the pause file exists."""
        return (self._control_dir / self.settings.pause_file).exists()

    @property
    def queue_sizes(self) -> dict[str, int]:
        """Number of photographs that wait after each step, by its name."""
        return {"fetched": len(self._jobs), "made": len(self._made), "shared": len(self._shared)}

    def stop(self) -> None:
        """Start no new work, and finish the photographs under way."""
        self._stop_requested.set()

    def work(self) -> None:
        """Work until the source is exhausted or the run is stopped.

        If a step fails, the steps before it end, and the steps after it finish their photographs.

        Raises:
            SharpError: An error that every other photograph would meet too, such as a full disk or a failed device.
        """
        # Each step has its threads. The engine's results are taken in this one, where Ctrl-C arrives.
        fetching = self._start("fetch", self._fetch_all)
        sharing = [
            self._start(f"share-{number}", lambda: self._publisher.share_all(self._made, self._shared), self._made)
            for number in range(self.settings.upload_workers)
        ]
        publishing = self._start("publish", lambda: self._publisher.publish_all(self._shared), self._shared)
        # Two threads: the hub's rate limit may hold up a heartbeat for long, and a STOP file must not wait that long.
        background = [self._start("watch", self._watch), self._start("heartbeat", self._keep_leases)]
        self._guard(self._make_all, self._jobs)
        # From here on, the steps end one after the other: each queue is closed once nothing more can arrive in it.
        fetching.join()
        self._made.close()
        for thread in sharing:
            thread.join()
        self._shared.close()
        publishing.join()
        self._is_over.set()
        for thread in background:
            thread.join()
        # Even after a failure, since other clients can then continue at once. Its error must not hide the first one.
        self._guard(self._end_leases)
        if self._failure is not None:
            raise self._failure

    def _start(self, name: str, work: Callable[[], None], queue: BoundedQueue[str] | None = None) -> threading.Thread:
        # A thread may wait for the network for minutes, and must not keep a process alive that is to stop at once.
        thread = threading.Thread(target=self._guard, args=(work, queue), name=name, daemon=True)
        thread.start()
        return thread

    def _guard(self, work: Callable[[], None], queue: BoundedQueue[Job] | BoundedQueue[str] | None = None) -> None:
        """Run a step that takes from a queue; its error ends the run, and `work` raises it."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again by `work`
            _LOG.debug("a step of the run failed:\n%s", trace(error))
            # The first error is the cause. Those after it are often its consequences.
            self._failure = self._failure or error
            self.stop()
        finally:
            # The step before must not wait for this one to take items.
            # Only this step's queue is dropped. Steps behind it finish what has reached them.
            if queue is not None and self._failure is not None:
                queue.abort()

    def _fetch_all(self) -> None:
        try:
            # Before the first job, since a splat whose file is missing must not be taken for made.
            self._publisher.requeue_incomplete()
            for job in self._fetcher.jobs():
                # An id is a photograph that has its splats from an earlier run: it skips the engine.
                if not (self._made.put(job) if isinstance(job, str) else self._jobs.put(job)):
                    return
                self._wait_while_paused()
        finally:
            self._jobs.close()

    def _make_all(self) -> None:
        for job, outcome in self._engine.run(self._waiting_jobs()):
            photo_id = job.photo.id
            # A full disk or a broken device costs the photograph no try: the next run continues with it.
            if isinstance(outcome, FATAL_ERRORS):
                raise outcome
            if isinstance(outcome, Exception):
                self._fetcher.fail(job.photo, outcome, is_fetched=True)
                continue
            # The journal comes first: once the photograph counts as made, a kill must not make it again.
            self.journal.advance(photo_id, "made", **outcome)
            self._fetcher.settle(photo_id, is_made=True)
            if self._gpu_log is not None:
                self._gpu_log.write(photo_id)
            if not self._made.put(photo_id):
                return

    def _waiting_jobs(self) -> Iterator[Job]:
        while not self._jobs.is_exhausted:
            self._wait_while_paused()
            job = self._jobs.take()
            if job is None or self._stop_requested.is_set():
                continue  # The next run finds the image on disk.
            # The job may have waited here for hours, and its lease may be lost. Its new owner makes the splat.
            if self._leases is not None and not self._leases.holds(job.photo.id):
                self.journal.set_aside([job.photo], "taken")
                self._fetcher.settle(job.photo.id)
                continue
            yield job

    def _watch(self) -> None:
        """Stop the run once the stop file exists."""
        stop_file = self._control_dir / self.settings.stop_file
        while not self._is_over.wait(POLL_S):
            if not self._stop_requested.is_set() and stop_file.exists():
                _LOG.info("%s exists: the run ends once the photographs under way are done", stop_file)
                self.stop()

    def _keep_leases(self) -> None:
        """Renew the leases while the run works, and now and then release those on photographs that failed."""
        stale_s = min(self.settings.hf_lock_stale_secs, self.settings.range_lock_stale_secs)
        last_release = time.monotonic()
        # Often enough for short leases too: a lease is renewed after a third of its time.
        while not self._is_over.wait(min(HEARTBEAT_S, stale_s / 10)):
            if self._source_heartbeat is not None:
                self._source_heartbeat(False)
            if self._leases is None:
                continue
            for photo_id in self._leases.heartbeat():
                _LOG.warning("%s: another client took it over, because this one was silent for too long", photo_id)
            # Not at once, because each change of a hub is a commit, and an hour has 128.
            if time.monotonic() - last_release > RELEASE_S:
                self._leases.release_unneeded()
                last_release = time.monotonic()

    def _end_leases(self) -> None:
        if self._source_heartbeat is not None:
            self._source_heartbeat(True)
        if self._leases is not None:
            self._leases.release_all()

    def _wait_while_paused(self) -> None:
        while self.is_paused and not self._stop_requested.is_set():
            time.sleep(POLL_S)
