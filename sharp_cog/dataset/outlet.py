"""The last steps of a run: splats are shared, sent ahead, and published many at a time."""

from __future__ import annotations

import json
import time
from pathlib import Path

from sharp_cog.dataset.bounded_queue import BoundedQueue
from sharp_cog.dataset.claims import Claims
from sharp_cog.dataset.engine import Share
from sharp_cog.dataset.journal import Entry, Journal
from sharp_cog.dataset.publish import Finished, Publisher

MAX_BATCHES = 10
"""So many batches may become one, where the hub lets us wait."""

_KEPT = ("focal_length_px", "focal_length_source", "width", "height", "num_gaussians", "model", "sharp_cog")
"""What a row of the index takes from the making of a splat."""


class Outlet:
    """Takes photographs that have splats, and ends when they are done.

    Args:
        journal: Of the run.
        run_dir: The run's folder.
        claims: Of the run; None where nobody else is at it.
        publisher: Where splats go; None keeps them here.
        share: Where single splats go before that, if anywhere.
        formats: What is published; nothing is all.
    """

    def __init__(
        self,
        journal: Journal,
        run_dir: Path,
        *,
        claims: Claims | None,
        publisher: Publisher | None,
        share: Share | None,
        formats: tuple[str, ...] = (),
    ) -> None:
        self._journal, self._claims, self._publisher, self._share = journal, claims, publisher, share
        self._formats = formats
        self._images, self._gaussians = run_dir / "images", run_dir / "gaussians"

    def has_splats(self, entry: Entry) -> bool:
        """Whether all files of an entry are on disk."""
        files = [self._images / entry.about.get("image", ""), *self._splats(entry).values()]
        # Without what was noted about them they could not be published.
        return {"splats", "sha256", *_KEPT} <= entry.about.keys() and all(path.is_file() for path in files)

    def share_all(self, made: BoundedQueue[str], shared: BoundedQueue[str]) -> None:
        """Shares and sends ahead, one photograph after the other; many threads do so at once."""
        while (photo_id := made.take()) is not None:
            entry = self._entry(photo_id)
            if self._share is not None and not entry.about.get("gsplat_url"):
                about = self._share(entry.photo, self._splats(entry))
                self._journal.advance(photo_id, "made", **about)
                entry = self._entry(photo_id)
            if self._publisher is not None:
                self._publisher.send_ahead(self._finished(entry))
            if not shared.put(photo_id):
                return

    def publish_all(self, shared: BoundedQueue[str], *, every: int, seconds: float) -> None:
        """Publishes whenever so many photographs wait, or one of them for so long; and all that is left at the end."""
        every = every if self._publisher is not None else 1
        batch: list[str] = []
        due = 0.0
        while True:
            photo_id = shared.take(max(0.0, due - time.monotonic()) if batch else None)
            if photo_id is not None:
                due = due if batch else time.monotonic() + seconds
                batch.append(photo_id)
            is_over = shared.is_over
            is_due = is_over or len(batch) >= every or time.monotonic() >= due
            # While the hub let us wait, more has come than a batch holds: it goes along.
            if batch and is_due and (not len(shared) or len(batch) >= MAX_BATCHES * every):
                self._publish(batch)
                batch = []
            if is_over:
                return

    def _publish(self, photo_ids: list[str]) -> None:
        if self._publisher is not None:
            self._publisher.publish([self._finished(self._entry(photo_id)) for photo_id in photo_ids])
        if self._claims is not None and (self._publisher is None or not self._publisher.ends_claims):
            self._claims.finish(photo_ids)
        self._journal.finish(photo_ids)

    def _finished(self, entry: Entry) -> Finished:
        about = entry.about
        splats = self._splats(entry)
        sha256 = about["sha256"]
        published = self._formats or tuple(splats)
        shared = {name: str(value) for name, value in about.items() if name.startswith("gsplat_")}
        return Finished(
            id=entry.photo.id,
            image=self._images / about["image"],
            splats={name: splats[name] for name in published if name in splats},
            row={
                **entry.photo.row,
                **shared,
                **{name: str(about[name]) for name in _KEPT},
                "sha256": json.dumps({name: sha256[name] for name in published if name in sha256}),
            },
        )

    def _splats(self, entry: Entry) -> dict[str, Path]:
        return {name: self._gaussians / file for name, file in entry.about.get("splats", {}).items()}

    def _entry(self, photo_id: str) -> Entry:
        entry = self._journal.get(photo_id)
        assert entry is not None
        return entry
