"""File formats of splats: the table of codecs, and the functions that write and read any format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sharp_cog.config.options import OutputOptions
from sharp_cog.config.output_formats import LEVELS_NAME, OUTPUT_FORMATS
from sharp_cog.errors import OptionError, SplatError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.files.read import read_bytes
from sharp_cog.formats.cameras import write_cameras
from sharp_cog.formats.compressed_ply import is_compressed_ply, read_compressed_ply, write_compressed_ply
from sharp_cog.formats.glb import read_glb, write_glb
from sharp_cog.formats.gltf import is_glb
from sharp_cog.formats.html import require_viewer, write_html
from sharp_cog.formats.ksplat import is_ksplat, read_ksplat
from sharp_cog.formats.levels import DEFAULT_LEVELS, has_levels, is_levels, read_levels, size_with_levels, write_levels
from sharp_cog.formats.limits import MAX_LENGTH_M
from sharp_cog.formats.ply import is_apple_ply, read_ply, write_apple_ply, write_ply
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat
from sharp_cog.formats.sog import META, is_sog, read_sog, write_sog
from sharp_cog.formats.splat import read_splat, write_splat
from sharp_cog.formats.spz import read_spz, require_zstandard, write_spz
from sharp_cog.formats.usdz import is_usdz, read_usdz, require_usd, write_usdz
from sharp_cog.geometry import transform
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.harmonics import with_degree
from sharp_cog.geometry.quaternions import to_matrix

__all__ = [
    "CODECS",
    "FORMATS",
    "Codec",
    "Splat",
    "check",
    "detect",
    "format_of",
    "losses",
    "read",
    "require_levels_name",
    "size_with_levels",
    "to_output_frame",
    "write",
    "write_to",
]

FORMATS = OUTPUT_FORMATS

_LEAST_SHARE_AHEAD = 0.01
"""Share of Gaussians ahead of the camera below which the axes are doubted; a few stray ones may lie there."""


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
    # These two stand before ply, whose magic bytes their files share.
    "compressed_ply": Codec(write=write_compressed_ply, read=read_compressed_ply, matches=is_compressed_ply),
    "apple_ply": Codec(write=write_apple_ply, read=read_ply, matches=is_apple_ply),
    "ply": Codec(write=write_ply, read=read_ply, matches=_starts_with(b"ply")),
    "splat": Codec(write=write_splat, read=read_splat, names=(".splat",)),  # Has no magic bytes.
    "spz": Codec(write=write_spz, read=read_spz, matches=_starts_with(b"\x1f\x8b", b"NGSP")),
    # The name of a streamed one ends like that of the other.
    "sog": Codec(
        write=write_sog,
        read=lambda content, folder=None: (read_levels if is_levels(content) else read_sog)(content, folder),
        matches=is_sog,
        names=(META,),
        has_parts=True,
    ),
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
    if has_levels(path):
        return "sog"
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


def require_levels_name(path: Path, options: OutputOptions) -> None:
    """Check that levels of detail, which are several files, are asked for by the name of the output.

    Raises:
        OptionError: The output is one file.
    """
    if options.lod is not None and not has_levels(path):
        raise OptionError(
            f"lod is {options.lod}, but {path} is one file: leave it out, or name the output {LEVELS_NAME}, in a "
            "folder of its own"
        )


def write(
    path: Path, gaussians: Gaussians, camera: Camera | None, options: OutputOptions, *, viewer_dir: Path | None = None
) -> Path:
    """Write a splat; `path` appears whole or not at all.

    Args:
        path: File to write; the suffix need not be the format's. For the format sog, the name `lod-meta.json` selects
            the streamed form: the levels of detail come into folders beside it.
        gaussians: N Gaussians on any device, OpenCV axes, the photograph's camera at the origin; all are written.
        camera: Camera of the photograph; None if it is unknown, for formats without `needs_camera`.
        options: The format, and the scale, centre and axes of the scene.
        viewer_dir: Folder of the viewer for html, see `sharp_cog.formats.html.write_html`.

    Returns:
        The path.

    Raises:
        PredictionError: A value is not finite.
        NotInstalledError: The format needs a package that is not installed.
        OptionError: `lod` is given, and the path is not named `lod-meta.json`.
        OutputError: The file cannot be written, or the format cannot hold the scene.
    """
    require_levels_name(path, options)
    if options.output_format == "sog" and has_levels(path):
        scene, frame = _scene_in_file(gaussians, options)
        write_levels(path, scene, camera, frame, num_levels=options.lod or DEFAULT_LEVELS)
        return path
    # Writers may write a header before they find a value that is not finite; the temporary file is then removed.
    with open_atomically(path) as file:
        frame = write_to(file, gaussians, camera, options, viewer_dir=viewer_dir)
    if options.cameras_json and camera is not None:
        suffix = FORMATS[options.output_format].suffix
        with open_atomically(path.with_name(f"{path.name.removesuffix(suffix)}.cameras.json")) as file:
            write_cameras(file, camera, frame)
    return path


def write_to(
    file: BinaryIO,
    gaussians: Gaussians,
    camera: Camera | None,
    options: OutputOptions,
    *,
    viewer_dir: Path | None = None,
) -> Frame:
    """Write a splat to an open binary file, and return its frame; arguments and errors are those of `write`."""
    format_ = FORMATS[options.output_format]
    # Predictions have a camera, and `convert` assumes one for these formats.
    assert camera is not None or not format_.needs_camera
    scene, frame = _scene_in_file(gaussians, options)
    extra: dict[str, dict[str, Any]] = {
        "html": {"viewer_dir": viewer_dir},
        "ply": {"has_normals": options.normals, "has_point_colors": options.point_colors},
        "spz": {"version": options.spz_version},
        "glb": {"compression": options.glb_compression},
    }
    writer = CODECS[format_.name].write
    assert writer is not None
    writer(file, scene, camera, frame, **extra.get(format_.name, {}))
    return frame


def _scene_in_file(gaussians: Gaussians, options: OutputOptions) -> tuple[Gaussians, Frame]:
    """Return the Gaussians as they are written, and their frame."""
    scene, frame = to_output_frame(gaussians, options, default_axes=FORMATS[options.output_format].axes)
    return with_degree(scene, _degree_in_file(gaussians, options)), frame


def _degree_in_file(gaussians: Gaussians, options: OutputOptions) -> int:
    """Return the degree of the spherical harmonics that are written."""
    limit = FORMATS[options.output_format].max_degree
    if _is_spz_2(options):
        limit = min(limit, 3)  # Readers of version 2 know no more.
    return min(gaussians.degree if options.sh_degree is None else options.sh_degree, limit)


def losses(gaussians: Gaussians, camera: Camera | None, options: OutputOptions) -> tuple[str, ...]:
    """Return what a format cannot hold of a splat, as sentences without full stops.

    Args:
        gaussians: N Gaussians.
        camera: Camera of the photograph, if it is known.
        options: The format, and the degree of the spherical harmonics to write.
    """
    format_, kept = FORMATS[options.output_format], _degree_in_file(gaussians, options)
    found = []
    if gaussians.degree > kept:
        bands = f"{kept + 1} to {gaussians.degree}" if gaussians.degree > kept + 1 else f"{gaussians.degree}"
        effect = "colours do not depend on the direction of view" if kept == 0 else "colours depend on it less finely"
        found.append(f"spherical harmonics of degree {bands} are dropped: {effect} in {format_.name}")
    if camera is not None and not format_.holds_camera:
        found.append(
            f"{format_.name} has no place for the photograph's camera ({camera.width} x {camera.height}, focal length "
            f"{camera.focal_length_px:.0f} px): it is dropped"
        )
    axes = _axes_in_file(options)
    if axes != format_.axes and (format_.name == "splat" or _is_spz_2(options)):
        found.append(f"{format_.name} has no place for the axes {axes}: give them again wherever the file is read")
    return tuple(found)


def _is_spz_2(options: OutputOptions) -> bool:
    return options.output_format == "spz" and options.spz_version == 2


def _axes_in_file(options: OutputOptions) -> str:
    return FORMATS[options.output_format].axes if options.axes == "auto" else options.axes


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


def read(source: Path | str | bytes, *, axes: str = "auto", drop_invalid: bool = False) -> Splat:
    """Read a splat of any format that can be read.

    Args:
        source: Path of a file, or its content.
        axes: Axes of the file; `auto` takes those that the file states, else those of its format.
        drop_invalid: Whether to drop Gaussians with values that are not finite or out of range, and to note their
            number, instead of refusing the file.

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
    if max(abs(x), abs(y), abs(z)) > MAX_LENGTH_M:
        raise SplatError(f"the file says that the camera is at {x} {y} {z}, beyond the range of float32: it is broken")
    gaussians = transform.translate(splat.gaussians, (-x, -y, -z))
    if axes == "auto" and frame.camera_rotation_wxyz is not None:
        gaussians = transform.rotate(gaussians, to_matrix(frame.camera_rotation_wxyz).T)
    elif (frame.axes if axes == "auto" else axes) == "opengl":
        gaussians = transform.opencv_to_opengl(gaussians)
    # Files may state any float, exponentials of logarithms may overflow, and so may distances from the camera.
    gaussians, notes = _valid(gaussians, drop_invalid=drop_invalid)
    if len(gaussians) and axes == "auto" and transform.share_ahead(gaussians) < _LEAST_SHARE_AHEAD:
        notes = (*notes, _nothing_ahead(gaussians))
    return Splat(gaussians=gaussians, camera=splat.camera, frame=PHOTOGRAPH_FRAME, notes=(*splat.notes, *notes))


def _valid(gaussians: Gaussians, *, drop_invalid: bool) -> tuple[Gaussians, tuple[str, ...]]:
    """Return the Gaussians that can be written, and a note on those that are dropped.

    Raises:
        SplatError: A Gaussian cannot be written and is not to be dropped, or none can be written.
    """
    num = len(gaussians)
    if not num:
        return gaussians, ()
    faults = {name: ~values.isfinite().reshape(num, -1).all(dim=1) for name, values in gaussians.tensors().items()}
    found = [name for name, is_bad in faults.items() if is_bad.any()]
    # Writers have this limit too, so that each splat that was read can be written again.
    faults["distance"] = (gaussians.means.abs() > MAX_LENGTH_M).any(dim=1)
    farthest = gaussians.means.abs().max().item()
    fault = (
        f"values that are not finite, in {', '.join(found)}"
        if found
        else f"positions up to {farthest:.3g} m away, the limit is {MAX_LENGTH_M:g} m"
    )
    is_bad = torch.stack(list(faults.values())).any(dim=0)
    num_bad = int(is_bad.sum())
    if not num_bad:
        return gaussians, ()
    if not drop_invalid:
        raise SplatError(f"{num_bad} of {num} Gaussians have {fault}: set drop_invalid to read the others")
    if num_bad == num:
        raise SplatError(f"all {num} Gaussians have {fault}: the file is broken")
    return gaussians.map(lambda tensor: tensor[~is_bad]), (f"{num_bad} of {num} Gaussians are dropped: {fault}",)


def _nothing_ahead(gaussians: Gaussians) -> str:
    nearest, farthest = gaussians.means[:, 2].aminmax()
    return (
        f"nothing lies ahead of the camera (z is from {nearest.item():.3g} to {farthest.item():.3g} m): if the file "
        "has other axes than were taken, name them with input_axes (opencv or opengl)"
    )


def detect(content: bytes, path: Path | None = None) -> str | None:
    """Return the name of the readable format of a file's content; None for anything else.

    Formats without magic bytes, such as .splat, are detected by the name of `path`.
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
