"""A published dataset in a repository of the hub: images, splats, index, dataset card, and marks of finished work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sharp_cog.dataset.hub import HubRepo, HubView
from sharp_cog.dataset.index import Index, full_row
from sharp_cog.dataset.leases import Leases
from sharp_cog.dataset.store import Change, Delete, Put


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A photograph whose splats are on disk.

    Attributes:
        id: Id of the photograph.
        image: Path of its image.
        splats: Paths of its splats by format.
        row: Its row of the index, without addresses and paths in the repository.
    """

    id: str
    image: Path
    splats: Mapping[str, Path]
    row: Mapping[str, str] = field(default_factory=dict)


class HubDataset:
    """One dataset; everything that other clients publish meanwhile stays."""

    def __init__(self, repo: HubRepo, *, subdir: str, index_path: str, cache: Path, leases: Leases | None) -> None:
        """Create the local copy of the index; nothing is published yet.

        Args:
            repo: The repository.
            subdir: Its folder of images and splats.
            index_path: Path of its index.
            cache: File on this machine for the index as it was last seen.
            leases: Leases in the same repository, which publishing ends in its own commit.
        """
        self._repo, self._subdir, self._leases = repo, subdir.strip("/"), leases
        self._index = Index(index_path.strip("/"), cache)

    @property
    def ends_leases(self) -> bool:
        """Whether publishing a photograph ends the lease on it."""
        return self._leases is not None

    def upload(self, photo: Finished) -> None:
        """Upload a photograph's files before the commit that adds them.

        Raises:
            HubError: The hub refuses, or cannot be reached.
        """
        self._repo.upload(self._files(photo))

    def publish(self, finished: Sequence[Finished]) -> None:
        """Publish photographs in one commit with their rows, and end the leases on them.

        Photographs that are in the index already stay unchanged.

        Raises:
            HubError: The hub refuses, or cannot be reached.
        """
        ids = {photo.id for photo in finished}
        # One draft for each try: the index may have grown between two of them.
        drafts: list[Path] = []

        def decide(view: HubView) -> tuple[Change, list[str]]:
            # If the answer to the last try was lost, the photographs are in the index now, and are not added again.
            self._index.update(view)
            new = [photo for photo in finished if photo.id not in self._index.ids]
            operations: list[Put | Delete] = [file for photo in new for file in self._files(photo)]
            if new:
                drafts.append(self._index.draft(self._row(photo) for photo in new))
                operations.append(Put(path=self._index.path_in_repo, content=drafts[-1]))
                if not view.existing(["README.md"]):
                    text = _card(self._repo.repo_id, self._index.path_in_repo)
                    operations.append(Put(path="README.md", content=text.encode()))
            # In the same commit: no photograph is published and still leased, and an hour has only 128 commits.
            if self._leases is not None:
                operations += self._leases.end_operations(view, ids, ids)
            return Change(operations=operations, message=f"add {len(new)} splats"), [photo.id for photo in new]

        try:
            new_ids = self._repo.change(decide)
            if new_ids:
                # The last draft is the one that was committed; those of the tries before are deleted below.
                self._index.accept(drafts.pop(), new_ids)
        finally:
            for path in drafts:
                path.unlink(missing_ok=True)
        if self._leases is not None:
            self._leases.forget(ids)

    def _files(self, photo: Finished) -> list[Put]:
        return [
            Put(path=self._path(photo.id, path), content=path)
            # `ply` and `apple_ply` have the same suffix, so two formats may name one file.
            for path in dict.fromkeys((photo.image, *photo.splats.values()))
        ]

    def _path(self, photo_id: str, path: Path) -> str:
        """Return the path of a photograph's file in the repository."""
        return f"{self._subdir}/{photo_id}/{path.name}".lstrip("/")

    def _row(self, photo: Finished) -> dict[str, str]:
        """Return a photograph's row of the index."""
        image_path = self._path(photo.id, photo.image)
        splat_paths = {name: self._path(photo.id, path) for name, path in photo.splats.items()}
        return full_row(
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


def _card(repo_id: str, index_path: str) -> str:
    """Return the dataset card, which the hub shows as README.md."""
    return f"""---
license: other
license_name: see-the-rows
tags:
- 3d-gaussian-splatting
- image-to-3d
- sharp
configs:
- config_name: default
  data_files:
  - split: train
    path: {index_path}
---

# {repo_id.partition("/")[2] or repo_id}

Photographs and their 3D Gaussian splats, each predicted from the one photograph by Apple's
[SHARP](https://arxiv.org/abs/2512.10685), written by sharp_cog.

Each line of `{index_path}` is a photograph: `image_id`, `image_path` and `image_url`, `splat_paths` (a JSON object by
format) and `ply_url`, `spz_url`, `num_gaussians`, `focal_length_px`, `sha256` (a JSON object by format), the
photographer (`user_name`, `user_username`, `user_url`), the origin (`unsplash_url`), the licence (`license`,
`license_url`), and the description (`tags_text`, `topics_text`, `alt_description`, `description`). All values are
strings. Lengths in the splats are metres; the photograph's camera is the origin.

The photographs belong to their photographers, under the licence that each row names. The splats were made with a model
that is for non-commercial research only; read its licence before you use them:

> Apple Machine Learning Research Model is licensed under the Apple Machine Learning Research Model License Agreement.
"""
