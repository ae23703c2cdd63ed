"""The formats that the names of outputs select, and the existing files that are never replaced."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharp_cog import formats
from sharp_cog.cli.targets import Existing, format_of_output, names_a_file
from sharp_cog.config.options import OutputOptions
from sharp_cog.depth.files import write_metric_npy
from sharp_cog.errors import InputError, OptionError
from sharp_cog.preview import movie
from tests.splats import CAMERA, random_gaussians

REPLACING = Existing(overwrite=False, skip=False)


@pytest.mark.parametrize(
    ("output", "expected"),
    [(None, "ply"), ("folder/", "ply"), ("splats", "ply"), ("a.spz", "spz"), ("a.compressed.ply", "compressed_ply")],
)
def test_the_suffix_selects_the_format(output: str | None, expected: str) -> None:
    assert format_of_output(output) == expected


@pytest.mark.parametrize("output", ["holiday.jpg", "HOLIDAY.PNG", "a.heic", "film.mov", "a.webp"])
def test_the_suffix_of_an_image_or_a_video_is_refused(output: str) -> None:
    with pytest.raises(OptionError, match=r"has no suffix of \.ply.*use --format"):
        format_of_output(output)


def test_files_are_told_from_folders_by_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "folder.spz").mkdir()
    assert names_a_file("x.spz")
    assert names_a_file("x.npy")
    assert not any(map(names_a_file, ("splats", "splats.2026", "x.spz/", str(tmp_path / "folder.spz"))))


def test_splats_replace_splats_and_nothing_else(tmp_path: Path) -> None:
    for name in ("ply", "apple_ply", "compressed_ply", "splat", "spz", "sog", "glb"):
        path = tmp_path / f"{name}{formats.FORMATS[name].suffix}"
        formats.write(path, random_gaussians(3), CAMERA, OutputOptions(output_format=name))
        assert REPLACING.leaves([path], is_splat_format=True) == [path]
    others = {
        "photo.ply": b"\xff\xd8\xff\xe0 JPEG",
        "mesh.ply": b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n",
        "notes.txt": b"words",
        "page.html": b"<!doctype html><p>A page of the user",
        "records.spz": gzip.compress(b"a log"),
        "model.glb": b"glTF\2\0\0\0 without splats",
        "odd.splat": b"33 bytes are not records, whose..",
        "text.splat": b"A text of 32 bytes, not records." + bytes([255]) * 32,
    }
    for name, content in others.items():
        path = tmp_path / name
        path.write_bytes(content)
        for overwrite in (False, True):
            with pytest.raises(InputError, match=rf"{name} exists and is not a splat: nothing was written"):
                Existing(overwrite=overwrite, skip=False).leaves([path], is_splat_format=True)
        assert path.read_bytes() == content
    with zipfile.ZipFile(tmp_path / "backup.sog", "w") as archive:
        archive.writestr("letter.txt", "words")
    with pytest.raises(InputError, match="is not a splat"):
        REPLACING.leaves([tmp_path / "backup.sog"], is_splat_format=True)


def test_images_replace_our_own_unless_overwrite_is_given(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    for suffix in (".png", ".webp"):
        movie.write_image(tmp_path / f"ours{suffix}", pixels)
        Image.fromarray(pixels).save(tmp_path / f"theirs{suffix}")
    write_metric_npy(tmp_path / "ours.npy", np.ones((2, 2), np.float32))
    np.save(tmp_path / "theirs.npy", np.ones((2, 2)))
    writer = movie.MovieWriter(tmp_path / "ours.mp4", fps=2)
    writer.add(pixels)
    writer.close()
    (tmp_path / "theirs.mp4").write_bytes(b"\0\0\0\x18ftypisom another film")
    for suffix in (".png", ".webp", ".npy", ".mp4"):
        ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
        assert REPLACING.leaves([ours], is_splat_format=False) == [ours]
        with pytest.raises(InputError, match=f"theirs{suffix} exists and is not from sharp-cog.*--overwrite"):
            REPLACING.leaves([ours, theirs], is_splat_format=False)
        assert Existing(overwrite=True, skip=False).leaves([theirs], is_splat_format=False) == [theirs]


def test_empty_files_and_missing_ones_are_written(tmp_path: Path) -> None:
    (tmp_path / "empty.ply").touch()
    paths = [tmp_path / "empty.ply", tmp_path / "none.ply"]
    assert REPLACING.leaves(paths, is_splat_format=True) == paths


def test_existing_outputs_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = formats.write(tmp_path / "a.ply", random_gaussians(3), CAMERA, OutputOptions())
    paths = [done, tmp_path / "b.ply"]
    assert Existing(overwrite=False, skip=True).leaves(paths, is_splat_format=True) == [tmp_path / "b.ply"]
    assert "1 of 2 outputs exist already and are skipped" in capsys.readouterr().out


def test_overwrite_and_skip_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="--overwrite and --skip-existing are both given"):
        Existing(overwrite=True, skip=True)
