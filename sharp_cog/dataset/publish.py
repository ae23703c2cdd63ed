"""Finished photographs into a repository of the hub: pictures, splats, index and marks in one commit for many."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sharp_cog.dataset.card import card
from sharp_cog.dataset.claims import Claims
from sharp_cog.dataset.hub import HubRepo, HubView
from sharp_cog.dataset.index import Index, row_of
from sharp_cog.dataset.store import Change, Delete, Put


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A photograph whose splats are on disk.

    Attributes:
        id: Of the photograph.
        image: Its picture.
        splats: Its splats by format.
        row: Its row of the index, without addresses and paths in the repository.
    """

    id: str
    image: Path
    splats: Mapping[str, Path]
    row: Mapping[str, str] = field(default_factory=dict)


class Publisher:
    """Publishes to one repository; what another client has published meanwhile stays.

    Args:
        repo: The repository.
        subdir: Its folder of pictures and splats.
        index_path: Its index.
        cache: A file for the index as it was last seen.
        claims: Those in the same repository: publishing ends them in its own commit.
    """

    def __init__(self, repo: HubRepo, *, subdir: str, index_path: str, cache: Path, claims: Claims | None) -> None:
        self._repo, self._subdir, self._claims = repo, subdir.strip("/"), claims
        self._index = Index(index_path.strip("/"), cache)

    @property
    def ends_claims(self) -> bool:
        """Whether publishing a photograph ends the claim on it."""
        return self._claims is not None

    def send_ahead(self, photo: Finished) -> None:
        """Sends a photograph's files, before the commit that is to hold them.

        Raises:
            HubError: The hub does not take them.
        """
        self._repo.upload(self._files(photo))

    def publish(self, finished: Sequence[Finished]) -> None:
        """Publishes photographs in one commit, with their rows, and ends our claims on them.

        A photograph that is in the index already is left as it is there.

        Raises:
            HubError: The hub does not take them.
        """
        ids = {photo.id for photo in finished}
        written: list[Path] = []

        def decide(view: HubView) -> tuple[Change, list[str]]:
            self._index.look(view)
            new = [photo for photo in finished if photo.id not in self._index.ids]
            operations: list[Put | Delete] = [file for photo in new for file in self._files(photo)]
            if new:
                written.append(self._index.with_rows(self.row(photo) for photo in new))
                operations.append(Put(path=self._index.path_in_repo, content=written[-1]))
                if not view.existing(["README.md"]):
                    text = card(self._repo.repo_id, self._index.path_in_repo)
                    operations.append(Put(path="README.md", content=text.encode()))
            if self._claims is not None:
                operations += [*self._claims.ending(view, ids), *self._claims.marks(view, ids)]
            return Change(operations=operations, message=f"add {len(new)} splats"), [photo.id for photo in new]

        try:
            new_ids = self._repo.change(decide)
            if new_ids:
                self._index.keep(written.pop(), new_ids)
        finally:
            for path in written:
                path.unlink(missing_ok=True)
        if self._claims is not None:
            self._claims.forget(ids)

    def _files(self, photo: Finished) -> list[Put]:
        return [
            Put(path=self.path(photo.id, path), content=path)
            for path in dict.fromkeys((photo.image, *photo.splats.values()))
        ]

    def path(self, photo_id: str, path: Path) -> str:
        """Where a file of a photograph lies in the repository."""
        return f"{self._subdir}/{photo_id}/{path.name}".lstrip("/")

    def row(self, photo: Finished) -> dict[str, str]:
        """A photograph's row of the index."""
        image_path = self.path(photo.id, photo.image)
        splat_paths = {name: self.path(photo.id, path) for name, path in photo.splats.items()}
        return row_of(
            {
                **photo.row,
                "image_id": photo.id,
                "image_path": image_path,
                "image_url": self._url(image_path),
                "splat_paths": json.dumps(splat_paths),
                **{f"{name}_url": self._url(splat_paths[name]) for name in ("ply", "spz") if name in splat_paths},
            }
        )

    def _url(self, path: str) -> str:
        return f"{self._repo.url}/resolve/main/{path}"
