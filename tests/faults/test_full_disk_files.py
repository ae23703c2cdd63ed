"""A disk that is full at any byte of a file: an error, no partial file, and the next write works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sharp_cog import PredictOptions
from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.errors import OutputError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.pipeline import output
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.preview import movie
from sharp_cog.serving import answers
from tests.faults.disks import KINDS, PAGE_BYTES, LimitedFiles, SmallDisk, disk, may_mount, unchanged
from tests.formats.cases import PAGE
from tests.splats import CAMERA, random_gaussians

Write = Callable[[Path, Path], object]
"""Function that writes a file, given its path and the folder of a viewer."""


def splat(output_format: str) -> Write:
    def write(path: Path, viewer: Path) -> object:
        return output.write(
            path, random_gaussians(2000), CAMERA, PredictOptions(output_format=output_format), viewer_dir=viewer
        )

    return write


def film(path: Path, viewer: Path) -> None:
    noise = np.random.default_rng(0)
    writer = movie.MovieWriter(path, fps=12)
    for _ in range(6):
        writer.add(noise.integers(0, 255, (95, 127, 3), dtype=np.uint8))
    writer.close()


def preview(path: Path, viewer: Path) -> None:
    movie.write_preview(path, random_gaussians(2000), CAMERA)


def picture(path: Path, viewer: Path) -> None:
    movie.write_image(path, np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8))


def arrays(write: Callable[[Path, Prediction], None]) -> Write:
    prediction = Prediction(
        predicted=random_gaussians(2000), camera=CAMERA, options=PredictOptions(), timings={"network": 1.0}
    )
    return lambda path, viewer: write(path, prediction)


WRITES: dict[str, Write] = {
    **{f"splat.{name}": splat(name) for name in OUTPUT_FORMATS},
    "film.mp4": film,
    "film.webp": film,
    "preview.webp": preview,
    "picture.png": picture,
    "arrays.json": arrays(answers.write_json),
    "arrays.json.gz": arrays(answers.write_gzipped_json),
    "arrays.npz": arrays(answers.write_npz),
}


@pytest.fixture
def viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a viewer for pages, and shorten videos."""
    monkeypatch.setattr(movie, "MP4_OPTIONS", movie.VideoOptions(duration_s=0.2, fps=10, width=64, camera_range=0.0))
    options = movie.VideoOptions(duration_s=0.2, fps=10, width=64, camera_range=0.0)
    monkeypatch.setattr(movie, "PREVIEW_OPTIONS", options)
    folder = tmp_path / "viewer"
    folder.mkdir()
    for name, text in {"index.html": PAGE, "index.css": "", "index.js": "export const createViewer = 1;\n"}.items():
        (folder / name).write_text(text)
    return folder


def positions(full: LimitedFiles | SmallDisk, num_bytes: int, count: int) -> list[int]:
    """Return positions in a file at which the disk is full, from the start to the last byte or page."""
    last = num_bytes - 1 if isinstance(full, LimitedFiles) else (num_bytes - 1) // PAGE_BYTES * PAGE_BYTES
    return sorted({last * part // (count - 1) for part in range(count)})


def check(kind: str, folder: Path, name: str, viewer: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with disk(kind, folder) as full:
        monkeypatch.setattr("tempfile.tempdir", str(full.path))
        target = full.path / name
        WRITES[name](target, viewer)
        whole = target.read_bytes()
        target.write_bytes(b"old")
        for position in positions(full, len(whole), count):
            with unchanged(full.path), full.full_after(position), pytest.raises(OutputError, match="cannot write"):
                WRITES[name](target, viewer)
        WRITES[name](target, viewer)
        assert target.read_bytes() == whole


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_leaves_the_old_file_and_no_other(
    name: str, tmp_path: Path, viewer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check("limit on files", tmp_path, name, viewer, 3, monkeypatch)


@pytest.mark.skipif(not may_mount(), reason="this process may not mount a file system")
@pytest.mark.parametrize("name", ["splat.ply", "splat.mp4", "film.webp"])
def test_a_small_file_system_leaves_the_old_file_and_no_other(
    name: str, tmp_path: Path, viewer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check("file system", tmp_path, name, viewer, 2, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRITES)
def test_a_disk_that_is_full_at_any_byte_leaves_the_old_file_and_no_other(
    kind: str, name: str, tmp_path: Path, viewer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(kind, tmp_path, name, viewer, 101, monkeypatch)


@pytest.mark.skipif("file system" not in KINDS, reason="a limit on files is another error than a full disk")
def test_the_error_for_a_full_disk_includes_the_free_space(tmp_path: Path) -> None:
    with (
        disk("file system", tmp_path) as full,
        full.full_after(0),
        pytest.raises(OutputError, match=r"No space left on device, 0\.0 MB are free"),
        open_atomically(full.path / "a.ply") as file,
    ):
        file.write(bytes(PAGE_BYTES + 1))
