"""Formats of a splat: one registry, which every door offers, and the one way to write and to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharp_cog import arrange
from sharp_cog.atomic import open_atomically
from sharp_cog.camera import Camera
from sharp_cog.errors import OptionError, SplatError
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
from sharp_cog.gaussians import Gaussians
from sharp_cog.options import OutputOptions
from sharp_cog.preview.movie import require_ffmpeg, write_mp4

__all__ = [
    "FORMATS",
    "NEEDING_CAMERA",
    "Format",
    "Splat",
    "check",
    "detect",
    "format_of",
    "placed",
    "read",
    "vertex_block",
    "write",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A way to write a splat.

    Attributes:
        name: As users write it.
        suffix: Of a file's name, with the dot.
        description: What it is good for, in a line.
        write: Writes Gaussians, the photograph's camera and their frame to a binary file; some take more by name.
        axes: What it has unless asked otherwise; `sharp_cog.options.FIXED_AXES` tells where nothing else is possible.
        media_type: What HTTP calls it.
    """

    name: str
    suffix: str
    description: str
    write: Callable[..., None]
    axes: str = "opencv"
    media_type: str = "application/octet-stream"


FORMATS = {
    format_.name: format_
    for format_ in (
        Format(
            name="ply",
            suffix=".ply",
            description="vertices alone, read by every viewer; focal length and size in comments",
            write=write_ply,
        ),
        Format(
            name="apple_ply",
            suffix=".ply",
            description="Apple's layout with its extra elements, for its own render command; some viewers refuse it",
            write=write_apple_ply,
        ),
        Format(
            name="compressed_ply",
            suffix=".compressed.ply",
            description="PlayCanvas' .ply of 16 bytes a Gaussian, for SuperSplat and its viewers",
            write=write_compressed_ply,
        ),
        Format(
            name="splat",
            suffix=".splat",
            description="32 bytes a Gaussian, most important first, for pages that show it as it comes",
            write=write_splat,
        ),
        Format(
            name="spz",
            suffix=".spz",
            description="Niantic's compressed form, for Scaniverse and many engines",
            write=write_spz,
            axes="opengl",
        ),
        Format(name="sog", suffix=".sog", description="PlayCanvas' pictures in a zip: the smallest", write=write_sog),
        Format(
            name="glb",
            suffix=".glb",
            description="binary glTF with KHR_gaussian_splatting, which travels as any 3D model",
            write=write_glb,
            axes="opengl",
            media_type="model/gltf-binary",
        ),
        Format(
            name="html",
            suffix=".html",
            description="a page with the splat and its viewer inside, which opens anywhere, offline",
            write=write_html,
            media_type="text/html; charset=utf-8",
        ),
        Format(
            name="mp4",
            suffix=".mp4",
            description="a short film of the splat, the camera moving a little",
            write=write_mp4,
            media_type="video/mp4",
        ),
    )
}
"""All formats by name; the names are `sharp_cog.options.OUTPUT_FORMATS`."""


NEEDING_CAMERA = ("apple_ply", "html", "mp4")
"""Formats that show the photograph's own view."""


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
    elif options.output_format == "mp4":
        require_ffmpeg()
    elif options.output_format == "spz" and options.spz_version == 4:
        require_zstandard()


def write(
    path: Path, gaussians: Gaussians, camera: Camera | None, options: OutputOptions, *, viewer_dir: Path | None = None
) -> Path:
    """Writes a splat; `path` appears whole or not at all.

    Args:
        path: Where to; its suffix is the caller's business.
        gaussians: N Gaussians on any device, OpenCV axes, the photograph's camera at the origin; all are written.
        camera: The photograph's camera; None where it is not known, which `NEEDING_CAMERA` cannot do with.
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
    assert camera is not None or format_.name not in NEEDING_CAMERA
    scene, frame = placed(gaussians, options, default_axes=format_.axes)
    more: dict[str, dict[str, Any]] = {"html": {"viewer_dir": viewer_dir}, "spz": {"version": options.spz_version}}
    with open_atomically(path) as file:
        format_.write(file, scene, camera, frame, **more.get(format_.name, {}))
    return path


def placed(gaussians: Gaussians, options: OutputOptions, *, default_axes: str) -> tuple[Gaussians, Frame]:
    """Scales, moves and turns a scene as the options say.

    Args:
        gaussians: OpenCV axes, the photograph's camera at the origin.
        options: Their `scale`, `center` and `axes` count.
        default_axes: What `auto` means.

    Returns:
        The scene, and the frame that it is in now.
    """
    scene, camera_position = arrange.place(gaussians, scale=options.scale, is_centred=options.center)
    axes = default_axes if options.axes == "auto" else options.axes
    if axes == "opengl":
        x, y, z = camera_position
        scene, camera_position = arrange.turn_about_x(scene), (x, -y, -z)
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
    gaussians = arrange.moved(splat.gaussians, (-x, -y, -z))
    if frame.axes == "opengl":
        gaussians = arrange.turn_about_x(gaussians)
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
