"""The last steps of a run: share each splat, upload its files, and publish many photographs at a time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Protocol

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.dataset.bounded_queue import BoundedQueue
from sharp_cog.dataset.hub_dataset import Finished, HubDataset
from sharp_cog.dataset.journal import Entry, Journal
from sharp_cog.dataset.leases import Leases
from sharp_cog.dataset.photo import Photo

MAX_BATCHES = 10
"""Maximum batches that are joined while the hub makes the run wait."""

_ROW_FACTS = ("focal_length_px", "focal_length_source", "width", "height", "num_gaussians", "model", "sharp_cog")
"""Facts of the journal that a row of the index repeats."""


class Share(Protocol):
    """Shares one splat at another service; an error there never fails the photograph."""

    def __call__(self, photo: Photo, splats: dict[str, Path]) -> dict[str, str]:
        """Share a photograph's splats, given by format, and return fields for its row of the index."""
        ...


class Publisher:
    """Takes photographs that have splats through the last steps."""

    def __init__(
        self,
        settings: DatasetSettings,
        journal: Journal,
        *,
        leases: Leases | None = None,
        dataset: HubDataset | None = None,
        share: Share | None = None,
    ) -> None:
        """Create the step; nothing is published yet.

        Args:
            settings: Settings of the run.
            journal: Journal of the run.
            leases: Leases of this client; None if it works alone.
            dataset: The published dataset; None keeps the splats on this machine.
            share: Called for each splat before it is published.
        """
        self._settings, self._journal = settings, journal
        self._leases, self._dataset, self._share = leases, dataset, share

    def requeue_incomplete(self) -> None:
        """Have splats made again that lack a file or a fact for the index, such as a file that was deleted."""
        for entry in self._journal.entries("made"):
            if not self._is_complete(entry):
                self._journal.advance(entry.photo.id, "seen")

    def _is_complete(self, entry: Entry) -> bool:
        files = [self._settings.images_dir / entry.about.get("image", ""), *self._splats(entry).values()]
        has_facts = {"splats", "sha256", *_ROW_FACTS} <= entry.about.keys()
        return has_facts and all(path.is_file() for path in files)

    def share_all(self, made: BoundedQueue[str], shared: BoundedQueue[str]) -> None:
        """Share photographs and upload their files in advance, one after another; for many threads at once."""
        while (photo_id := made.take()) is not None:
            entry = self._entry(photo_id)
            # After a restart the splat may be shared already, and a second page would appear.
            if self._share is not None and not entry.about.get("gsplat_url"):
                about = self._share(entry.photo, self._splats(entry))
                self._journal.advance(photo_id, "made", **about)
                entry = self._entry(photo_id)
            if self._dataset is not None:
                # Several threads upload at once, and the commit of a hundred photographs then only names the files.
                self._dataset.upload(self._finished(entry))
            if not shared.put(photo_id):
                return

    def publish_all(self, shared: BoundedQueue[str]) -> None:
        """Publish photographs until the queue is exhausted: full batches, and smaller ones after a while."""
        # Without a dataset there is nothing to batch, and each photograph is finished at once.
        every = self._settings.hf_index_flush_every if self._dataset is not None else 1
        batch: list[str] = []
        due = 0.0
        while True:
            photo_id = shared.take(max(0.0, due - time.monotonic()) if batch else None)
            if photo_id is not None:
                # The time counts from the first photograph of a batch.
                due = due if batch else time.monotonic() + self._settings.hf_index_flush_secs
                batch.append(photo_id)
            is_over = shared.is_exhausted
            is_due = is_over or len(batch) >= every or time.monotonic() >= due
            # If the hub made us wait, more photographs than a batch are ready: they join the same commit.
            if batch and is_due and (not len(shared) or len(batch) >= MAX_BATCHES * every):
                self._publish(batch)
                batch = []
            if is_over:
                return

    def _publish(self, photo_ids: list[str]) -> None:
        # The journal comes last: if this process is killed before, the next run finds the photographs in the index or
        # marked as done, and does not publish them twice.
        if self._dataset is not None:
            self._dataset.publish([self._finished(self._entry(photo_id)) for photo_id in photo_ids])
        if self._leases is not None and (self._dataset is None or not self._dataset.ends_leases):
            self._leases.finish(photo_ids)
        self._journal.finish(photo_ids)

    def _finished(self, entry: Entry) -> Finished:
        about = entry.about
        splats = self._splats(entry)
        sha256 = about["sha256"]
        published = self._settings.hf_formats or tuple(splats)
        shared = {name: str(value) for name, value in about.items() if name.startswith("gsplat_")}
        return Finished(
            id=entry.photo.id,
            image=self._settings.images_dir / about["image"],
            splats={name: splats[name] for name in published if name in splats},
            row={
                **entry.photo.row,
                **shared,
                **{name: str(about[name]) for name in _ROW_FACTS},
                # Journals of earlier versions do not record it.
                "assumptions": json.dumps(about["assumptions"]) if "assumptions" in about else "",
                "sha256": json.dumps({name: sha256[name] for name in published if name in sha256}),
            },
        )

    def _splats(self, entry: Entry) -> dict[str, Path]:
        return {name: self._settings.gaussians_dir / file for name, file in entry.about.get("splats", {}).items()}

    def _entry(self, photo_id: str) -> Entry:
        entry = self._journal.get(photo_id)
        assert entry is not None
        return entry
