"""Images and videos of a splat along a camera path."""

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
from PIL import ExifTags, Image
from tqdm import tqdm

from sharp_cog.errors import NotInstalledError, OptionError, OutputError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.transform import FAR_SHARE, FOCUS_SHARE, NEAR_SHARE, depths_ahead
from sharp_cog.preview.holes import largest_range_without_holes
from sharp_cog.preview.path import PATHS, camera_path
from sharp_cog.preview.render import Pixels, render
from sharp_cog.preview.view import View

SUFFIXES = (".mp4", ".webp", ".png")
"""Suffixes of the files that can be written: two for videos, and one for an image."""
MARK = "sharp_cog"
"""Text in the metadata of images and videos, by which they are known as our own."""
EYE_DISTANCE_M = 0.063
"""Distance between the two views of a stereo video, in metres: the mean distance of human eyes."""
_MAX_SIDE_PX = 4096

_CRF = "10"
"""Constant rate factor of x264, from 0 (lossless) to 51."""

# Six samples of matplotlib's colour map viridis, in reverse order.
_DEPTH_COLORS = np.array(
    [[253, 231, 37], [122, 209, 81], [34, 168, 132], [42, 120, 142], [65, 68, 135], [68, 1, 84]], dtype=np.float32
)
"""Colours of depths from near to far: yellow, green, blue, dark violet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoOptions:
    """Options of a video of a splat.

    Attributes:
        path: Camera path, one of `sharp_cog.preview.path.PATHS`.
        duration_s: Duration in seconds.
        fps: Frames per second.
        width: Width of a frame in pixels; the height follows from the photograph's aspect ratio.
        camera_range: Extent of the camera's movement, in the unit of `sharp_cog.preview.path.DEFAULT_RANGE`; None means
            the default range, or less where it would show holes.
        is_stereo: Whether two views lie side by side, for headsets.

    Raises:
        OptionError: A value is out of its range.
    """

    path: str = "rotate_forward"
    duration_s: float = 4.0
    fps: int = 30
    width: int = 768
    camera_range: float | None = None
    is_stereo: bool = False

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise OptionError(f"path is {self.path!r}: choose one of {', '.join(PATHS)}")
        limits = {"duration_s": (0.1, 600), "fps": (1, 120), "width": (16, _MAX_SIDE_PX), "camera_range": (0, 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise OptionError(f"{name} is {value}: give a number from {low} to {high}")

    @property
    def num_frames(self) -> int:
        """Number of frames, at least one."""
        return max(1, round(self.duration_s * self.fps))


MP4_OPTIONS = VideoOptions()
"""Options of the output format mp4."""
PREVIEW_OPTIONS = VideoOptions(duration_s=2.5, fps=12, width=384)
"""Options of a preview: small enough for a folder full of them, or for a web page."""


def frames(gaussians: Gaussians, camera: Camera, options: VideoOptions) -> Iterator[tuple[Pixels, Pixels]]:
    """Render the frames of a video.

    Args:
        gaussians: N Gaussians on any device, OpenCV axes, the photograph's camera at the origin.
        camera: Camera of the photograph.
        options: Options of the video.

    Yields:
        For each frame, the image and its depth in colours, both (height, width, 3).

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    photograph = View.of_photograph(camera, width=options.width)
    near_m, focus_m, far_m = depths_ahead(gaussians, NEAR_SHARE, FOCUS_SHARE, FAR_SHARE)
    camera_range = options.camera_range
    if camera_range is None:
        camera_range = largest_range_without_holes(gaussians, camera, options.path, near_m=near_m, focus_m=focus_m)
    poses = camera_path(
        options.path,
        num_frames=options.num_frames,
        camera=camera,
        near_m=near_m,
        focus_m=focus_m,
        camera_range=camera_range,
    )
    for pose in poses:
        # Both eyes look in the direction of the pose; the left one comes first, on the left half.
        eyes = (-EYE_DISTANCE_M / 2, EYE_DISTANCE_M / 2) if options.is_stereo else (0.0,)
        views = [render(gaussians, photograph.moved(_shifted(pose, shift_m))) for shift_m in eyes]
        image = np.concatenate([pixels for pixels, _ in views], axis=1)
        yield image, in_colors(np.concatenate([depth_m for _, depth_m in views], axis=1), near_m, far_m)


def still(gaussians: Gaussians, camera: Camera, *, width: int) -> Pixels:
    """Render the view of the photograph's camera, (height, width, 3).

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    return render(gaussians, View.of_photograph(camera, width=width))[0]


def write_mp4(file: BinaryIO, gaussians: Gaussians, camera: Camera) -> None:
    """Write a video of a splat with `MP4_OPTIONS`.

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device, OpenCV axes, the photograph's camera at the origin.
        camera: Camera of the photograph.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
        OutputError: The video cannot be encoded.
    """
    require_ffmpeg()
    with ScratchFolder() as folder:  # ffmpeg needs a file with a name, in which it can seek.
        path = folder / "video.mp4"
        _write_video(path, gaussians, camera, MP4_OPTIONS)
        with path.open("rb") as video:
            shutil.copyfileobj(video, file)


def write_preview(path: Path, gaussians: Gaussians, camera: Camera) -> None:
    """Write a small animated .webp of a splat.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
        OutputError: The file cannot be written.
    """
    _write_video(path, gaussians, camera, PREVIEW_OPTIONS)


def _write_video(path: Path, gaussians: Gaussians, camera: Camera, options: VideoOptions) -> None:
    # On a CPU, a video takes most of a minute, so terminals show a progress bar.
    rendered = tqdm(
        frames(gaussians, camera, options),
        total=options.num_frames,
        unit="frame",
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    writer = MovieWriter(path, fps=options.fps)
    for image, _ in rendered:
        writer.add(image)
    writer.close()


def require_renderer() -> None:
    """Check that views can be rendered.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    _require("numba")


def require_ffmpeg() -> None:
    """Check that videos can be rendered, and encoded as .mp4.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    _require("numba", "imageio_ffmpeg")


def _require(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise NotInstalledError(
                f"rendering needs the extra 'preview' ({package} is missing): run .venv/bin/pip install -e '.[preview]'"
            )


class MovieWriter:
    """Writes an .mp4 or an animated .webp, which appears whole or not at all.

    Args:
        path: File to write; its suffix selects the format.
        fps: Frames per second.

    Raises:
        OptionError: The suffix is not that of a video.
    """

    def __init__(self, path: Path, *, fps: int) -> None:
        if path.suffix.lower() not in (".mp4", ".webp"):
            raise OptionError(f"{path} is not a video: name it .mp4 or .webp")
        self.path = path
        self._fps = fps
        self._images = list[Pixels]()

    @property
    def num_frames(self) -> int:
        """Number of frames so far."""
        return len(self._images)

    def add(self, image: Pixels) -> None:
        """Add a frame, (height, width, 3)."""
        self._images.append(image)

    def close(self) -> None:
        """Write the file.

        Raises:
            OutputError: The file cannot be written.
            NotInstalledError: ffmpeg, which comes with the extra `preview`, is not installed.
        """
        if self.path.suffix.lower() == ".webp":
            self._write_webp()
        else:
            self._write_mp4()

    def _write_webp(self) -> None:
        first, *rest = [Image.fromarray(image) for image in self._images]
        with open_atomically(self.path) as file:
            # `loop=0` repeats forever. Pillow rounds the times of frames, not the duration, so no time is lost.
            first.save(
                file,
                "WEBP",
                save_all=True,
                append_images=rest,
                duration=1000 / self._fps,
                loop=0,
                quality=75,
                method=2,
                exif=_exif(),
            )

    def _write_mp4(self) -> None:
        require_ffmpeg()
        with open_atomically(self.path) as file:
            # ffmpeg overwrites the temporary file by its name; if it fails, nothing gets the video's name.
            failure = _encode_mp4(self._images, self._fps, file.name)
            if failure:
                raise OutputError(
                    f"cannot write {self.path}: ffmpeg {failure}: check the folder, its permissions and the free space"
                )


def _encode_mp4(images: Sequence[Pixels], fps: int, name: str) -> str:
    """Encode images into an existing file; return ffmpeg's error message, empty on success."""
    import imageio_ffmpeg

    height, width = images[0].shape[:2]
    read = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    # yuv420p stores colours for blocks of 2 x 2 pixels, so both sides must be even.
    scaled = ["-vf", f"scale={width + width % 2}:{height + height % 2}"] if width % 2 or height % 2 else []
    encoded = ["-metadata", f"comment={MARK}", "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", _CRF, *scaled]
    # `-f mp4`, because the temporary file ends with .part; `file:`, because a colon in a name would make it a URL.
    # At this level of messages, stderr cannot fill its pipe and block ffmpeg while the frames are being written.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *read, *encoded, "-f", "mp4", "-y", f"file:{name}"]
    # imageio_ffmpeg's own writer does not report that ffmpeg has failed, for example on a full disk.
    with subprocess.Popen(  # noqa: S603 - fixed arguments and a file name, without a shell
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as ffmpeg:
        assert ffmpeg.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg has ended; its message says why.
                for image in images:
                    ffmpeg.stdin.write(np.ascontiguousarray(image).data)
            _, message = ffmpeg.communicate()
        except BaseException:
            # Leaving the block waits for ffmpeg, which would first encode all that it has received.
            ffmpeg.kill()
            raise
    if ffmpeg.returncode == 0:
        return ""
    lines = message.decode(errors="replace").strip().splitlines()
    return f"ended with {ffmpeg.returncode} ({lines[-1][:200] if lines else 'without a message'})"


def write_image(path: Path, image: Pixels) -> None:
    """Write an image as .png or .webp.

    Raises:
        OutputError: The file cannot be written.
    """
    with open_atomically(path) as file:
        Image.fromarray(image).save(file, "WEBP" if path.suffix.lower() == ".webp" else "PNG", exif=_exif())


def _exif() -> Image.Exif:
    """Return EXIF data that name the software."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = MARK
    return exif


def _shifted(pose: NDArray[np.float64], shift_m: float) -> NDArray[np.float64]:
    """Return the pose of a camera that is moved along its own x axis."""
    moved = pose.copy()
    # The pose maps world to camera: a camera that moves right sees the world move left.
    moved[0, 3] -= shift_m
    return moved


def in_colors(depth_m: NDArray[np.float32], near_m: float, far_m: float) -> Pixels:
    """Convert depth to colours, linear in disparity from `near_m` to `far_m`; pixels without depth are black."""
    # Empty pixels have a depth of 0: any number will do, since they become black at the end.
    disparity = 1.0 / np.maximum(depth_m, 1e-6)
    span = max(1.0 / near_m - 1.0 / far_m, 1e-9)
    position = np.clip((1.0 / near_m - disparity) / span, 0.0, 1.0) * (len(_DEPTH_COLORS) - 1)
    # The last colour is reached from the one before it, with a share of 1.
    lower = np.minimum(position.astype(np.int64), len(_DEPTH_COLORS) - 2)
    share = (position - lower)[..., None]
    colors = _DEPTH_COLORS[lower] * (1 - share) + _DEPTH_COLORS[lower + 1] * share
    pixels: Pixels = np.where(depth_m[..., None] > 0, np.round(colors), 0).astype(np.uint8)
    return pixels
