"""The first step of a run: photographs from a source, claimed and fetched."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sharp_cog.dataset.claims import Claims
from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.journal import Entry, Journal
from sharp_cog.dataset.make import image_suffix
from sharp_cog.dataset.photo import Photo, RateLimitError, Source
from sharp_cog.dataset.progress import Progress
from sharp_cog.errors import SettingError, SharpError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.text import redact, trace

_LOG = logging.getLogger(__name__)

LOOK_S = 0.2
"""How often is looked whether what is under way has failed."""


class Intake:
    """Gives photographs of a source as jobs.

    Args:
        journal: Of the run.
        source: Of the photographs.
        images: The folder of pictures.
        progress: What is told of the run.
        stopping: Set when nothing new is to be begun.
        claims: Of the run; None where nobody else is at it.
        claim_batch: How many photographs are claimed at once.
        max_images: How many photographs the whole run is to turn into splats; 0 is all.
        max_pixels: Larger pictures are refused.
    """

    def __init__(
        self,
        journal: Journal,
        source: Source,
        images: Path,
        progress: Progress,
        stopping: threading.Event,
        *,
        claims: Claims | None,
        claim_batch: int,
        max_images: int,
        max_pixels: int,
    ) -> None:
        self._journal, self._source, self._images, self._progress = journal, source, images, progress
        self._stopping, self._claims = stopping, claims
        self._claim_batch = claim_batch if claims is not None else 1
        self._max_images, self._max_pixels = max_images, max_pixels
        self._is_limited = False
        self._mutex = threading.Lock()
        self._under_way: set[str] = set()
        self._num_made = 0

    def jobs(self, has_splats: Callable[[Entry], bool]) -> Iterator[Job | str]:
        """Photographs to make splats of, or ids of those that have splats already.

        What is left from before comes first, then what the source has, then what others were at, and what failed once.

        Args:
            has_splats: Whether the splats of an entry are on disk.

        Raises:
            SharpError: The source or the claims cannot go on.
        """
        for made in self._journal.entries("made"):
            if not has_splats(made):
                self._journal.advance(made.photo.id, "seen")
        # Counted once, and on from there: for each photograph anew, it would take longer the more there are.
        self._num_made = self._journal.counts().get("done", 0)
        photos = itertools.chain(
            self._claimed(entry.photo for entry in self._journal.entries("made")),
            self._claimed(entry.photo for entry in self._journal.entries("fetched", "seen")),
            self._claimed(self._scanned()),
            self._claimed(entry.photo for entry in self._journal.entries("taken")),
            self._claimed_again(),
        )
        for photo in photos:
            if self._is_ended():
                return
            entry = self._journal.get(photo.id)
            assert entry is not None
            if entry.state == "made":
                self.settle(photo.id, is_made=True)
                yield photo.id
                continue
            if not self._is_wanted():
                return
            with self._mutex:
                self._under_way.add(photo.id)
            job = self._fetched(entry)
            if job is not None:
                yield job

    def settle(self, photo_id: str, *, is_made: bool = False) -> None:
        """Once a job has become splats, or nothing."""
        with self._mutex:
            self._under_way.discard(photo_id)
            self._num_made += is_made

    def fail(self, photo: Photo, error: Exception, *, is_fetched: bool) -> None:
        """Notes what became of a photograph that failed; its claim is kept while there is another try."""
        has_another = self._journal.fail(
            photo.id,
            f"{getattr(error, 'code', type(error).__name__)}: {error}",
            state="fetched" if is_fetched else "seen",
        )
        if not isinstance(error, SharpError):
            _LOG.error("%s: not foreseen:\n%s", photo.id, trace(error))
        _LOG.warning("%s: %s%s", photo.id, redact(str(error)), " (once more, later)" if has_another else " (given up)")
        if not has_another and self._claims is not None:
            self._claims.drop(photo.id)
        self.settle(photo.id)

    def _num_begun(self) -> int:
        with self._mutex:
            return self._num_made + len(self._under_way)

    def _is_wanted(self) -> bool:
        """Whether one more photograph is; waits where that hangs on what is under way."""
        while self._max_images and self._num_begun() >= self._max_images:
            if not self._under_way or self._stopping.wait(LOOK_S):
                return False
        return True

    def _scanned(self) -> Iterator[Photo]:
        try:
            for photo in self._source.photos(self._journal.is_known):
                self._progress.num_scanned += 1
                yield photo
                if self._is_ended():
                    return
        except RateLimitError as error:
            self._end(error)

    def _claimed(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        rest = iter(photos)
        while batch := list(itertools.islice(rest, self._batch_size())):
            ours = batch
            if self._claims is not None:
                claimed = self._claims.claim(batch)
                ours = claimed.ours
                mine, done = ({photo.id for photo in part} for part in (ours, claimed.done))
                self._journal.leave(claimed.done, "others")
                self._journal.leave((photo for photo in batch if photo.id not in mine | done), "taken")
            self._journal.add(ours)
            yield from ours
            if self._is_ended():
                return

    def _batch_size(self) -> int:
        if not self._max_images:
            return self._claim_batch
        return max(1, min(self._claim_batch, self._max_images - self._num_begun()))

    def _claimed_again(self) -> Iterator[Photo]:
        """What failed once, until nothing is under way that may still fail."""
        while not self._is_ended():
            with self._mutex:
                under_way = set(self._under_way)
            again = [
                entry.photo
                for entry in self._journal.entries("seen", "fetched")
                if entry.tries and entry.photo.id not in under_way
            ]
            yield from self._claimed(again)
            if not again and (not under_way or self._stopping.wait(LOOK_S)):
                return

    def _fetched(self, entry: Entry) -> Job | None:
        photo, name = entry.photo, entry.about.get("image")
        if entry.state != "seen" and name and (self._images / name).is_file():
            return Job(photo=photo, image=self._images / name)
        try:
            content = self._source.fetch(photo)
            path = self._images / f"{photo.id}{image_suffix(content, max_pixels=self._max_pixels)}"
        except RateLimitError as error:
            self.settle(photo.id)
            self._end(error)
            return None
        except SettingError:
            raise
        except Exception as error:  # noqa: BLE001 - one photograph that fails does not end the run
            self.fail(photo, error, is_fetched=False)
            return None
        finally:
            self._progress.rate_limit_left = getattr(self._source, "rate_limit_left", None)
        with open_atomically(path) as file:
            file.write(content)
        self._journal.advance(photo.id, "fetched", image=path.name)
        return Job(photo=photo, image=path)

    def _is_ended(self) -> bool:
        return self._is_limited or self._stopping.is_set()

    def _end(self, error: RateLimitError) -> None:
        """Fetches no more; what is fetched already is made, which asks nothing of the source."""
        self._is_limited = True
        if not self._stopping.is_set():  # Else the source has only been told to wait no longer.
            _LOG.warning("%s: the run ends when the pictures that are here are done", error)
