"""Exact bounds on the difference between a splat and its file: half a step of the format, and float32's rounding.

Files are decoded by `tests.decoders`, in float64 and without the product's readers.
"""

from __future__ import annotations

import base64
import json
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from sharp_cog.geometry.gaussians import Gaussians
from tests.decoders import Decoded, glb_document, sog
from tests.formats.cases import CASES, SORTING, TOLERANCES, ParsedPage, decode
from tests.splats import srgb_of

Floats = NDArray[np.float64]

WRITERS = [*CASES, "html"]
SPZ_POSITION_LIMIT = 2**23 - 1
SH_C0 = np.sqrt(1 / (4 * np.pi))

_SCALE_RANGES = {
    "usdz": (2.0**-14, 65504.0),
    "compressed_ply": (np.exp(-20), np.exp(20)),
    **dict.fromkeys(("spz", "spz4"), (np.exp(-10), np.exp(255 / 16 - 10))),
}
"""Ranges in metres of the formats that cannot store all scales from the smallest normal float32 to 1e38."""
_COLOR_RANGES = {
    **dict.fromkeys(("splat", "sog", "html"), (0.0, 1.0)),
    **dict.fromkeys(("spz", "spz4"), tuple(0.5 + SH_C0 / 0.15 * np.array([-0.5, 0.5]))),
    "compressed_ply": (-8.0, 8.0),
    "usdz": tuple(0.5 + SH_C0 * np.array([-65504.0, 65504.0])),
}
"""Ranges of sRGB values in the formats that cannot store all of them."""
_LOG_ROUNDING = 2e-5
"""Rounding of a length's logarithm: two units in the last place of 87."""
_LEAST_LENGTH = 1e-37
"""Distance in metres below which positions count as equal: float32's normal numbers end there."""


def decoded(case: str, content: bytes) -> Decoded:
    """Decode a file into OpenCV axes; its JSON must be valid, which excludes NaN."""
    if case == "html":
        page = ParsedPage(content.decode())
        json.loads(page.texts["sse-bootstrap"], parse_constant=_refuse)
        return sog(base64.b64decode(page.bootstrap["contentUrl"].partition(",")[2]))
    if case == "glb":
        document, binary = glb_document(content)
        assert np.isfinite(document["accessors"][0]["min"] + document["accessors"][0]["max"]).all()
        assert len(binary) == document["buffers"][0]["byteLength"]
    return decode(case, content)


def _refuse(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not valid JSON")


def assert_holds(case: str, seen: Decoded, splat: Gaussians) -> None:
    """Check that every Gaussian, with its values limited to their ranges, is in the file within the format's bounds."""
    tolerance = TOLERANCES["sog" if case == "html" else case]
    for name, values in vars(seen).items():
        assert np.isfinite(values).all(), name
    assert (seen.scales > 0).all()
    lengths = np.linalg.norm(seen.wxyz, axis=1)
    # In a .splat, each component is off by up to half a step of 1 / 128, and by a whole step where it is 1. In a .usdz,
    # components are half floats.
    assert np.abs(lengths - 1).max() <= {"splat": 1.5 / 128, "usdz": 1e-3}.get(case, 1e-4)
    log_scales = np.log(splat.scales.double().numpy().clip(*_SCALE_RANGES.get(case, (2.0**-126, 1e38))))
    wxyz = splat.quaternions_wxyz.double().numpy()
    cosines = (seen.wxyz / lengths[:, None]) @ (wxyz / np.linalg.norm(wxyz, axis=1, keepdims=True)).T
    srgb = srgb_of(splat.colors_linear).clip(*_COLOR_RANGES.get(case, (-np.inf, np.inf)))
    # Steps of a compressed .ply are fractions of a chunk's range.
    span = max(1.0, np.ptp(srgb)) if case == "compressed_ply" else 1.0
    if case == "usdz":  # Steps of half floats grow with the harmonic, and so with the distance from grey.
        span = max(1.0, 2 * np.abs(srgb - 0.5).max())
    near = {
        "positions": (_distances(seen.means, splat, case) <= 1.0).all(axis=2),
        "scales": _differences(np.log(seen.scales), log_scales).max(axis=2) <= _log_scale_bound(case, log_scales),
        "rotations": np.degrees(2 * np.arccos(np.abs(cosines).clip(0, 1))) <= tolerance.degrees,
        "colours": (_differences(seen.srgb, srgb) <= tolerance.color * span + 3e-6 * np.abs(srgb)).all(axis=2),
        "opacities": _differences(seen.opacities, splat.opacities.double().numpy().clip(0, 1)) <= tolerance.opacity,
    }
    if case in SORTING:
        matched = maximum_bipartite_matching(csr_array(np.logical_and.reduce(list(near.values()))), "column")
        lost = {name: int((~is_near.any(axis=1)).sum()) for name, is_near in near.items()}
        assert (matched >= 0).all(), f"{int((matched < 0).sum())} Gaussians are not in the file: {lost}"
    else:
        lost = {name: int((~is_near.diagonal()).sum()) for name, is_near in near.items()}
        assert not any(lost.values()), f"Gaussians differ by more than the format's precision: {lost}"


def _differences(first: Floats, second: Floats) -> Floats:
    """Return the absolute differences between all pairs, (M, N, ...)."""
    differences: Floats = np.abs(first[:, None] - second[None])
    return differences


def _distances(seen: Floats, splat: Gaussians, case: str) -> Floats:
    """Return the distances between all pairs of decoded and written positions, (M, N, 3), relative to the bounds."""
    means = splat.means.double().numpy()
    if case in ("sog", "html"):  # Steps are those of the symmetric logarithm.
        means, seen = (np.copysign(np.log1p(np.abs(values)), values) for values in (means, seen))
    half_steps = {
        "compressed_ply": 0.5 * np.ptp(means, axis=0) / [2047, 1023, 2047],
        **dict.fromkeys(("sog", "html"), 0.5 * np.ptp(means, axis=0) / 65535 + 3e-7 * np.abs(means).max(axis=0)),
        **dict.fromkeys(("spz", "spz4"), 0.5 / 2.0 ** _spz_fraction_bits(means)),
    }
    shares: Floats = _differences(seen, means) / (1.001 * half_steps.get(case, 0.0) + _LEAST_LENGTH)
    return shares


def _spz_fraction_bits(means: Floats) -> int:
    """Return the number of fraction bits that leave the farthest position within 24 bits, at most 12."""
    return next((bits for bits in range(12, 0, -1) if np.abs(means).max() * 2**bits <= SPZ_POSITION_LIMIT), 0)


def _log_scale_bound(case: str, log_scales: Floats) -> float:
    """Return the maximum error of a scale's logarithm; for SOG's codebook, see `sharp_cog.formats.sog`."""
    span = float(np.ptp(log_scales))
    half_steps = {
        "compressed_ply": 0.5 * span / 1023,
        "sog": span / 62,
        "html": span / 62,
        "spz": 1 / 32,
        "spz4": 1 / 32,
        "usdz": 1 / 2048,
    }
    return 1.001 * half_steps.get(case, 0.0) + _LOG_ROUNDING
