"""All facts of the output formats, in one table; `sharp_cog.formats` adds the functions that write and read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """A format that a splat can be written in.

    Attributes:
        name: Name that users write.
        suffix: Suffix of a file's name, with the dot.
        description: Purpose of the format, in one line.
        media_type: Content type in HTTP.
        axes: Axes that `auto` means: `opencv` or `opengl`.
        has_fixed_axes: Whether no other axes are possible.
        has_fixed_origin: Whether the photograph's camera must be the origin, so that `center` is refused.
        needs_camera: Whether it shows the photograph's own view, and so needs the photograph's camera.
        is_readable: Whether `sharp_cog.formats.read` reads it.
        megabytes: Typical size of SHARP's 1,179,648 Gaussians.
        viewing_hint: Sentence that tells how to look at a file.
    """

    name: str
    suffix: str
    description: str
    media_type: str = "application/octet-stream"
    axes: str = "opencv"
    has_fixed_axes: bool = False
    has_fixed_origin: bool = False
    needs_camera: bool = False
    is_readable: bool = False
    megabytes: int
    viewing_hint: str = "look: drop it on https://superspl.at/editor, or open it in any viewer of 3D Gaussian splats"


OUTPUT_FORMATS = {
    format_.name: format_
    for format_ in (
        OutputFormat(
            name="ply",
            suffix=".ply",
            description="vertices alone, read by every viewer; focal length and size in comments",
            is_readable=True,
            megabytes=66,
        ),
        OutputFormat(
            name="apple_ply",
            suffix=".ply",
            description="Apple's layout with its extra elements, for its own render command; some viewers refuse it",
            has_fixed_axes=True,
            has_fixed_origin=True,
            needs_camera=True,
            is_readable=True,
            megabytes=66,
        ),
        OutputFormat(
            name="compressed_ply",
            suffix=".compressed.ply",
            description="PlayCanvas' .ply of 16 bytes a Gaussian, for SuperSplat and its viewers",
            is_readable=True,
            megabytes=19,
        ),
        OutputFormat(
            name="splat",
            suffix=".splat",
            description="32 bytes a Gaussian, most important first, for pages that show it as it comes",
            is_readable=True,
            megabytes=38,
        ),
        OutputFormat(
            name="spz",
            suffix=".spz",
            description="Niantic's compressed form, for Scaniverse and many engines",
            axes="opengl",
            is_readable=True,
            megabytes=18,
        ),
        OutputFormat(
            name="sog", suffix=".sog", description="PlayCanvas' pictures in a zip: the smallest", megabytes=13
        ),
        OutputFormat(
            name="glb",
            suffix=".glb",
            description="binary glTF with KHR_gaussian_splatting, which travels as any 3D model",
            media_type="model/gltf-binary",
            axes="opengl",
            has_fixed_axes=True,
            megabytes=71,
            viewing_hint="look: open it in a viewer of glTF that knows KHR_gaussian_splatting",
        ),
        OutputFormat(
            name="html",
            suffix=".html",
            description="a page with the splat and its viewer inside, which opens anywhere, offline",
            media_type="text/html; charset=utf-8",
            has_fixed_axes=True,
            has_fixed_origin=True,
            needs_camera=True,
            megabytes=22,
            viewing_hint="look: open it in a browser",
        ),
        OutputFormat(
            name="mp4",
            suffix=".mp4",
            description="a short film of the splat, the camera moving a little",
            media_type="video/mp4",
            has_fixed_axes=True,
            has_fixed_origin=True,
            needs_camera=True,
            megabytes=1,
            viewing_hint="look: play it",
        ),
    )
}
"""All formats by name, in the order in which they are offered."""
DEFAULT_FORMAT = "ply"
