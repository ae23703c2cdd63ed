"""Facts of the output formats, in one table; `sharp_cog.formats` adds the functions that write and read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """A file format of splats.

    Attributes:
        name: Name that users write.
        suffix: Suffix of a file's name, with the dot.
        description: Purpose of the format, as a phrase.
        media_type: Content type in HTTP.
        axes: Axes that `auto` means: `opencv` or `opengl`.
        has_fixed_axes: Whether no other axes are possible.
        has_fixed_origin: Whether the photograph's camera must be the origin, so that `center` is refused.
        needs_camera: Whether the file starts at the photograph's view, so that its camera must be known.
        holds_camera: Whether the file has a place for the photograph's camera.
        max_degree: Highest degree of spherical harmonics that the file holds, or that a video shows.
        is_readable: Whether `sharp_cog.formats.read` reads it.
        megabytes: Typical size of SHARP's 1,179,648 Gaussians.
        viewing_hint: Advice on how to view a file.
    """

    name: str
    suffix: str
    description: str
    media_type: str = "application/octet-stream"
    axes: str = "opencv"
    has_fixed_axes: bool = False
    has_fixed_origin: bool = False
    needs_camera: bool = False
    holds_camera: bool = True
    max_degree: int = 0
    is_readable: bool = False
    megabytes: int
    viewing_hint: str = (
        "to view it, drop it on https://superspl.at/editor or open it in any viewer of 3D Gaussian splats"
    )


# Without functions, so that commands and schemas can list the formats before torch is imported.
OUTPUT_FORMATS = {
    format_.name: format_
    for format_ in (
        OutputFormat(
            name="ply",
            suffix=".ply",
            description="vertices alone, which nearly every viewer reads; focal length and image size in comments",
            is_readable=True,
            max_degree=4,
            megabytes=66,
        ),
        OutputFormat(
            name="apple_ply",
            suffix=".ply",
            description="Apple's layout with its extra elements, for Apple's own renderer; some viewers refuse it",
            has_fixed_axes=True,
            has_fixed_origin=True,
            needs_camera=True,
            is_readable=True,
            megabytes=66,
        ),
        OutputFormat(
            name="compressed_ply",
            suffix=".compressed.ply",
            description="PlayCanvas's .ply with 16 bytes per Gaussian, for SuperSplat and related viewers",
            is_readable=True,
            max_degree=3,
            megabytes=19,
        ),
        OutputFormat(
            name="splat",
            suffix=".splat",
            description="32 bytes per Gaussian, the most important first, for web pages that show it while it loads",
            is_readable=True,
            holds_camera=False,
            megabytes=38,
        ),
        OutputFormat(
            name="spz",
            suffix=".spz",
            description="Niantic's compressed format, for Scaniverse and many engines",
            axes="opengl",
            is_readable=True,
            holds_camera=False,
            max_degree=4,
            megabytes=18,
            viewing_hint=(
                "to view it, open it in a viewer based on Spark (https://sparkjs.dev); SuperSplat takes a .spz in the "
                "axes of .ply: for SuperSplat, write .ply or .sog, or add --axes opencv"
            ),
        ),
        OutputFormat(
            name="sog",
            suffix=".sog",
            description="PlayCanvas's compressed format, WebP images in a zip: the smallest",
            is_readable=True,
            max_degree=3,
            megabytes=13,
        ),
        OutputFormat(
            name="glb",
            suffix=".glb",
            description="binary glTF with the extension KHR_gaussian_splatting, handled like any 3D model",
            media_type="model/gltf-binary",
            axes="opengl",
            has_fixed_axes=True,
            max_degree=3,
            is_readable=True,
            megabytes=71,
            viewing_hint="to view it, open it in a glTF viewer that supports KHR_gaussian_splatting",
        ),
        OutputFormat(
            name="usdz",
            suffix=".usdz",
            description="OpenUSD's ParticleField3DGaussianSplat, for Vision Pro, Omniverse, Blender and USD tools",
            media_type="model/vnd.usdz+zip",
            axes="opengl",
            has_fixed_axes=True,
            max_degree=3,
            is_readable=True,
            megabytes=40,
            viewing_hint="to view it, open it in a tool with OpenUSD 26.03 or newer",
        ),
        OutputFormat(
            name="html",
            suffix=".html",
            description="web page with the splat and a viewer inside, which also works offline",
            media_type="text/html; charset=utf-8",
            has_fixed_axes=True,
            has_fixed_origin=True,
            needs_camera=True,
            max_degree=3,
            megabytes=22,
            viewing_hint="to view it, open it in a browser",
        ),
        OutputFormat(
            name="mp4",
            suffix=".mp4",
            description="short video of the splat with a moving camera",
            media_type="video/mp4",
            has_fixed_axes=True,
            has_fixed_origin=True,
            needs_camera=True,
            max_degree=4,
            megabytes=1,
            viewing_hint="to view it, play it in any video player",
        ),
    )
}
"""All formats by name, in the order in which frontends offer them."""
DEFAULT_FORMAT = "ply"
LEVELS_NAME = "lod-meta.json"
"""Name of the output that selects SOG's streamed form, a folder with levels of detail."""
