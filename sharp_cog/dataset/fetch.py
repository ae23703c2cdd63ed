"""The first step of a run: take photographs from the source, lease them, and fetch their images."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable, Iterator

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.options import PredictOptions
from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.journal import Entry, Journal
from sharp_cog.dataset.leases import Leases
from sharp_cog.dataset.photo import Photo, RateLimitError, Source
from sharp_cog.errors import SharpError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.imaging import images
from sharp_cog.imaging.raws import RAW_SUFFIXES
from sharp_cog.text import redact, trace

_LOG = logging.getLogger(__name__)

POLL_S = 0.2
"""Seconds between checks of the photographs under way."""

_SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "GIF": ".gif",
    "AVIF": ".avif",
}


class Fetcher:
    """Yields jobs for the engine, and keeps track of the photographs under way."""

    def __init__(
        self,
        settings: DatasetSettings,
        journal: Journal,
        source: Source,
        stop_requested: threading.Event,
        *,
        leases: Leases | None,
        max_pixels: int,
    ) -> None:
        """Create the step; nothing is fetched yet.

        Args:
            settings: Settings of the run.
            journal: Journal of the run.
            source: Source of the photographs.
            stop_requested: Once it is set, nothing more is fetched.
            leases: Leases of this client; None if it works alone.
            max_pixels: Largest image to accept.
        """
        self._journal, self._source, self._folder = journal, source, settings.images_dir
        self._stop_requested, self._leases = stop_requested, leases
        self._lease_batch = settings.claim_batch if leases is not None else 1
        self._max_images, self._max_pixels = settings.max_images, max_pixels
        self._is_rate_limited = False
        self._mutex = threading.Lock()
        self._under_way: set[str] = set()
        self._num_made = 0

    def jobs(self) -> Iterator[Job | str]:
        """Yield jobs for the engine, or the ids of photographs that have splats already.

        Photographs from earlier runs come first, then new ones of the source, then those that other clients had leased,
        then those that failed once.

        Raises:
            SharpError: The source or the leases failed for good.
        """
        # Counted here once and updated by `settle`: a query for each photograph would take longer and longer.
        self._num_made = self._journal.counts().get("done", 0)
        # Photographs nearest to their end come first, and those of other clients late, since these are probably done by
        # then. All parts are generators: each reads the journal when its turn comes.
        photos = itertools.chain(
            self._leased(entry.photo for entry in self._journal.entries("made")),
            self._leased(entry.photo for entry in self._journal.entries("fetched", "seen")),
            self._leased(self._scanned()),
            self._leased(entry.photo for entry in self._journal.entries("taken")),
            self._failed_once(),
        )
        for photo in photos:
            if self._is_ended():
                return
            # Read again, since its state may have changed after its page of the journal was read.
            entry = self._journal.get(photo.id)
            assert entry is not None
            if entry.state == "made":
                self.settle(photo.id, is_made=True)
                yield photo.id
                continue
            # Before the photograph is fetched, since MAX_IMAGES counts splats: one that fails leaves room for another.
            if not self._wait_for_demand():
                return
            with self._mutex:
                self._under_way.add(photo.id)
            job = self._fetch(entry)
            if job is not None:
                yield job

    def settle(self, photo_id: str, *, is_made: bool = False) -> None:
        """Record that a photograph is no longer under way; `is_made` says whether it has splats now."""
        with self._mutex:
            self._under_way.discard(photo_id)
            self._num_made += is_made

    def fail(self, photo: Photo, error: Exception, *, is_fetched: bool) -> None:
        """Record a failure in the journal and the log; keep the lease while another try is left."""
        has_another_try = self._journal.fail(
            photo.id,
            f"{getattr(error, 'code', type(error).__name__)}: {error}",
            state="fetched" if is_fetched else "seen",
        )
        if not isinstance(error, SharpError):
            _LOG.error("%s: unexpected error:\n%s", photo.id, trace(error))
        _LOG.warning("%s: %s (%s)", photo.id, redact(str(error)), "to be retried" if has_another_try else "given up")
        if not has_another_try and self._leases is not None:
            self._leases.release_later(photo.id)
        self.settle(photo.id)

    def _num_begun(self) -> int:
        with self._mutex:
            return self._num_made + len(self._under_way)

    def _wait_for_demand(self) -> bool:
        """Return whether the run wants another photograph; wait while that depends on those under way."""
        while self._max_images and self._num_begun() >= self._max_images:
            if not self._under_way or self._stop_requested.wait(POLL_S):
                return False
        return True

    def _scanned(self) -> Iterator[Photo]:
        try:
            for photo in self._source.photos(self._journal.is_known):
                yield photo
                if self._is_ended():
                    return
        except RateLimitError as error:
            self._end(error)

    def _leased(self, photos: Iterable[Photo]) -> Iterator[Photo]:
        """Lease photographs in batches, record the result in the journal, and yield those that are ours."""
        rest = iter(photos)
        while batch := list(itertools.islice(rest, self._batch_size())):
            ours = batch
            if self._leases is not None:
                acquired = self._leases.acquire(batch)
                ours = acquired.ours
                settled = {photo.id for photo in (*ours, *acquired.done)}
                self._journal.set_aside(acquired.done, "others")
                self._journal.set_aside((photo for photo in batch if photo.id not in settled), "taken")
            # After the leases: a photograph that the journal lacks is found again, and is still leased to us.
            self._journal.add(ours)
            yield from ours
            if self._is_ended():
                return

    def _batch_size(self) -> int:
        if not self._max_images:
            return self._lease_batch
        # No more leases than the run still wants, since others must wait for the rest. An empty batch would end
        # `_leased`, so it has at least one photograph; `_wait_for_demand` decides about that.
        return max(1, min(self._lease_batch, self._max_images - self._num_begun()))

    def _failed_once(self) -> Iterator[Photo]:
        """Yield photographs that failed once, until none is under way that may still fail."""
        while not self._is_ended():
            with self._mutex:
                under_way = set(self._under_way)
            failed = [
                entry.photo
                for entry in self._journal.entries("seen", "fetched")
                if entry.tries and entry.photo.id not in under_way
            ]
            yield from self._leased(failed)
            if not failed and (not under_way or self._stop_requested.wait(POLL_S)):
                return

    def _fetch(self, entry: Entry) -> Job | None:
        photo, name = entry.photo, entry.about.get("image")
        # The image of an earlier try, or of a run that was killed. In the state `seen` it is to be fetched again, even
        # if a file has its name.
        if entry.state != "seen" and name and (self._folder / name).is_file():
            return Job(photo=photo, image=self._folder / name)
        try:
            content = self._source.fetch(photo)
            # `_suffix` decodes the whole image, so that a broken one is found here and its second try fetches it again.
            # A failure of the engine keeps the file.
            path = self._folder / f"{photo.id}{self._suffix(content)}"
        except RateLimitError as error:
            self.settle(photo.id)
            self._end(error)
            return None
        except Exception as error:  # noqa: BLE001 - one photograph that fails does not end the run
            self.fail(photo, error, is_fetched=False)
            return None
        # The file is complete before the journal names it. Its error is raised, since a full disk ends the run.
        with open_atomically(path) as file:
            file.write(content)
        self._journal.advance(photo.id, "fetched", image=path.name)
        return Job(photo=photo, image=path)

    def _suffix(self, content: bytes) -> str:
        """Return the suffix for an image by its content.

        Raises:
            ImageError: The content is not an image, or a broken one.
        """
        image_format = images.decode(content, PredictOptions(), max_pixels=self._max_pixels).image_format
        raw_suffix = f".{image_format.rpartition(' ')[2].lower()}"  # Such as `Canon CR2`.
        if raw_suffix in RAW_SUFFIXES:
            return raw_suffix
        # What is left of the formats that can be decoded is HEIC, whose name depends on the decoder.
        return _SUFFIXES.get(image_format.upper(), ".heic")

    def _is_ended(self) -> bool:
        return self._is_rate_limited or self._stop_requested.is_set()

    def _end(self, error: RateLimitError) -> None:
        """Fetch nothing more; the engine still processes the images on disk, which needs no request."""
        self._is_rate_limited = True
        if not self._stop_requested.is_set():  # Otherwise the stop has only interrupted a wait for the source.
            _LOG.warning("%s: the run ends once the images on disk are processed", error)
