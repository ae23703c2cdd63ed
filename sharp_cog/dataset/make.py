"""One photograph of a dataset into its splats: what both engines do, wherever it runs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from sharp_cog import __version__, images
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import DepthError, ImageError
from sharp_cog.formats import FORMATS
from sharp_cog.options import PredictOptions
from sharp_cog.pipeline import SharpPipeline
from sharp_cog.prediction import Decoded, Prediction

SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "GIF": ".gif",
    "AVIF": ".avif",
}


def image_suffix(image_bytes: bytes, *, max_pixels: int) -> str:
    """The suffix of a picture by its content.

    Raises:
        ImageError: It is no picture.
    """
    image_format = images.decode(image_bytes, PredictOptions(), max_pixels=max_pixels).image_format
    return SUFFIXES.get(image_format.upper(), ".heic")


def make(pipeline: SharpPipeline, photo: Photo, image: Path, folder: Path, formats: tuple[str, ...]) -> dict[str, Any]:
    """Predicts a photograph's splat and writes it in every format; each file appears whole or not at all.

    Args:
        pipeline: Loaded.
        photo: What is known of it.
        image: Its picture.
        folder: Where the splats go, as `<id><suffix>`.
        formats: Their formats.

    Returns:
        `splats` and `sha256` by format, `num_gaussians`, `focal_length_px`, `focal_length_source`, `width`, `height`,
        `model` and `sharp_cog`, ready for the journal.

    Raises:
        InputError: The picture or its depth map cannot be used.
        PredictionError: The device failed.
        OutputError: A file cannot be written.
    """
    return written(pipeline, photo, pipeline.predict(decoded(pipeline, photo, image, formats)), folder, formats)


def decoded(pipeline: SharpPipeline, photo: Photo, image: Path, formats: tuple[str, ...]) -> Decoded:
    """The part of `make` before the device.

    Raises:
        InputError: The picture or its depth map cannot be used.
    """
    return pipeline.decode(
        _read(image, ImageError),
        PredictOptions(output_format=formats[0]),
        depth_bytes=_read(Path(photo.depth), DepthError) if photo.depth else None,
    )


def written(
    pipeline: SharpPipeline, photo: Photo, prediction: Prediction, folder: Path, formats: tuple[str, ...]
) -> dict[str, Any]:
    """The part of `make` behind the device.

    Raises:
        OutputError: A file cannot be written.
    """
    splats, sha256 = {}, {}
    for name in formats:
        path = folder / f"{photo.id}{FORMATS[name].suffix}"
        prediction.with_output(replace(prediction.options, output_format=name)).write(path)
        with path.open("rb") as file:
            splats[name], sha256[name] = path.name, hashlib.file_digest(file, "sha256").hexdigest()
    camera = prediction.camera
    return {
        "splats": splats,
        "sha256": sha256,
        "num_gaussians": len(prediction.gaussians),
        "focal_length_px": float(camera.focal_length_px),
        "focal_length_source": camera.focal_length_source,
        "width": camera.width,
        "height": camera.height,
        "model": pipeline.settings.model,
        "sharp_cog": __version__,
    }


def _read(path: Path, error_type: type[ImageError] | type[DepthError]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror or error}") from error
