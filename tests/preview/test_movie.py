"""Images and videos, read back by Pillow and ffmpeg. The command `render` is tested in tests/cli/test_render.py."""

from __future__ import annotations

import io
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from sharp_cog.errors import NotInstalledError, OptionError, OutputError
from sharp_cog.preview import movie
from sharp_cog.preview.movie import MovieWriter, VideoOptions
from tests.preview.scenes import CAMERA, wall

SHORT = VideoOptions(duration_s=0.5, fps=12, width=96, camera_range=0.05)


def frames_of(path: Path) -> tuple[dict[str, object], list[np.ndarray]]:
    """Return the metadata and the frames of a video, decoded by ffmpeg."""
    reader = imageio_ffmpeg.read_frames(str(path))
    metadata = next(reader)
    width, height = metadata["size"]
    return metadata, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def colored(num: int, *, height: int = 64, width: int = 96) -> list[np.ndarray]:
    return [np.full((height, width, 3), 40 * index, dtype=np.uint8) for index in range(num)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "spiral"}, "path is 'spiral': choose one of swipe"),
        ({"duration_s": -1.0}, "duration_s is -1.0: give a number from 0.1 to 600"),
        ({"fps": 0}, "fps is 0: give a number from 1 to 120"),
        ({"width": 100_000}, "width is 100000: give a number from 16 to 4096"),
        ({"camera_range": 1.5}, "camera_range is 1.5: give a number from 0 to 1"),
        ({"duration_s": float("nan")}, "duration_s is nan"),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        VideoOptions(**values)  # type: ignore[arg-type]


def test_a_video_has_at_least_one_frame() -> None:
    assert VideoOptions(duration_s=4.0, fps=30).num_frames == 120
    assert VideoOptions(duration_s=0.1, fps=1).num_frames == 1


def test_the_photographs_view_is_upright_and_not_mirrored() -> None:
    image = movie.still(wall(), CAMERA, width=96)
    assert image.shape == (64, 96, 3)
    left, right = image[32, 20].astype(int), image[32, 76].astype(int)
    assert left[0] > 200 > 50 > left[1]
    assert right[1] > 200 > 50 > right[0]


def test_frames_move_and_their_depth_is_coloured() -> None:
    options = VideoOptions(path="swipe", duration_s=0.5, fps=8, width=96)
    images, depths = zip(*movie.frames(wall(), CAMERA, options), strict=True)
    assert len(images) == options.num_frames == 4
    assert images[0].shape == (64, 96, 3)
    assert not np.array_equal(images[0], images[-1])
    assert depths[0].any()


def test_stereo_is_twice_as_wide_and_its_halves_differ() -> None:
    options = VideoOptions(path="rotate", duration_s=0.1, fps=10, width=96, is_stereo=True)
    ((image, _),) = movie.frames(wall(), CAMERA, options)
    assert image.shape == (64, 192, 3)
    # The left eye sees the edge between red and green farther right.
    left_edge, right_edge = (int((half[32, :, 0] > half[32, :, 1]).sum()) for half in np.split(image, 2, axis=1))
    assert left_edge > right_edge


def test_depth_is_yellow_when_near_violet_when_far_and_black_without_a_surface() -> None:
    colors = movie.in_colors(np.array([[1.0, 10.0, 100.0, 0.0, 0.5]], np.float32), 1.0, 10.0)
    assert colors.tolist() == [[[253, 231, 37], [68, 1, 84], [68, 1, 84], [0, 0, 0], [253, 231, 37]]]


def test_the_output_format_mp4_is_a_video(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(movie, "MP4_OPTIONS", SHORT)
    file = io.BytesIO()
    movie.write_mp4(file, wall(), CAMERA)
    (tmp_path / "wall.mp4").write_bytes(file.getvalue())
    metadata, frames = frames_of(tmp_path / "wall.mp4")
    assert (metadata["size"], metadata["fps"], len(frames)) == ((96, 64), 12, 6)
    assert frames[0][32, 15, 0] > 150 > frames[0][32, 15, 1]


def test_a_preview_is_an_animated_webp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(movie, "PREVIEW_OPTIONS", SHORT)
    movie.write_preview(tmp_path / "wall.webp", wall(), CAMERA)
    with Image.open(tmp_path / "wall.webp") as video:
        assert video.size == (96, 64)
        assert 2 <= getattr(video, "n_frames", 1) <= 6  # Pillow joins equal frames.


@pytest.mark.parametrize(("width", "height", "size"), [(96, 64, (96, 64)), (97, 63, (98, 64))])
def test_an_mp4_of_an_odd_size_is_scaled_to_an_even_one(
    width: int, height: int, size: tuple[int, int], tmp_path: Path
) -> None:
    writer = MovieWriter(tmp_path / "grey.mp4", fps=10)
    for frame in colored(5, width=width, height=height):
        writer.add(frame)
    writer.close()
    metadata, frames = frames_of(tmp_path / "grey.mp4")
    assert metadata["size"] == size
    assert [int(frame.mean()) for frame in frames] == pytest.approx([0, 40, 80, 120, 160], abs=2)
    assert list(tmp_path.iterdir()) == [tmp_path / "grey.mp4"]


def test_a_webp_repeats_forever(tmp_path: Path) -> None:
    writer = MovieWriter(tmp_path / "grey.webp", fps=10)
    for frame in colored(4):
        writer.add(frame)
    writer.close()
    with Image.open(tmp_path / "grey.webp") as video:
        assert (getattr(video, "n_frames", 1), video.info["loop"], video.size) == (4, 0, (96, 64))


def test_other_suffixes_of_videos_are_refused() -> None:
    with pytest.raises(OptionError, match=r"film\.gif is not a video: name it \.mp4 or \.webp"):
        MovieWriter(Path("film.gif"), fps=10)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_image_is_written_by_its_suffix(suffix: str, tmp_path: Path) -> None:
    path, pixels = tmp_path / f"wall{suffix}", movie.still(wall(), CAMERA, width=96)
    movie.write_image(path, pixels)
    with Image.open(path) as image:
        assert image.format == suffix[1:].upper()
        assert np.abs(np.asarray(image).astype(int) - pixels).mean() < (1 if suffix == ".png" else 5)


def test_a_failure_of_ffmpeg_is_reported_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: "/bin/false")
    writer = MovieWriter(tmp_path / "grey.mp4", fps=10)
    for frame in colored(2):
        writer.add(frame)
    with pytest.raises(OutputError, match=r"cannot write .*grey\.mp4: ffmpeg ended with 1 \(without a message\)"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    movie.require_renderer()
    movie.require_ffmpeg()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "imageio_ffmpeg" else name)
    movie.require_renderer()
    with pytest.raises(NotInstalledError, match=r"\(imageio_ffmpeg is missing\): run \.venv/bin/pip install -e"):
        movie.require_ffmpeg()
