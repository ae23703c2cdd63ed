"""A folder of images as a source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sharp_cog.dataset.folder import Folder
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import SourceError


def test_images_of_all_subfolders_come_with_their_depth_maps(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", "a/c.depth.png", "notes.txt", ".hidden.jpg", "a/d.heic", "x.depth.npy", "x.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    found = list(Folder(tmp_path).photos(lambda _: False))
    assert [Path(item.where).relative_to(tmp_path).as_posix() for item in found] == [
        *("a/c.png", "a/d.heic", "b.JPG", "x.webp")
    ]
    assert [Path(item.depth).name for item in found] == ["c.depth.png", "", "", "x.depth.npy"]
    assert len({item.id for item in found}) == 4
    assert found[0].id.startswith("a-c-")
    assert [item.id for item in Folder(tmp_path).photos(lambda _: False)] == [item.id for item in found]
    assert [item.id for item in Folder(tmp_path).photos(lambda name: name != found[2].id)] == [found[2].id]


def test_our_own_outputs_are_no_photographs(tmp_path: Path) -> None:
    for name in ("photo.jpg", "photo.preview.webp", "photo_internal_depth.png"):
        (tmp_path / name).write_bytes(b"1")
    assert [Path(item.where).name for item in Folder(tmp_path).photos(lambda _: False)] == ["photo.jpg"]


def test_a_file_name_that_is_not_utf8_works(tmp_path: Path) -> None:
    """Disks that were written by systems of the nineties have such names."""
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(path, "wb") as file:
        file.write(b"image")
    folder = Folder(tmp_path)
    (found,) = folder.photos(lambda _: False)
    assert found.id.startswith("caf-")
    assert folder.fetch(found) == b"image"
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add([found])
    (entry,) = journal.entries("seen")
    assert folder.fetch(entry.photo) == b"image"


def test_a_folder_without_images_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "room.depth.png").write_bytes(b"a depth map")
    assert list(Folder(tmp_path).photos(lambda _: False)) == []
    assert f"the folder {tmp_path} has no images" in caplog.text
    assert ".jpg" in caplog.text


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(10**12)
    folder = Folder(tmp_path)
    (found,) = folder.photos(lambda _: False)
    with pytest.raises(SourceError, match="200 MB"):
        folder.fetch(found)


def test_equal_names_in_two_folders_are_two_photographs(tmp_path: Path) -> None:
    ids = set()
    for folder, content in (("mine", b"1"), ("yours", b"22")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "IMG_0001.jpg").write_bytes(content)
        ids |= {item.id for item in Folder(tmp_path / folder).photos(lambda _: False)}
    assert len(ids) == 2
