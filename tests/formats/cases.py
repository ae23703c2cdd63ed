"""Every format as tests see it: how to write it, how to decode it, and how exact it is.

Files are decoded by `tests.decoders`, which share no code with the product.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from tests.decoders import DECODERS, Decoded
from tests.splats import CAMERA, degrees_between, srgb_of

CASES = [*DECODERS, "spz4"]
"""Formats that have a decoder; `spz4` is version 4 of spz, as `spz2`, which only its own tests try, is version 2."""
READABLE = ("ply", "apple_ply", "compressed_ply", "splat", "spz", "sog", "glb", "usdz")
SORTING = ("compressed_ply", "splat")
"""Formats that change the order of the Gaussians."""
FIELDS = ("means", "scales", "quaternions_wxyz", "colors_linear", "opacities")

PAGE = """<!doctype html>
<html><head>
        <title>SuperSplat Viewer</title>
        <link rel="stylesheet" href="./index.css" />
        <script type="application/json" id="sse-bootstrap">
            null
        </script>
        <script type="module">
            import { createViewer } from './index.js';
            await createViewer({});
        </script>
</head><body></body></html>
"""
"""A page with the same parts to replace as the real viewer's, which needs npm."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Maximum errors of decoded values, from the format's definition."""

    metres: float
    log_scale: float
    degrees: float
    color: float
    opacity: float
    smallest_scale: float = 1.2e-38
    largest_scale: float = 3.4e38


def degrees_of(half_step: float) -> float:
    """Return the maximum error of a rotation if three components of its quaternion are off by half a step.

    The fourth component, at least 1 / 2, follows from them and doubles the distance; an angle is twice that.
    """
    return float(np.degrees(2 * 2 * np.sqrt(3) * half_step)) + 0.01


FLOAT = Tolerance(metres=2e-6, log_scale=2e-5, degrees=0.06, color=2e-6, opacity=2e-6)
SPZ = Tolerance(
    metres=0.5 / 4096,
    log_scale=0.5 / 16 + 1e-4,
    degrees=degrees_of(0.5 / 511 / np.sqrt(2)),
    color=0.5 / 255 / 0.15 * 0.2821,
    opacity=0.51 / 255,
    smallest_scale=float(np.exp(-10)),
    largest_scale=float(np.exp(255 / 16 - 10)),
)
TOLERANCES = {
    "ply": FLOAT,
    "apple_ply": FLOAT,
    "glb": FLOAT,
    # Half floats have 11 bits: half a step is 1 / 4096 of the values from 1 / 2 to 1, twice that from 1 to 2.
    "usdz": Tolerance(
        metres=2e-6,
        log_scale=1 / 2048 + 1e-5,
        degrees=degrees_of(1 / 4096),
        color=1 / 2048 * 0.2821 + 1e-6,
        opacity=1 / 4096,
        smallest_scale=2.0**-14,
        largest_scale=65504.0,
    ),
    # Relative to the range of a chunk, which is at most that of the splat: 11 bits, for y 10.
    "compressed_ply": Tolerance(
        metres=0.5 / 1023,
        log_scale=0.5 / 1023,
        degrees=degrees_of(0.5 / 1023 * np.sqrt(2)),
        color=0.5 / 255,
        opacity=0.51 / 255,
        smallest_scale=float(np.exp(-20)),
    ),
    # All four components in steps of 1 / 128.
    "splat": Tolerance(metres=2e-6, log_scale=2e-5, degrees=0.9, color=0.51 / 255, opacity=0.51 / 255),
    "spz": SPZ,
    "spz4": SPZ,
    # x, y and z in steps of 1 / 127.5; w follows from them, with no digits left where it is small.
    "spz2": replace(SPZ, degrees=11.0),
    # Positions in 65,536 steps of a logarithm, scales in 256 levels, which are sparse where scales are rare.
    "sog": Tolerance(
        metres=0.5 / 65535,
        log_scale=1 / 128,
        degrees=degrees_of(0.5 / 255 * np.sqrt(2)),
        color=0.51 / 255,
        opacity=0.51 / 255,
    ),
}


def options(case: str, **more: object) -> OutputOptions:
    if case in ("spz2", "spz4"):
        return OutputOptions.from_mapping({"output_format": "spz", "spz_version": int(case[-1]), **more})
    return OutputOptions.from_mapping({"output_format": case, **more})


def written(case: str, gaussians: Gaussians, *, camera: Camera | None = CAMERA, **more: object) -> bytes:
    """Return the file that `formats.write` makes, without a file system."""
    file = io.BytesIO()
    formats.write_to(file, gaussians, camera, options(case, **more), viewer_dir=viewer_dir())
    return file.getvalue()


@functools.cache
def viewer_dir() -> Path:
    """Return a folder with `PAGE` as the viewer."""
    folder = Path(tempfile.mkdtemp(prefix="sharp-viewer-"))
    for name, text in (("index.html", PAGE), ("index.css", ""), ("index.js", "")):
        (folder / name).write_text(text)
    return folder


class ParsedPage(HTMLParser):
    """Scripts and styles of a page by their id, type or tag, and every address that a tag requests."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.addresses: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self._open = attributes.get("id") or attributes.get("type") or tag
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.texts[self._open] = self.texts.get(self._open, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    @property
    def bootstrap(self) -> dict[str, Any]:
        """The JSON that the viewer starts with."""
        bootstrap: dict[str, Any] = json.loads(self.texts["sse-bootstrap"])
        return bootstrap


def decode(case: str, content: bytes) -> Decoded:
    """Decode a file with its default axes into OpenCV axes."""
    return as_opencv(case, decode_as_stored(case, content))


def decode_as_stored(case: str, content: bytes) -> Decoded:
    """Decode a file in its own axes."""
    return DECODERS["spz" if case in ("spz2", "spz4") else case](content)


def as_opencv(case: str, decoded: Decoded) -> Decoded:
    """Rotate the Gaussians of formats whose default axes are OpenGL's."""
    if case not in ("spz", "spz2", "spz4", "glb", "usdz"):
        return decoded
    w, x, y, z = decoded.wxyz.T
    return replace(decoded, means=decoded.means * [1, -1, -1], wxyz=np.stack([-x, w, -z, y], axis=-1))


def order_in_file(case: str, means: NDArray[np.float64], expected_means: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the indices of the expected Gaussians in the file's order, matched by the nearest position."""
    if case not in SORTING:
        return np.arange(len(expected_means))
    nearest = np.array([np.argmin(((expected_means - mean) ** 2).sum(axis=1)) for mean in means], dtype=np.intp)
    assert sorted(nearest) == list(range(len(expected_means)))
    return nearest


def assert_same(case: str, decoded: Decoded, gaussians: Gaussians) -> None:
    """Compare each decoded Gaussian with the one that was written, within the format's precision."""
    tolerance = TOLERANCES[case]
    assert len(decoded.means) == len(gaussians)
    if not len(gaussians):
        return
    means = gaussians.means.double().numpy()
    order = order_in_file(case, decoded.means, means)
    allowed = np.full((len(means), 3), tolerance.metres)
    if case == "compressed_ply":
        allowed *= np.ptp(means, axis=0)
        allowed += 1e-6
    elif case == "sog":
        # A step of the logarithm at x is (1 + |x|) as long in metres; float32 adds a hundredth of a step.
        logs = np.sign(means) * np.log1p(np.abs(means))
        allowed = allowed * np.ptp(logs, axis=0) * (1 + np.abs(means)) * 1.02 + 2e-6
    else:
        allowed += 1e-6 * np.abs(means)
    assert (np.abs(decoded.means - means[order]) <= allowed[order]).all()
    scales = gaussians.scales.double().numpy().clip(tolerance.smallest_scale, tolerance.largest_scale)
    log_error = np.abs(np.log(decoded.scales) - np.log(scales[order]))
    span = np.ptp(np.log(scales)) if case in ("compressed_ply", "sog") else 1.0
    assert log_error.max() <= tolerance.log_scale * max(span, 1e-3)
    assert np.median(log_error) <= tolerance.log_scale * max(span, 1e-3) / 4 or case != "sog"
    angles = degrees_between(decoded.wxyz, gaussians.quaternions_wxyz.numpy()[order])
    assert angles.max() <= tolerance.degrees
    assert np.abs(decoded.srgb - srgb_of(gaussians.colors_linear)[order]).max() <= tolerance.color
    assert np.abs(decoded.opacities - gaussians.opacities.double().numpy()[order]).max() <= tolerance.opacity
