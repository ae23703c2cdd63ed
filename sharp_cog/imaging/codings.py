"""Colours that a file describes by numbers in place of a profile, and HDR: their conversion to sRGB.

This is NumPy alone, because the frontends that only look at an image start without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue in CIE 1931, in the order of the chunk cHRM of PNG."""

_D65, _ILLUMINANT_C = (0.3127, 0.3290), (0.310, 0.316)

SRGB_PRIMARIES: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)

PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB_PRIMARIES,
    4: (*_ILLUMINANT_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_ILLUMINANT_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
"""Primaries by their number in ITU-T H.273, table 2; 1 is sRGB's own, 9 BT.2020 and 12 Display P3."""

PQ, HLG = 16, 18
"""Numbers of the two transfer characteristics of HDR in ITU-T H.273, table 3."""

SDR_WHITE_NITS = 203.0
"""Luminance that becomes the white of sRGB: the reference white of HDR in ITU-R BT.2408."""

_HLG_PEAK_NITS, _HLG_GAMMA = 1000.0, 1.2
"""Nominal display of HLG, and the gamma of its system for that display, in ITU-R BT.2100."""

_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)

# Constants of the perceptual quantizer, in ITU-R BT.2100, table 4.
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_PQ_PEAK_NITS = 10_000.0

# Cone responses of Bradford, with which a white is adapted to another one (CIE 15, and ICC.1 annex E).
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

_POWERS = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}


@dataclass(frozen=True, kw_only=True, slots=True)
class Coding:
    """Meaning of pixels whose colours no profile describes.

    Attributes:
        primaries: Chromaticities of white and the primaries.
        transfer: Number of the transfer characteristics in ITU-T H.273, of which PQ and HLG are HDR.
        power: Exponent from values to linear light, instead of `transfer`; None if that counts.
    """

    primaries: Chromaticities = SRGB_PRIMARIES
    transfer: int = 13
    power: float | None = None

    @classmethod
    def from_numbers(cls, primaries: int, transfer: int) -> Coding:
        """Return the coding of the numbers in a HEIC, AVIF or PNG (nclx, cICP); unknown numbers count as sRGB."""
        return cls(primaries=PRIMARIES.get(primaries, SRGB_PRIMARIES), transfer=transfer, power=_POWERS.get(transfer))

    @property
    def is_hdr(self) -> bool:
        """Whether values above the white of sRGB are coded."""
        return self.power is None and self.transfer in (PQ, HLG)

    @property
    def is_srgb(self) -> bool:
        """Whether the pixels are sRGB already. The curves of BT.709, 601 and 2020 count as that, as in browsers."""
        return self.power is None and not self.is_hdr and np.allclose(self.primaries, SRGB_PRIMARIES, atol=0.002)

    def to_srgb(self, values: _Floats, *, peak: float = 1.0) -> NDArray[np.uint8]:
        """Convert pixels to 8 bits of sRGB; colours out of its gamut are clipped.

        HDR is brought to the range of sRGB by the curve of ITU-R BT.2390, which leaves dark and middle tones as they
        are. It is applied to the largest of the three channels, and the others keep their ratio to that.

        Args:
            values: (..., 3) in [0, 1].
            peak: Largest value of the whole image.
        """
        linear = self._linear(values)
        if self.is_hdr:
            brightest = np.full((1, 3), peak, np.float32)
            peak_nits = float(self._linear(brightest).max()) * SDR_WHITE_NITS
            largest = linear.max(axis=-1, keepdims=True)
            linear *= _tone_map(largest, peak_nits) / np.maximum(largest, 1e-6)
        linear = linear @ matrix_to_srgb(self.primaries).T.astype(np.float32)
        linear = np.clip(linear, 0, 1)
        srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.power(linear, np.float32(1 / 2.4)) - 0.055)
        return np.asarray(np.rint(srgb * 255), np.uint8)

    def _linear(self, values: _Floats) -> _Floats:
        """Return linear light, in which the white of sRGB is 1."""
        if self.power is not None:
            return np.asarray(np.power(values, np.float32(self.power)))
        if self.transfer == PQ:
            return _pq_to_nits(values) / np.float32(SDR_WHITE_NITS)
        if self.transfer == HLG:
            scene = _hlg_to_scene(values)
            luminance = np.maximum(scene @ _LUMA_2020, 1e-9)[..., None]
            display = scene * np.power(luminance, np.float32(_HLG_GAMMA - 1))
            return np.asarray(display * np.float32(_HLG_PEAK_NITS / SDR_WHITE_NITS))
        curve = np.power((values + np.float32(0.055)) / np.float32(1.055), np.float32(2.4))
        return np.where(values <= 0.04045, values / np.float32(12.92), curve).astype(np.float32)


def matrix_to_srgb(primaries: Chromaticities) -> NDArray[np.float64]:
    """Return the (3, 3) matrix from linear light of other primaries to that of sRGB, adapted to the white D65.

    Raises:
        numpy.linalg.LinAlgError: The primaries do not span a plane.
    """
    to_xyz, srgb_to_xyz = _matrix_to_xyz(primaries), _matrix_to_xyz(SRGB_PRIMARIES)
    cones, srgb_cones = _BRADFORD @ to_xyz.sum(axis=1), _BRADFORD @ srgb_to_xyz.sum(axis=1)
    adaptation = np.linalg.solve(_BRADFORD, np.diag(srgb_cones / cones) @ _BRADFORD)
    return np.asarray(np.linalg.solve(srgb_to_xyz, adaptation @ to_xyz))


def _matrix_to_xyz(primaries: Chromaticities) -> NDArray[np.float64]:
    """Return the matrix to CIE XYZ by which white has a luminance of 1 (SMPTE RP 177)."""
    x, y = np.array(primaries[::2]), np.array(primaries[1::2])
    white, *_ = columns = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    matrix = columns[1:].T
    return np.asarray(matrix * np.linalg.solve(matrix, white))


def _pq_to_nits(values: _Floats) -> _Floats:
    root = np.power(np.clip(values, 0, 1), np.float32(1 / _M2))
    light = np.maximum(root - np.float32(_C1), 0) / (np.float32(_C2) - np.float32(_C3) * root)
    return np.asarray(np.power(light, np.float32(1 / _M1)) * np.float32(_PQ_PEAK_NITS))


def _nits_to_pq(nits: _Floats) -> _Floats:
    power = np.power(np.clip(nits / np.float32(_PQ_PEAK_NITS), 0, 1), np.float32(_M1))
    ratio = (np.float32(_C1) + np.float32(_C2) * power) / (1 + np.float32(_C3) * power)
    return np.asarray(np.power(ratio, np.float32(_M2)))


def _hlg_to_scene(values: _Floats) -> _Floats:
    """Invert the curve of HLG (ITU-R BT.2100, table 5); scene light is in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    upper = (np.exp((np.maximum(values, 0.5) - np.float32(c)) / np.float32(a)) + np.float32(b)) / 12
    return np.where(values <= 0.5, values * values / 3, upper).astype(np.float32)


def _tone_map(relative: _Floats, peak_nits: float) -> _Floats:
    """Bring light, with the white of sRGB at 1, below that white: the EETF of ITU-R BT.2390-11, section 5.4.1.

    Light stays as it is below a knee; above, a spline goes to the new peak. Black stays at zero.
    """
    if peak_nits <= SDR_WHITE_NITS:
        return relative
    source_peak, target_peak = _nits_to_pq(np.array([peak_nits, SDR_WHITE_NITS], np.float32))
    values = _nits_to_pq(relative * np.float32(SDR_WHITE_NITS)) / source_peak
    highest = target_peak / source_peak
    knee = 1.5 * highest - 0.5
    t = np.clip((values - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * highest
    mapped = np.where(values < knee, values, spline) * source_peak
    return _pq_to_nits(mapped.astype(np.float32)) / np.float32(SDR_WHITE_NITS)
