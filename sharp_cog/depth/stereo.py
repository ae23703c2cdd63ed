"""Depth of a stereo pair, by OpenCV's semi-global matching (Hirschmueller, 2008), from the extra `stereo`."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.errors import NotInstalledError

MAX_WIDTH_PX = 1024
"""Largest width at which images are matched; disparity has sixteenths of a pixel."""

MAX_SHARE = 0.15
"""Largest disparity, as a fraction of the width: with the lens of a phone, a quarter of a metre."""

_BLOCK_PX = 5
_SUBPIXELS = 16


def depth_from_pair(
    left: NDArray[np.uint8],
    right: NDArray[np.uint8],
    *,
    focal_length_px: float,
    baseline_m: float,
    of_left: bool = True,
) -> NDArray[np.float32]:
    """Return the depth of one image of a rectified pair: focal length times baseline over disparity.

    Args:
        left: (height, width, 3), sRGB, rows along the line between the cameras.
        right: The image of the right camera, of the same shape.
        focal_length_px: Focal length in pixels of these images.
        baseline_m: Distance between the cameras in metres.
        of_left: Whether depth of the left image is wanted, else that of the right one.

    Returns:
        (h, w) in metres, of the same aspect and `MAX_WIDTH_PX` wide at most; NaN where nothing matches.

    Raises:
        NotInstalledError: The extra `stereo` is not installed.
    """
    if importlib.util.find_spec("cv2") is None:
        raise NotInstalledError(
            "depth from a stereo pair needs the extra 'stereo': run .venv/bin/pip install -e '.[stereo]'"
        )
    import cv2

    # Mirrored, the right image is the left one of a pair.
    first, second = (left, right) if of_left else (right[:, ::-1], left[:, ::-1])
    height, width = first.shape[:2]
    scale = min(1.0, MAX_WIDTH_PX / width)
    size = round(width * scale), round(height * scale)
    num_disparities = 16 * max(1, -(-round(size[0] * MAX_SHARE) // 16))
    # The annotations of OpenCV 5 lack this function.
    matcher = cv2.StereoSGBM_create(  # type: ignore[attr-defined]
        minDisparity=0,
        numDisparities=num_disparities,
        blockSize=_BLOCK_PX,
        # Penalties as in OpenCV's documentation.
        P1=8 * 3 * _BLOCK_PX**2,
        P2=32 * 3 * _BLOCK_PX**2,
        disp12MaxDiff=1,
        uniquenessRatio=5,
        speckleWindowSize=100,
        speckleRange=2,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    # The first columns have their matches outside of the other image, so that both get a margin.
    padded = [
        cv2.copyMakeBorder(_resized(view, size), 0, 0, num_disparities, 0, cv2.BORDER_REPLICATE)
        for view in (first, second)
    ]
    disparity = matcher.compute(*padded)[:, num_disparities:].astype(np.float32) / _SUBPIXELS
    with np.errstate(divide="ignore"):
        depth_m = np.where(disparity > 0, np.float32(focal_length_px * scale * baseline_m) / disparity, np.nan)
    if not of_left:
        depth_m = depth_m[:, ::-1]
    return np.ascontiguousarray(depth_m, dtype=np.float32)


def _resized(view: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(view)).resize(size, Image.Resampling.BOX))
