"""Formats of a splat: one registry, which every door offers, and the one way to write and to read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sharp_cog.config.options import OutputOptions
from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.errors import OptionError, SplatError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.formats.compressed_ply import read_compressed_ply, write_compressed_ply
from sharp_cog.formats.glb import write_glb
from sharp_cog.formats.html import require_viewer, write_html
from sharp_cog.formats.limits import MAX_LENGTH_M
from sharp_cog.formats.ply import vertex_block, write_apple_ply, write_ply
from sharp_cog.formats.read_ply import read_ply
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat
from sharp_cog.formats.sog import write_sog
from sharp_cog.formats.splat import read_splat, write_splat
from sharp_cog.formats.spz import read_spz, require_zstandard, write_spz
from sharp_cog.geometry import transform
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians

__all__ = [
    "FORMATS",
    "Splat",
    "check",
    "detect",
    "format_of",
    "read",
    "to_output_frame",
    "vertex_block",
    "write",
]


FORMATS = OUTPUT_FORMATS

_WRITERS: dict[str, Callable[..., None]] = {
    "ply": write_ply,
    "apple_ply": write_apple_ply,
    "compressed_ply": write_compressed_ply,
    "splat": write_splat,
    "spz": write_spz,
    "sog": write_sog,
    "glb": write_glb,
    "html": write_html,
}
"""Functions that write Gaussians, the photograph's camera and their frame to a binary file, by the format's name.

A film is written by `sharp_cog.pipeline.output`.
"""


def format_of(path: Path) -> str:
    """The name of the format that a file's suffix asks for.

    Raises:
        OptionError: No format has it.
    """
    # The longest suffix that fits: .compressed.ply before .ply. Apple's has the suffix of the plain one.
    fitting = [format_ for format_ in FORMATS.values() if path.name.lower().endswith(format_.suffix)]
    if not fitting:
        suffixes = ", ".join(dict.fromkeys(format_.suffix for format_ in FORMATS.values()))
        raise OptionError(f"{path} has no suffix of {suffixes}: name it so that the format is clear, or use --format")
    longest = max(len(format_.suffix) for format_ in fitting)
    return next(format_.name for format_ in fitting if len(format_.suffix) == longest)


def check(options: OutputOptions, *, viewer_dir: Path | None = None) -> None:
    """Checks that what the format needs is installed, before work is done for it.

    Raises:
        NotInstalledError: It is not; the message says how to install it.
    """
    if options.output_format == "html":
        require_viewer(viewer_dir)
    elif options.output_format == "spz" and options.spz_version == 4:
        require_zstandard()


def write(
    path: Path, gaussians: Gaussians, camera: Camera | None, options: OutputOptions, *, viewer_dir: Path | None = None
) -> Path:
    """Writes a splat; `path` appears whole or not at all.

    Args:
        path: Where to; its suffix is the caller's business.
        gaussians: N Gaussians on any device, OpenCV axes, the photograph's camera at the origin; all are written.
        camera: The photograph's camera; None where it is not known, which formats with `needs_camera` cannot do without.
        options: The format, and how the scene is placed.
        viewer_dir: As `sharp_cog.formats.html.write_html`.

    Returns:
        The path.

    Raises:
        PredictionError: A value is not finite.
        NotInstalledError: The format needs what is not installed.
        OutputError: The file cannot be written.
    """
    format_ = FORMATS[options.output_format]
    assert camera is not None or not format_.needs_camera
    scene, frame = to_output_frame(gaussians, options, default_axes=format_.axes)
    more: dict[str, dict[str, Any]] = {"html": {"viewer_dir": viewer_dir}, "spz": {"version": options.spz_version}}
    with open_atomically(path) as file:
        _WRITERS[format_.name](file, scene, camera, frame, **more.get(format_.name, {}))
    return path


def to_output_frame(gaussians: Gaussians, options: OutputOptions, *, default_axes: str) -> tuple[Gaussians, Frame]:
    """Scales, moves and turns a scene as the options say.

    Args:
        gaussians: OpenCV axes, the photograph's camera at the origin.
        options: Their `scale`, `center` and `axes` count.
        default_axes: What `auto` means.

    Returns:
        The scene, and the frame that it is in now.
    """
    scene, camera_position = transform.scale_and_center(gaussians, scale=options.scale, is_centred=options.center)
    axes = default_axes if options.axes == "auto" else options.axes
    if axes == "opengl":
        x, y, z = camera_position
        scene, camera_position = transform.opencv_to_opengl(scene), (x, -y, -z)
    return scene, Frame(axes=axes, camera_position=camera_position)


_READERS: dict[str, Callable[[bytes], Splat]] = {
    "ply": read_ply,
    "compressed_ply": read_compressed_ply,
    "splat": read_splat,
    "spz": read_spz,
}


def read(source: Path | bytes, *, axes: str = "auto") -> Splat:
    """Reads a .ply of any kind, a .splat or a .spz, told by the content (a .splat by its name).

    Args:
        source: A file, or its content.
        axes: Those of the file; `auto` believes what it says, and otherwise its format.

    Returns:
        The splat in OpenCV axes with the photograph's camera at the origin, as a prediction has it.

    Raises:
        SplatError: It cannot be read, is of another format, or is broken.
    """
    content = source if isinstance(source, bytes) else _content(source)
    name = detect(content, None if isinstance(source, bytes) else source)
    if name is None:
        raise _refuse(content, source)
    splat = _READERS[name](content)
    frame = splat.frame or PHOTOGRAPH_FRAME
    if axes != "auto":
        frame = Frame(axes=axes, camera_position=frame.camera_position)
    x, y, z = frame.camera_position
    gaussians = transform.translate(splat.gaussians, (-x, -y, -z))
    if frame.axes == "opengl":
        gaussians = transform.opencv_to_opengl(gaussians)
    if not gaussians.means.isfinite().all():
        raise SplatError(f"the file says that the camera is at {x} {y} {z}, beyond what a float holds: it is broken")
    if len(gaussians) and (farthest := gaussians.means.abs().max().item()) > MAX_LENGTH_M:
        raise SplatError(f"a Gaussian is {farthest:.3g} m away, a splat ends at {MAX_LENGTH_M:g} m: it is broken")
    return Splat(gaussians=gaussians, camera=splat.camera, frame=PHOTOGRAPH_FRAME)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SplatError(f"{path} cannot be read: {error.strerror or error}") from error


def detect(content: bytes, path: Path | None = None) -> str | None:
    """The name of the readable format that a file's content is in, `ply` for all plain ones; None for anything else.

    A .splat has no mark of its own: it is known by the path.
    """
    if content.startswith(b"ply"):
        head = content[: content.find(b"end_header")]
        return "compressed_ply" if b"packed_position" in head else "ply"
    if content.startswith((b"\x1f\x8b", b"NGSP")):
        return "spz"
    return "splat" if path is not None and path.suffix.lower() == ".splat" else None


def _refuse(content: bytes, source: Path | bytes) -> SplatError:
    written_only = {b"PK\x03\x04": "a .sog", b"glTF": "a .glb", b"<!do": "an .html page", b"<!DO": "an .html page"}
    kind = written_only.get(content[:4])
    if kind:
        return SplatError(f"{kind} can be written but not read: use the .ply, .splat or .spz of the same splat")
    name = "the content" if isinstance(source, bytes) else str(source)
    return SplatError(f"{name} is not a .ply, .compressed.ply, .splat or .spz: choose one of those")
