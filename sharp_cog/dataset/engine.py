"""The interface of an engine, which turns images into splats, and the steps that all engines share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sharp_cog import __version__
from sharp_cog.config.options import PredictOptions
from sharp_cog.dataset.photo import Photo
from sharp_cog.formats import FORMATS
from sharp_cog.pipeline.decode import read_files
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A photograph to turn into splats.

    Attributes:
        photo: The photograph.
        image: Path of its image.
    """

    photo: Photo
    image: Path


Outcome = dict[str, Any] | Exception
"""The result of a job: the facts that `write_splats` returns, or the error."""


class Engine(Protocol):
    """Turns images into splats."""

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Process jobs as they arrive, and yield each with its outcome as soon as it is known, in any order.

        Engines take only a few jobs in advance.
        """
        ...


def read_request(job: Job, formats: tuple[str, ...]) -> Request:
    """Read a job's image and depth map into a request for the pipeline, with the photograph's id as its key.

    Raises:
        ImageError: The image cannot be read.
        DepthError: The depth map cannot be read.
    """
    request = Request(
        image=job.image,
        depth=Path(job.photo.depth) if job.photo.depth else None,
        options=PredictOptions(output_format=formats[0]),
        key=job.photo.id,
    )
    return read_files(request)


def write_splats(prediction: Prediction, folder: Path, formats: tuple[str, ...], *, model: str) -> dict[str, Any]:
    """Write a prediction in every format, as `<id><suffix>`; each file appears whole or not at all.

    Args:
        prediction: The prediction; its key is the photograph's id.
        folder: Folder of the files.
        formats: Output formats.
        model: Name of the model.

    Returns:
        Facts for the journal: `splats` (file names) and `sha256` by format, `num_gaussians`, `focal_length_px`,
        `focal_length_source`, `width`, `height`, `assumptions`, `model` and `sharp_cog`, the version.

    Raises:
        PredictionError: The device failed.
        OutputError: A file cannot be written.
    """
    splats, sha256 = {}, {}
    for name in formats:
        path = prediction.write(folder / f"{prediction.key}{FORMATS[name].suffix}", output_format=name)
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
        "assumptions": list(prediction.assumptions),
        "model": model,
        "sharp_cog": __version__,
    }
