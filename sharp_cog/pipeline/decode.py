"""Decoding of a request's image and depth, in whichever of their forms they come."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.config.options import PredictOptions
from sharp_cog.depth import embedded, maps
from sharp_cog.depth.files import described_format
from sharp_cog.errors import DepthError, ImageError, SharpError
from sharp_cog.files.read import read_bytes
from sharp_cog.geometry.camera import FocalLengthSource
from sharp_cog.imaging import images
from sharp_cog.imaging.images import SourceImage
from sharp_cog.pipeline.request import ImageInput, Request, path_of


def read_files(request: Request) -> Request:
    """Return the request with file content in place of paths, and with the hashes of image and depth.

    If the options leave format and unit of the depth open, the description beside a depth file decides.

    Raises:
        ImageError: The image file cannot be read.
        DepthError: The depth file cannot be read.
    """
    image, depth, options = _read(request.image, ImageError), _read(request.depth, DepthError), request.options
    depth_path = path_of(request.depth)
    # `sharp-cog depth` writes the description; a caller of bytes has no file beside which it could lie.
    if depth_path is not None and options.depth_format == options.depth_unit == "auto":
        options = replace(options, depth_format=described_format(depth_path) or "auto")
    name = request.depth_name if depth_path is None else f"{depth_path.parent.name}/{depth_path.name}"
    return replace(
        request,
        image=image,
        depth=depth,
        options=options,
        image_hash=_hash(image),
        depth_name=name,
        depth_hash=_hash(depth),
    )


def decode_image(image: ImageInput, options: PredictOptions, *, max_pixels: int) -> SourceImage:
    """Return upright sRGB pixels and their camera.

    Raises:
        ImageError: The image cannot be used.
    """
    # A `Request` may bring pixels that are decoded already, and a depth that is not.
    if isinstance(image, SourceImage):
        return image
    if isinstance(image, Image.Image):
        return images.from_pil(image, options, max_pixels=max_pixels)
    if isinstance(image, np.ndarray):
        return images.from_array(image, options, max_pixels=max_pixels)
    return images.decode(cast(bytes, image), options, max_pixels=max_pixels)


def decode_depth(
    depth: bytes | NDArray[Any],
    source: SourceImage,
    options: PredictOptions,
    *,
    fills_unknown: bool,
    name: str = "",
) -> maps.DepthMap:
    """Return the external depth map for an image.

    Args:
        depth: Content of a depth file, or a (height, width) array.
        source: The image.
        options: They name the format and the unit of the depth.
        fills_unknown: Whether the model fills unknown pixels from its monodepth. For other models they are filled here.
        name: Name of the depth file, which may say what the numbers are.

    Raises:
        DepthError: The depth map cannot be used with the image.
    """
    # The map may come in the sensor's orientation, so it needs the operation that made the image upright.
    use: dict[str, Any] = {
        "depth_format": options.depth_format,
        "depth_unit": options.depth_unit,
        "orientation": source.orientation,
    }
    if isinstance(depth, bytes):
        depth_map = maps.decode(depth, source.camera, name=name, **use)
    else:
        depth_map = maps.from_array(depth, source.camera, **use)
    return depth_map if fills_unknown else maps.known_everywhere(depth_map)


def embedded_depth(image: ImageInput, source: SourceImage, *, fills_unknown: bool) -> maps.DepthMap | None:
    """Return the depth that a photograph carries, or None if it carries none, or came without its file.

    Args:
        image: The image as it was given.
        source: The same image, decoded.
        fills_unknown: Whether the model fills unknown pixels, as for `decode_depth`.

    Raises:
        DepthError: The depth in the photograph cannot be used.
        NotInstalledError: A stereo pair needs the extra `stereo`.
    """
    depth_map = embedded.decode(image, source) if isinstance(image, bytes) else None
    return depth_map if depth_map is None or fills_unknown else maps.known_everywhere(depth_map)


def with_focal_length(source: SourceImage, depth_map: maps.DepthMap) -> SourceImage:
    """Return the image with the focal length of the depth file, unless there is none or the caller gave another.

    The depth was computed with that focal length, so it comes before the one in the image's own metadata.
    """
    if depth_map.focal_length_px is None or source.camera.focal_length_source == "caller":
        return source
    origin: FocalLengthSource = "intrinsics" if depth_map.origin else "depth_file"
    camera = replace(source.camera, focal_length_px=depth_map.focal_length_px, focal_length_source=origin)
    return replace(source, camera=camera)


def _read(value: Any, error_type: type[SharpError]) -> Any:
    path = path_of(value)
    return value if path is None else read_bytes(path, error_type)


def _hash(value: object) -> str | None:
    return hashlib.blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else None
