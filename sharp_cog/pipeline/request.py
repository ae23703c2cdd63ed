"""A request for one splat, which every frontend builds from its transport and the pipeline takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.config.options import PredictOptions
from sharp_cog.depth.maps import DepthMap
from sharp_cog.estimators import Estimate
from sharp_cog.imaging.images import SourceImage

if TYPE_CHECKING:
    from sharp_cog.pipeline.prediction import Prediction

ImageInput = bytes | str | os.PathLike[str] | Image.Image | NDArray[Any] | SourceImage
"""Forms of an image: file content, a path, or pixels."""
EMBEDDED = "embedded"
"""Depth of a request that asks for the depth in the photograph; a file of this name is `./embedded`."""
DepthInput = bytes | str | os.PathLike[str] | NDArray[Any] | DepthMap | Callable[[SourceImage], Estimate]
"""Forms of an external depth map: file content, a path, numbers, or a network that estimates it."""


# Not compared by value, because a comparison of arrays has no single truth value.
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """One image to turn into a splat.

    Attributes:
        image: Content of an image file, its path, a `PIL.Image.Image`, (height, width, 3) uint8 sRGB pixels, or a
            decoded image.
        depth: External depth for the same view: content of a depth file, its path, a (height, width) array, or a
            network of `sharp_cog.estimators`; None uses the model's monodepth. The text `embedded` is the same as
            the option `depth_from`: the depth that the photograph carries.
        options: Options of the prediction and its output.
        key: The caller's own name for the request, which the prediction carries too.
        image_hash: Hash of the image's bytes, once they have been read; None for pixels.
        depth_name: Name of the depth file with its folder, once it has been read; it may say what the numbers are.
        depth_hash: Hash of the depth file's bytes, once they have been read; None for numbers and estimators.
        decode_s: Seconds that decoding took.
        answer: The prediction that answers the request, if it was kept from an earlier request.

    Raises:
        TypeError: The image or the depth has another type.
    """

    image: ImageInput
    depth: DepthInput | None = None
    options: PredictOptions = field(default_factory=PredictOptions)
    key: str = ""
    image_hash: str | None = None
    depth_name: str = ""
    depth_hash: str | None = None
    decode_s: float = 0.0
    answer: Prediction | None = None

    def __post_init__(self) -> None:
        # A copy: the caller may reuse its buffer, and later steps recognise a file's content by the type `bytes`.
        if isinstance(self.image, (bytearray, memoryview)):
            object.__setattr__(self, "image", bytes(self.image))
        if isinstance(self.depth, (bytearray, memoryview)):
            object.__setattr__(self, "depth", bytes(self.depth))
        if isinstance(self.depth, str) and self.depth == EMBEDDED:
            object.__setattr__(self, "depth", None)
            object.__setattr__(self, "options", replace(self.options, depth_from=EMBEDDED))
        if not isinstance(self.image, (bytes, str, os.PathLike, Image.Image, np.ndarray, SourceImage)):
            raise TypeError(
                f"image is of type {type(self.image).__name__}: give the file's bytes, a path, a PIL.Image.Image or a "
                "numpy array of shape (height, width, 3) and type uint8"
            )
        is_known = isinstance(self.depth, (bytes, str, os.PathLike, np.ndarray, DepthMap))
        if self.depth is not None and not is_known and not callable(self.depth):
            raise TypeError(
                f"depth is of type {type(self.depth).__name__}: give the file's bytes, a path or a numpy array of "
                "shape (height, width)"
            )

    @property
    def is_decoded(self) -> bool:
        """True if image and depth have been decoded, so that only the device has work left."""
        # An estimator counts as decoded, because it runs on the device, as a part of the prediction.
        has_depth = self.depth is None or isinstance(self.depth, DepthMap) or callable(self.depth)
        return self.answer is not None or (isinstance(self.image, SourceImage) and has_depth)


def path_of(value: object) -> Path | None:
    """Return the path of an image or a depth map, or None if it has another form."""
    return Path(value) if isinstance(value, (str, os.PathLike)) else None
