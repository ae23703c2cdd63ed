"""A run: photographs from a source, claimed, fetched, made into splats, shared, published; each step beside the others.

Every step is in the journal before it counts. Whatever ends a run, the next one with its name goes on from there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.dataset.bounded_queue import BoundedQueue
from sharp_cog.dataset.claims import Claims
from sharp_cog.dataset.engine import Engine, Job, Share
from sharp_cog.dataset.gpu import GpuLog
from sharp_cog.dataset.intake import Intake
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.outlet import Outlet
from sharp_cog.dataset.photo import Source
from sharp_cog.dataset.progress import Progress
from sharp_cog.dataset.publish import Publisher
from sharp_cog.errors import CheckpointError, DeviceError, NotInstalledError, OutputError, SettingError
from sharp_cog.files.atomic import cannot_write
from sharp_cog.text import trace

__all__ = ["Engine", "Job", "Run", "Share"]

_LOG = logging.getLogger(__name__)

TICK_S = 0.2
KEEP_S = 20.0
"""How often claims are looked after, at most: each knows itself when it is due."""
GIVE_BACK_S = 300.0
"""How often claims on photographs that failed are given back."""

FATAL = (OutputError, DeviceError, CheckpointError, SettingError, NotInstalledError)
"""What no other photograph would mend."""


class Run:
    """One run of the pipeline; `work` does it all.

    Args:
        settings: Of the run.
        journal: Of the run.
        source: Of the photographs.
        engine: What makes splats of them.
        claims: Who does which, where there are others; None where nobody else is at it.
        publisher: Where splats go; None keeps them here.
        share: Where single splats go before that, if anywhere.
        look_after: Called now and then, and at the end with True.
        stopping: Set when nothing new is to be begun.
        max_pixels: Larger pictures are refused.
    """

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
        look_after: Callable[[bool], None] | None = None,
        stopping: threading.Event | None = None,
        max_pixels: int = 100_000_000,
    ) -> None:
        self.settings, self.journal, self.source, self.progress = settings, journal, source, Progress()
        self._engine, self._claims, self._look_after = engine, claims, look_after
        for folder in (settings.images_dir, settings.gaussians_dir):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for left in folder.glob(".*.part"):  # Of a process that was killed, be it on another machine.
                    left.unlink()
            except OSError as error:
                raise cannot_write(folder, error) from error
        self._stopping = stopping or threading.Event()
        self._intake = Intake(
            journal,
            source,
            settings.images_dir,
            self.progress,
            self._stopping,
            claims=claims,
            claim_batch=settings.claim_batch,
            max_images=settings.max_images,
            max_pixels=max_pixels,
        )
        self._outlet = Outlet(
            journal, settings.run_dir, claims=claims, publisher=publisher, share=share, formats=settings.hf_formats
        )
        self._gpu_log = GpuLog(settings.run_dir / "gpu_mem_log.csv") if settings.log_gpu_mem else None
        self._jobs: BoundedQueue[Job] = BoundedQueue(settings.download_queue_max)
        self._made: BoundedQueue[str] = BoundedQueue(settings.upload_queue_max)
        self._shared: BoundedQueue[str] = BoundedQueue(settings.upload_queue_max)
        self._control = Path(settings.control_dir).expanduser() if settings.control_dir else settings.run_dir
        self._is_over = threading.Event()
        self._failure: Exception | None = None

    def stop(self) -> None:
        """Begins nothing new; what is under way is finished."""
        self._stopping.set()

    def work(self) -> None:
        """Does the run, until the source has no more, or it is stopped.

        A step that fails ends those before it. Those behind it finish what has come to them.

        Raises:
            SharpError: Something failed that no other photograph would mend: the disk, the device, the hub, a setting.
        """
        settings = self.settings
        fetching = self._started("fetch", self._fetch_all)
        sharing = [
            self._started(f"share-{number}", lambda: self._outlet.share_all(self._made, self._shared), self._made)
            for number in range(settings.upload_workers)
        ]
        publishing = self._started(
            "publish",
            lambda: self._outlet.publish_all(
                self._shared, every=settings.hf_index_flush_every, seconds=settings.hf_index_flush_secs
            ),
            self._shared,
        )
        # Apart from each other: the hub may let claims wait for long, and nobody is to wait for a STOP that long.
        beside = [self._started("watch", self._watch), self._started("keep", self._keep)]
        self._guarded(self._make_all, self._jobs)
        fetching.join()
        self._made.close()
        for thread in sharing:
            thread.join()
        self._shared.close()
        publishing.join()
        self._is_over.set()
        for thread in beside:
            thread.join()
        self._guarded(lambda: self._tidy(is_over=True))
        if self._failure is not None:
            raise self._failure

    def _started(
        self, name: str, work: Callable[[], None], source: BoundedQueue[str] | None = None
    ) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(work, source), name=name, daemon=True)
        thread.start()
        return thread

    def _guarded(self, work: Callable[[], None], source: BoundedQueue[Job] | BoundedQueue[str] | None = None) -> None:
        """Runs a step; what it raises ends the run, and is raised by `work` at the end."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again where the run was started
            _LOG.debug("a step of the run ended:\n%s", trace(error))
            self._failure = self._failure or error
            self.stop()
        finally:
            # Whoever would wait for this step to take something must not.
            if source is not None and self._failure is not None:
                source.break_off()

    def _fetch_all(self) -> None:
        try:
            for job in self._intake.jobs(self._outlet.has_splats):
                if not (self._made.put(job) if isinstance(job, str) else self._jobs.put(job)):
                    return
                self._wait_while_paused()
        finally:
            self._jobs.close()

    def _make_all(self) -> None:
        for job, result in self._engine.run(self._waiting_jobs()):
            photo_id = job.photo.id
            if isinstance(result, FATAL):
                raise result
            if isinstance(result, Exception):
                self._intake.fail(job.photo, result, is_fetched=True)
                continue
            self.journal.advance(photo_id, "made", **result)
            self._intake.settle(photo_id, is_made=True)
            if self._gpu_log is not None:
                self._gpu_log.write(photo_id)
            if not self._made.put(photo_id):
                return

    def _waiting_jobs(self) -> Iterator[Job]:
        while not self._jobs.is_over:
            self._wait_while_paused()
            job = self._jobs.take()
            if job is None or self._stopping.is_set():
                continue  # What is on disk, the next run takes from there.
            if self._claims is not None and not self._claims.holds(job.photo.id):
                self.journal.leave([job.photo], "taken")
                self._intake.settle(job.photo.id)
                continue
            yield job

    def _watch(self) -> None:
        """Looks at the files that pause and stop, and tells how much waits."""
        settings = self.settings
        while not self._is_over.wait(TICK_S):
            waiting = {"fetched": len(self._jobs), "made": len(self._made), "shared": len(self._shared)}
            self.progress.waiting = waiting
            self.progress.is_paused = (self._control / settings.pause_file).exists()
            stop_file = self._control / settings.stop_file
            if not self._stopping.is_set() and stop_file.exists():
                _LOG.info("%s is there: the run ends when what is under way is done", stop_file)
                self.stop()

    def _keep(self) -> None:
        """Looks after claims while the run goes on."""
        stale_s = min(self.settings.hf_lock_stale_secs, self.settings.range_lock_stale_secs)
        given_back = time.monotonic()
        while not self._is_over.wait(min(KEEP_S, stale_s / 10)):
            is_due = time.monotonic() - given_back > GIVE_BACK_S
            self._tidy(give_back=is_due)
            given_back = time.monotonic() if is_due else given_back

    def _tidy(self, *, give_back: bool = False, is_over: bool = False) -> None:
        """Looks after claims: renews them, gives back those on what failed; all that are left, at the end."""
        if self._look_after is not None:
            self._look_after(is_over)
        if self._claims is None:
            return
        for photo_id in () if is_over else self._claims.renew():
            _LOG.warning("%s: another client has taken it over, since nothing was heard of this one", photo_id)
        if give_back or is_over:
            self._claims.give_back(all_of_them=is_over)

    def _wait_while_paused(self) -> None:
        while (self._control / self.settings.pause_file).exists() and not self._stopping.is_set():
            time.sleep(TICK_S)
