"""Finding the images of a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sharp_cog.imaging.find import find_images


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"content does not matter")


def names_of(folder: Path, *, recursive: bool = False) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(folder, recursive=recursive)]


def test_images_are_found_by_their_suffixes_in_sorted_order(tmp_path: Path) -> None:
    make(tmp_path, "b.JPG", "a.heic", "c.webp", "notes.txt", "a.ply", "d.png", "no_suffix")
    assert names_of(tmp_path) == ["a.heic", "b.JPG", "c.webp", "d.png"]


def test_folders_below_are_searched_only_on_request(tmp_path: Path) -> None:
    make(tmp_path, "b/1.jpg", "a/b/2.jpg", "3.jpg", "a.jpg")
    assert names_of(tmp_path) == ["3.jpg", "a.jpg"]
    assert names_of(tmp_path, recursive=True) == ["3.jpg", "a/b/2.jpg", "a.jpg", "b/1.jpg"]


@pytest.mark.parametrize(
    "name",
    ["photo.depth.webp", "photo.depth.png", "photo.depths.png", "photo.preview.webp", "photo_internal_depth.png"],
)
def test_our_own_outputs_are_no_images(tmp_path: Path, name: str) -> None:
    make(tmp_path, "photo.jpg", name)
    assert names_of(tmp_path) == ["photo.jpg"]


def test_names_that_only_resemble_our_outputs_are_images(tmp_path: Path) -> None:
    make(tmp_path, "depth.jpg", "preview.webp", "in_depth.png")
    assert names_of(tmp_path) == ["depth.jpg", "in_depth.png", "preview.webp"]


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "._photo.jpg", ".jpg", "photo.jpg")
    assert names_of(tmp_path) == ["photo.jpg"]


def test_a_folder_named_like_an_image_is_searched_and_not_returned(tmp_path: Path) -> None:
    make(tmp_path, "album.jpg/1.png", "2.png")
    assert names_of(tmp_path) == ["2.png"]
    assert names_of(tmp_path, recursive=True) == ["2.png", "album.jpg/1.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    make(tmp_path, "photo.jpg", "folder/1.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "photo.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "missing.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    (tmp_path / "folder" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert names_of(tmp_path, recursive=True) == ["folder/1.jpg", "link.jpg", "photo.jpg"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_named_like_an_image_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names_of(tmp_path) == []


def test_a_folder_that_cannot_be_read_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_images(tmp_path / "missing", recursive=True) == []
    assert f"the folder {tmp_path / 'missing'} cannot be read and is left out" in caplog.text


def test_camera_raws_are_found_where_they_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "a.jpg", "b.CR2", "c.dng", "d.nef", "e.ARW", ".f.raf")
    assert names_of(tmp_path) == ["a.jpg", "b.CR2", "c.dng", "d.nef", "e.ARW"]
    monkeypatch.setattr("sharp_cog.imaging.find.can_develop", lambda: False)
    assert names_of(tmp_path) == ["a.jpg"]
    assert "4 camera raws are left out: install the extra 'raw'" in caplog.text
