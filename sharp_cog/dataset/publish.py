"""Finished photographs into a repository of the hub: pictures, splats, index and marks in one commit for many."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd

from sharp_cog.dataset.card import card
from sharp_cog.dataset.claims import HubClaims
from sharp_cog.dataset.hub import Change, HubRepo, Operation, View

PUBLIC_FIELDS = (
    *("image_id", "image_url", "ply_url", "spz_url", "gsplat_url", "gsplat_share_id", "gsplat_order_id"),
    *("gsplat_model_file_url", "tags", "topics", "tags_text", "topics_text", "alt_description", "description"),
    *("unsplash_id", "unsplash_url", "created_at", "user_username", "user_name"),
)
"""Of the public pipeline's index, which ours can be read with."""
OWN_FIELDS = (
    *("user_url", "license", "license_url", "image_path", "splat_paths", "sha256", "focal_length_px"),
    *("focal_length_source", "width", "height", "num_gaussians", "model", "sharp_cog"),
)
"""What we add. All values are strings; `splat_paths` and `sha256` are JSON objects by format."""


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
    """Publishes to one repository; what another client has published meanwhile stays."""

    def __init__(self, repo: HubRepo, *, subdir: str, index_path: str, claims: HubClaims | None) -> None:
        self._repo, self._subdir, self._index_path, self._claims = repo, subdir.strip("/"), index_path, claims

    def publish(self, finished: Sequence[Finished]) -> None:
        """Publishes photographs in one commit, with their rows, and ends our claims on them.

        Raises:
            HubError: The hub does not take them.
        """
        # Large files are sent once, however often the commit is tried: an operation remembers that.
        files = {photo.id: self._files(photo) for photo in finished}

        def decide(view: View) -> tuple[Change, None]:
            rows = read_rows(view.read(self._index_path))
            published = {row.get("image_id") for row in rows}
            new = [photo for photo in finished if photo.id not in published]
            operations: list[Operation] = [operation for photo in new for operation in files[photo.id]]
            if new:
                rows += [self.row(photo) for photo in new]
                operations.append(_text(self._index_path, write_rows(rows)))
                if "README.md" not in view.existing(["README.md"]):
                    operations.append(_text("README.md", card(self._repo.repo_id, self._index_path).encode()))
            if self._claims is not None:
                ids = [photo.id for photo in finished]
                operations += [*self._claims.ending(view, ids), *self._claims.marks(view, ids)]
            return Change(operations=operations, message=f"add {len(new)} splats"), None

        self._repo.change(decide)
        if self._claims is not None:
            self._claims.forget([photo.id for photo in finished])

    def published(self) -> set[str]:
        """Ids of all photographs in the index."""
        return {row.get("image_id", "") for row in read_rows(self._repo.look().read(self._index_path))}

    def _files(self, photo: Finished) -> list[CommitOperationAdd]:
        paths = {self.path(photo.id, photo.image): photo.image}
        paths |= {self.path(photo.id, path): path for path in photo.splats.values()}
        return [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in paths.items()]

    def path(self, photo_id: str, path: Path) -> str:
        """Where a file of a photograph lies in the repository."""
        return f"{self._subdir}/{photo_id}/{path.name}"

    def url(self, path: str) -> str:
        """The address of a file in the repository."""
        kind = "" if self._repo.repo_type == "model" else f"{self._repo.repo_type}s/"
        return f"{self._repo.api.endpoint}/{kind}{self._repo.repo_id}/resolve/main/{path}"

    def row(self, photo: Finished) -> dict[str, str]:
        """A photograph's row of the index: every field, all of them strings."""
        image_path = self.path(photo.id, photo.image)
        splat_paths = {name: self.path(photo.id, path) for name, path in photo.splats.items()}
        known: dict[str, str] = {
            **photo.row,
            "image_id": photo.id,
            "image_path": image_path,
            "image_url": self.url(image_path),
            "splat_paths": json.dumps(splat_paths),
            **{f"{name}_url": self.url(splat_paths[name]) for name in ("ply", "spz") if name in splat_paths},
        }
        return {name: str(known.get(name, "")) for name in (*PUBLIC_FIELDS, *OWN_FIELDS)}


def read_rows(content: bytes | None) -> list[dict[str, Any]]:
    """The rows of an index, one JSON object a line; none where there is none."""
    return [json.loads(line) for line in (content or b"").decode("utf-8").splitlines() if line.strip()]


def write_rows(rows: Collection[Mapping[str, Any]]) -> bytes:
    """An index of rows."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode("utf-8")


def _text(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
