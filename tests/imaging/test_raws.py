"""Camera raws: developed where rawpy is installed, else named."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from sharp_cog.errors import ImageError
from sharp_cog.imaging.images import decode
from tests.imaging.samples import FOCAL_LENGTH, tiff_file

BAYER = {
    254: ("I", 0),
    256: ("I", 96),
    257: ("I", 64),
    258: ("H", 16),
    259: ("H", 1),
    262: ("H", 32803),
    271: ("s", "Canon"),
    272: ("s", "Canon EOS 350D DIGITAL"),
    277: ("H", 1),
    278: ("I", 64),
    33421: ("H", [2, 2]),
    33422: ("B", [0, 1, 1, 2]),
    50706: ("B", [1, 4, 0, 0]),
    50708: ("s", "Canon EOS 350D DIGITAL"),
    50714: ("H", 0),
    50717: ("I", 65535),
    50721: ("r", [3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570]),
    50728: ("R", [1.0, 1.0, 1.0]),
    50778: ("H", 21),
}
"""Tags of a DNG whose camera has the primaries of sRGB."""


def dng(orientation: int = 1) -> bytes:
    """Return a raw that is dark on the left and bright on the right."""
    pixels = np.full((64, 96), 4000, "<u2")
    pixels[:, 48:] = 40_000
    return tiff_file({**BAYER, 274: ("H", orientation)}, [pixels.tobytes()], exif_tags={FOCAL_LENGTH: ("R", 18.0)})


def test_a_raw_is_developed_upright_with_its_focal_length() -> None:
    pytest.importorskip("rawpy")
    source = decode(dng())
    assert (source.camera.width, source.camera.height) == (96, 64)
    assert source.image_format == "DNG"
    assert source.rgb[:, :40].mean() < source.rgb[:, 56:].mean() - 80
    assert np.ptp(source.rgb[32, 80].astype(int)) < 10, "white stays white"
    assert source.camera.focal_length_source == "exif"
    assert source.camera.focal_length_px == pytest.approx(18 * 1.61 * np.hypot(96, 64) / np.hypot(36, 24), rel=0.02)
    turned = decode(dng(orientation=6))
    assert (turned.camera.width, turned.camera.height) == (64, 96)
    np.testing.assert_array_equal(turned.rgb, np.rot90(source.rgb, -1))


def test_a_raw_has_the_limits_of_all_images() -> None:
    pytest.importorskip("rawpy")
    with pytest.raises(ImageError, match="96x64"):
        decode(dng(), max_pixels=1000)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (dng(), "DNG"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(500), "Canon CR3"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(500), "Canon CR2"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(500), "Fujifilm RAF"),
        (b"IIRO\x08\0\0\0" + bytes(500), "Olympus ORF"),
        (b"IIU\0\x18\0\0\0" + bytes(500), "Panasonic RW2"),
        (b"FOVb" + bytes(500), "Sigma X3F"),
    ],
)
def test_without_the_package_a_raw_is_named_with_the_extra(
    content: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def without_rawpy(module: str, *arguments: Any, **named: Any) -> Any:
        if module == "rawpy":
            raise ImportError(module)
        return found(module, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without_rawpy)
    with pytest.raises(ImageError, match=rf"camera raw \({name}\).*the extra 'raw'.*export it as JPEG or TIFF"):
        decode(content)


@pytest.mark.parametrize("start", [b"FUJIFILMCCD-RAW 0201", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"])
def test_a_broken_raw_is_named_too(start: bytes) -> None:
    pytest.importorskip("rawpy")
    with pytest.raises(ImageError, match=r"camera raw .* that LibRaw cannot read"):
        decode(start + bytes(500))
