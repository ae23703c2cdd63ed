"""File formats of splats: the table of codecs, and the functions that write and read any format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharp_cog.config.options import OutputOptions
from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.errors import OptionError, SplatError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.files.read import read_bytes
from sharp_cog.formats.cameras import write_cameras
from sharp_cog.formats.compressed_ply import is_compressed_ply, read_compressed_ply, write_compressed_ply
from sharp_cog.formats.glb import read_glb, write_glb
from sharp_cog.formats.gltf import is_glb
from sharp_cog.formats.html import require_viewer, write_html
from sharp_cog.formats.ksplat import is_ksplat, read_ksplat
from sharp_cog.formats.limits import MAX_LENGTH_M
from sharp_cog.formats.ply import read_ply, write_apple_ply, write_ply
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat
from sharp_cog.formats.sog import META, is_sog, read_sog, write_sog
from sharp_cog.formats.splat import read_splat, write_splat
from sharp_cog.formats.spz import read_spz, require_zstandard, write_spz
from sharp_cog.formats.usdz import is_usdz, read_usdz, require_usd, write_usdz
from sharp_cog.geometry import transform
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.quaternions import to_matrix

__all__ = [
    "CODECS",
    "FORMATS",
    "Codec",
    "Splat",
    "check",
    "detect",
    "format_of",
    "read",
    "to_output_frame",
    "write",
]

FORMATS = OUTPUT_FORMATS


@dataclass(frozen=True, kw_only=True, slots=True)
class Codec:
    """The functions of a format.

    Attributes:
        write: Writes Gaussians, the photograph's camera and their frame to a binary file; None if the format can only
            be read.
        read: Reads a file's content; None if the format can only be written.
        matches: Returns whether a file's content has the format, by its first bytes.
        names: Ends of the names of files that are known to have the format by their names alone.
        has_parts: Whether a file may name others beside it, so that `read` also takes its folder.
    """

    write: Callable[..., None] | None = None
    read: Callable[..., Splat] | None = None
    matches: Callable[[bytes], bool] = lambda content: False
    names: tuple[str, ...] = ()
    has_parts: bool = False


def _starts_with(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda content: content.startswith(prefixes)


CODECS = {
    # Stands before ply, whose magic bytes its files share.
    "compressed_ply": Codec(write=write_compressed_ply, read=read_compressed_ply, matches=is_compressed_ply),
    "ply": Codec(write=write_ply, read=read_ply, matches=_starts_with(b"ply")),
    "apple_ply": Codec(write=write_apple_ply, read=read_ply),  # Detected as ply.
    "splat": Codec(write=write_splat, read=read_splat, names=(".splat",)),  # Has no magic bytes.
    "spz": Codec(write=write_spz, read=read_spz, matches=_starts_with(b"\x1f\x8b", b"NGSP")),
    "sog": Codec(write=write_sog, read=read_sog, matches=is_sog, names=(META,), has_parts=True),
    "glb": Codec(write=write_glb, read=read_glb, matches=is_glb, names=(".gltf",), has_parts=True),
    "usdz": Codec(write=write_usdz, read=read_usdz, matches=is_usdz),
    "ksplat": Codec(read=read_ksplat, matches=is_ksplat),
    # Formats without a reader are matched too, so that `read` can name them in its refusal.
    "html": Codec(write=write_html, matches=_starts_with(b"<!do", b"<!DO")),
}
"""Codecs by the name of the format; the first one that matches a content reads it.

Videos are written by `sharp_cog.pipeline.output`, which is the only place that needs a renderer.
"""


def format_of(path: Path) -> str:
    """Return the name of the format with a file's suffix.

    Raises:
        OptionError: No format has that suffix.
    """
    # The longest suffix counts: .compressed.ply before .ply. Apple's form shares the suffix of the plain one.
    fitting = [format_ for format_ in FORMATS.values() if path.name.lower().endswith(format_.suffix)]
    if not fitting:
        suffixes = ", ".join(dict.fromkeys(format_.suffix for format_ in FORMATS.values()))
        raise OptionError(f"{path} has no suffix of {suffixes}: name it so that the format is clear, or use --format")
    longest = max(len(format_.suffix) for format_ in fitting)
    return next(format_.name for format_ in fitting if len(format_.suffix) == longest)


def check(options: OutputOptions, *, viewer_dir: Path | None = None) -> None:
    """Check that everything the output format needs is installed, before work is done for it.

    Raises:
        NotInstalledError: Something is missing; the message says how to install it.
    """
    if options.output_format == "html":
        require_viewer(viewer_dir)
    elif options.output_format == "spz" and options.spz_version == 4:
        require_zstandard()
    elif options.output_format == "usdz":
        require_usd()


def write(
    path: Path, gaussians: Gaussians, camera: Camera | None, options: OutputOptions, *, viewer_dir: Path | None = None
) -> Path:
    """Write a splat; `path` appears whole or not at all.

    Args:
        path: File to write; the suffix need not be the format's.
        gaussians: N Gaussians on any device, OpenCV axes, the photograph's camera at the origin; all are written.
        camera: Camera of the photograph; None if it is unknown, for formats without `needs_camera`.
        options: The format, and the scale, centre and axes of the scene.
        viewer_dir: Folder of the viewer for html, see `sharp_cog.formats.html.write_html`.

    Returns:
        The path.

    Raises:
        PredictionError: A value is not finite.
        NotInstalledError: The format needs a package that is not installed.
        OutputError: The file cannot be written, or the format cannot hold the scene.
    """
    format_ = FORMATS[options.output_format]
    # Predictions have a camera, and `convert` assumes one for these formats.
    assert camera is not None or not format_.needs_camera
    scene, frame = to_output_frame(gaussians, options, default_axes=format_.axes)
    extra: dict[str, dict[str, Any]] = {
        "html": {"viewer_dir": viewer_dir},
        "spz": {"version": options.spz_version},
        "glb": {"compression": options.glb_compression},
    }
    # Writers may write a header before they find a value that is not finite; the temporary file is then removed.
    writer = CODECS[format_.name].write
    assert writer is not None
    with open_atomically(path) as file:
        writer(file, scene, camera, frame, **extra.get(format_.name, {}))
    if options.cameras_json and camera is not None:
        with open_atomically(path.with_name(f"{path.name.removesuffix(format_.suffix)}.cameras.json")) as file:
            write_cameras(file, camera, frame)
    return path


def to_output_frame(gaussians: Gaussians, options: OutputOptions, *, default_axes: str) -> tuple[Gaussians, Frame]:
    """Scale, move and rotate a scene as the options say.

    Args:
        gaussians: OpenCV axes, the photograph's camera at the origin.
        options: Only `scale`, `center` and `axes` are used.
        default_axes: Axes that `auto` means.

    Returns:
        The scene, and its new frame.
    """
    scene, camera_position = transform.scale_and_center(gaussians, scale=options.scale, is_centred=options.center)
    axes = default_axes if options.axes == "auto" else options.axes
    if axes == "opengl":
        x, y, z = camera_position
        scene, camera_position = transform.opencv_to_opengl(scene), (x, -y, -z)
    return scene, Frame(axes=axes, camera_position=camera_position)


def read(source: Path | str | bytes, *, axes: str = "auto") -> Splat:
    """Read a splat of any format that can be read.

    Args:
        source: Path of a file, or its content.
        axes: Axes of the file; `auto` takes those that the file states, else those of its format.

    Returns:
        The splat in OpenCV axes with the photograph's camera at the origin, like a prediction.

    Raises:
        SplatError: The file cannot be read, has another format, or is broken.
        NotInstalledError: The format needs a package that is not installed.
    """
    path = None if isinstance(source, bytes) else Path(source)
    content = source if isinstance(source, bytes) else read_bytes(Path(source), SplatError)
    name = detect(content, path)
    codec = Codec() if name is None else CODECS[name]
    if codec.read is None:
        raise _refusal(content, path)
    splat = codec.read(content, path.parent) if codec.has_parts and path is not None else codec.read(content)
    frame = splat.frame or PHOTOGRAPH_FRAME
    # The camera's position is in the file's axes, so the translation comes before the rotation.
    x, y, z = frame.camera_position
    gaussians = transform.translate(splat.gaussians, (-x, -y, -z))
    if axes == "auto" and frame.camera_rotation_wxyz is not None:
        gaussians = transform.rotate(gaussians, to_matrix(frame.camera_rotation_wxyz).T)
    elif (frame.axes if axes == "auto" else axes) == "opengl":
        gaussians = transform.opencv_to_opengl(gaussians)
    # `Splat` has checked the values of the file, but their distance from the camera may overflow.
    if not gaussians.means.isfinite().all():
        raise SplatError(f"the file says that the camera is at {x} {y} {z}, beyond the range of float32: it is broken")
    # Writers have the same limit, so that each splat that was read can be written again.
    if len(gaussians) and (farthest := gaussians.means.abs().max().item()) > MAX_LENGTH_M:
        raise SplatError(f"a Gaussian is {farthest:.3g} m away, the limit is {MAX_LENGTH_M:g} m: the file is broken")
    return Splat(gaussians=gaussians, camera=splat.camera, frame=PHOTOGRAPH_FRAME)


def detect(content: bytes, path: Path | None = None) -> str | None:
    """Return the name of the readable format of a file's content; None for anything else.

    All plain .ply files count as `ply`. Formats without magic bytes, such as .splat, are detected by the name of
    `path`.
    """
    for name, codec in CODECS.items():
        # A match without a reader may be chance: the first coordinate of a .splat may have the bytes `<!do`.
        if codec.read is not None and codec.matches(content):
            return name
    file_name = "" if path is None else path.name.lower()
    return next((name for name, codec in CODECS.items() if codec.names and file_name.endswith(codec.names)), None)


def _refusal(content: bytes, path: Path | None) -> SplatError:
    """Return the error for a content that no codec reads."""
    readable = [format_.suffix for format_ in FORMATS.values() if format_.is_readable]
    suffixes = ", ".join(dict.fromkeys([*readable, *(f".{name}" for name in CODECS if name not in FORMATS)]))
    for name, codec in CODECS.items():
        if codec.matches(content):
            return SplatError(f"{FORMATS[name].suffix} can be written but not read: use the same splat as {suffixes}")
    return SplatError(f"{path or 'the content'} is in no format that can be read: use {suffixes}")
