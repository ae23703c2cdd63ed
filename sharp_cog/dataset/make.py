"""One photograph of a dataset into its splats: what both engines do, wherever it runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sharp_cog import __version__
from sharp_cog.config.options import PredictOptions
from sharp_cog.dataset.photo import Photo
from sharp_cog.formats import FORMATS
from sharp_cog.imaging import images
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request

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


def decoded(pipeline: SharpPipeline, photo: Photo, image: Path, formats: tuple[str, ...]) -> Request:
    """The part of `make` before the device.

    Raises:
        InputError: The picture or its depth map cannot be used.
    """
    return pipeline.decode(
        Request(
            image=image,
            depth=Path(photo.depth) if photo.depth else None,
            options=PredictOptions(output_format=formats[0]),
            key=photo.id,
        )
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
        prediction.write(path, output_format=name)
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
