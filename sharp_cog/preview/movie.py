"""Pictures and videos of a splat along a camera path."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sharp_cog.errors import NotInstalledError, OptionError, OutputError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.transform import FAR_SHARE, FOCUS_SHARE, NEAR_SHARE, depths_ahead
from sharp_cog.preview.holes import reach_without_holes
from sharp_cog.preview.path import PATHS, camera_path
from sharp_cog.preview.render import Pixels, render
from sharp_cog.preview.view import View

SUFFIXES = (".mp4", ".webp", ".png")
EYE_DISTANCE_M = 0.063
_MAX_SIDE_PX = 4096

_CRF = "10"
"""Of x264, from 0, which loses nothing, to 51."""

# Nearest to farthest: dark violet, blue, green, yellow.
_COLORS = np.array(
    [[253, 231, 37], [122, 209, 81], [34, 168, 132], [42, 120, 142], [65, 68, 135], [68, 1, 84]], dtype=np.float32
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """How a splat is filmed.

    Attributes:
        path: One of `sharp_cog.preview.path.PATHS`.
        duration_s: Length of a video in seconds.
        fps: Frames a second.
        width: Width of a frame in pixels; its height follows from the photograph's.
        reach: How far the camera moves, as `sharp_cog.preview.path.DEFAULT_RANGE`; None goes that far if holes stay out
            of sight, else less.
        is_stereo: Two views side by side, an eye's distance apart, for headsets.

    Raises:
        OptionError: A value is out of its range.
    """

    path: str = "rotate_forward"
    duration_s: float = 4.0
    fps: int = 30
    width: int = 768
    reach: float | None = None
    is_stereo: bool = False

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise OptionError(f"path is {self.path!r}: choose one of {', '.join(PATHS)}")
        limits = {"duration_s": (0.1, 600), "fps": (1, 120), "width": (16, _MAX_SIDE_PX), "reach": (0, 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise OptionError(f"{name} is {value}: give a number from {low} to {high}")

    @property
    def num_frames(self) -> int:
        """Number of frames of the video, at least one."""
        return max(1, round(self.duration_s * self.fps))


def frames(gaussians: Gaussians, camera: Camera, shot: Shot) -> Iterator[tuple[Pixels, Pixels]]:
    """Renders a shot: pictures, and their depth in colours (near is yellow, far is violet), both (height, width, 3)."""
    photograph = View.of_photograph(camera, width=shot.width)
    near_m, focus_m, far_m = depths_ahead(gaussians, NEAR_SHARE, FOCUS_SHARE, FAR_SHARE)
    reach = shot.reach
    if reach is None:
        reach = reach_without_holes(gaussians, camera, shot.path, near_m=near_m, focus_m=focus_m)
    poses = camera_path(
        shot.path, num_frames=shot.num_frames, camera=camera, near_m=near_m, focus_m=focus_m, reach=reach
    )
    for pose in poses:
        eyes = (-EYE_DISTANCE_M / 2, EYE_DISTANCE_M / 2) if shot.is_stereo else (0.0,)
        seen = [render(gaussians, photograph.moved(_beside(pose, shift_m))) for shift_m in eyes]
        picture = np.concatenate([pixels for pixels, _ in seen], axis=1)
        yield picture, in_colors(np.concatenate([depth for _, depth in seen], axis=1), near_m, far_m)


def still(gaussians: Gaussians, camera: Camera, *, width: int) -> Pixels:
    """The photograph's own view, (height, width, 3)."""
    return render(gaussians, View.of_photograph(camera, width=width))[0]


FILM = Shot()
"""What the output format mp4 is."""


def write_mp4(file: BinaryIO, gaussians: Gaussians, camera: Camera, frame: object = None) -> None:
    """Writes `FILM` as .mp4: what the output format of that name is.

    Args:
        file: Where to.
        gaussians: N Gaussians on any device, OpenCV axes, the photograph's camera at the origin.
        camera: The photograph's camera.
        frame: Always that one.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    del frame
    require_ffmpeg()
    with ScratchFolder() as folder:  # ffmpeg wants a name that it can seek in.
        writer = MovieWriter(folder / "film.mp4", fps=FILM.fps)
        for picture in _film(gaussians, camera, FILM):
            writer.add(picture)
        writer.close()
        with writer.path.open("rb") as film:
            shutil.copyfileobj(film, file)


PREVIEW = Shot(duration_s=2.5, fps=12, width=384)
"""A film that is small enough for a folder of them, or a page."""


def write_preview(path: Path, gaussians: Gaussians, camera: Camera) -> None:
    """Writes a small animated .webp of a splat.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
        OutputError: The file cannot be written.
    """
    writer = MovieWriter(path, fps=PREVIEW.fps)
    for picture in _film(gaussians, camera, PREVIEW):
        writer.add(picture)
    writer.close()


def _film(gaussians: Gaussians, camera: Camera, shot: Shot) -> Iterator[Pixels]:
    """The pictures of a shot, with a bar on a terminal: on a CPU a film takes the better part of a minute."""
    shown = tqdm(
        frames(gaussians, camera, shot),
        total=shot.num_frames,
        unit="frame",
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    for picture, _ in shown:
        yield picture


def require_renderer() -> None:
    """Checks that views can be rendered.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    _require("numba")


def require_ffmpeg() -> None:
    """Checks that films can be rendered, and encoded as .mp4.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    _require("numba", "imageio_ffmpeg")


def _require(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise NotInstalledError(
                f"films need the extra 'preview' ({package} is missing): run .venv/bin/pip install -e '.[preview]'"
            )


class MovieWriter:
    """Writes frames to an .mp4 or an animated .webp, which appears whole or not at all."""

    def __init__(self, path: Path, *, fps: int) -> None:
        """Opens nothing yet.

        Args:
            path: Its suffix tells the format.
            fps: Frames a second.

        Raises:
            OptionError: Another suffix.
        """
        if path.suffix.lower() not in (".mp4", ".webp"):
            raise OptionError(f"{path} is not a video: name it .mp4 or .webp")
        self.path, self.fps, self.pictures = path, fps, list[Pixels]()

    def add(self, picture: Pixels) -> None:
        """Takes a frame, (height, width, 3)."""
        self.pictures.append(picture)

    def close(self) -> None:
        """Writes the file.

        Raises:
            OutputError: The file cannot be written.
            NotInstalledError: ffmpeg, of the extra `preview`, is not installed.
        """
        if self.path.suffix.lower() == ".webp":
            first, *rest = [Image.fromarray(picture) for picture in self.pictures]
            with open_atomically(self.path) as file:
                first.save(
                    file,
                    "WEBP",
                    save_all=True,
                    append_images=rest,
                    duration=1000 / self.fps,
                    loop=0,
                    quality=75,
                    method=2,
                )
            return
        self._write_mp4()

    def _write_mp4(self) -> None:
        require_ffmpeg()
        with open_atomically(self.path) as file:
            failure = _encode_mp4(self.pictures, self.fps, file.name)
            if failure:
                raise OutputError(
                    f"cannot write {self.path}: ffmpeg {failure}: check the folder, its rights and the free space"
                )


def _encode_mp4(pictures: Sequence[Pixels], fps: int, name: str) -> str:
    """Encodes pictures into a file that is there; returns what ffmpeg says where it fails, and nothing where it works.

    Not by the package's own writer, which does not tell whether ffmpeg has failed, as it does on a full disk.
    """
    import imageio_ffmpeg

    height, width = pictures[0].shape[:2]
    read = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    # Colours are stored for blocks of 2 x 2 pixels.
    scaled = ["-vf", f"scale={width + width % 2}:{height + height % 2}"] if width % 2 or height % 2 else []
    encoded = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", _CRF, *scaled]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *read, *encoded, "-f", "mp4", "-y", f"file:{name}"]
    with subprocess.Popen(  # noqa: S603 - our own words, and a name that no shell sees
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as ffmpeg:
        assert ffmpeg.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # It has ended, and says why.
                for picture in pictures:
                    ffmpeg.stdin.write(np.ascontiguousarray(picture).data)
            _, said = ffmpeg.communicate()
        except BaseException:
            ffmpeg.kill()
            raise
    if ffmpeg.returncode == 0:
        return ""
    lines = said.decode(errors="replace").strip().splitlines()
    return f"ended with {ffmpeg.returncode} ({lines[-1][:200] if lines else 'and said nothing'})"


def write_picture(path: Path, picture: Pixels) -> None:
    """Writes one picture as .png or .webp.

    Raises:
        OutputError: The file cannot be written.
    """
    with open_atomically(path) as file:
        Image.fromarray(picture).save(file, "WEBP" if path.suffix.lower() == ".webp" else "PNG")


def _beside(pose: NDArray[np.float64], shift_m: float) -> NDArray[np.float64]:
    """The pose of a camera moved along its own x axis."""
    moved = pose.copy()
    moved[0, 3] -= shift_m
    return moved


def in_colors(depth_m: NDArray[np.float32], near_m: float, far_m: float) -> Pixels:
    """Depth to colours, linear in disparity between the near and the far; black where nothing is."""
    disparity = 1.0 / np.maximum(depth_m, 1e-6)
    span = max(1.0 / near_m - 1.0 / far_m, 1e-9)
    position = np.clip((1.0 / near_m - disparity) / span, 0.0, 1.0) * (len(_COLORS) - 1)
    lower = np.minimum(position.astype(np.int64), len(_COLORS) - 2)
    share = (position - lower)[..., None]
    colors = _COLORS[lower] * (1 - share) + _COLORS[lower + 1] * share
    pixels: Pixels = np.where(depth_m[..., None] > 0, np.round(colors), 0).astype(np.uint8)
    return pixels
