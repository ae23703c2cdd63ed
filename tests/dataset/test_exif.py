"""Writing a focal length into a JPEG's EXIF block, pixels untouched."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from sharp_cog.dataset.exif import with_focal_length
from sharp_cog.imaging.images import decode

HOUR = 3600.0


def jpeg(exif: Image.Exif | bytes = b"", **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


def test_only_an_exif_segment_is_added() -> None:
    before = jpeg(comment=b"hello")
    after = with_focal_length(before, 35, make="NIKON", model="NIKON D750")
    start = before.index(b"\xff\xe0") + 2 + int.from_bytes(before[4:6], "big")
    assert after[:start] == before[:start]
    assert after[start : start + 2] == b"\xff\xe1"
    end = start + 2 + int.from_bytes(after[start + 2 : start + 4], "big")
    assert after[end:] == before[start:]
    np.testing.assert_array_equal(decode(after).rgb, decode(before).rgb)
    assert decode(after).camera.focal_length_source == "exif"
    assert with_focal_length(after, 50) == after, "it has one now"


@pytest.mark.parametrize("focal_length_mm", [4.2, 18.125, 35.0, 600.0])
def test_focal_length_is_stored_as_a_rational(focal_length_mm: float) -> None:
    with Image.open(io.BytesIO(with_focal_length(jpeg(), focal_length_mm))) as image:
        assert ExifTags.Base.FocalLength not in image.getexif()
        value = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLength]
    assert float(value) == focal_length_mm
    assert value.denominator <= 1000


@pytest.mark.parametrize("endian", ["<", ">"])
def test_existing_tags_are_kept(endian: str) -> None:
    exif = Image.Exif()
    exif.endian = endian
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Canon"
    exif[ExifTags.Base.Model] = "Canon EOS 5D"
    exif[ExifTags.Base.Copyright] = "© Zoë".encode("latin-1")
    camera = {
        ExifTags.Base.FNumber: 2.8,
        ExifTags.Base.ISOSpeedRatings: 200,
        ExifTags.Base.LensModel: "RF 35mm",
        ExifTags.Base.UserComment: b"ASCII\0\0\0hello",
        ExifTags.IFD.Interop: {1: "R98"},
    }
    exif[ExifTags.IFD.Exif] = camera
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 36.0)}
    before = jpeg(exif)
    after = with_focal_length(before, 35, make="NIKON", model="NIKON D750")

    def everything(content: bytes) -> tuple[dict[int, Any], ...]:
        with Image.open(io.BytesIO(content)) as image:
            exif = image.getexif()
            parts = [dict(exif), *(exif.get_ifd(ifd) for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo))]
            parts.append(exif.get_ifd(ExifTags.IFD.Interop))
        for part in parts:  # Where blocks lie is not what they say.
            for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop):
                part.pop(ifd, None)
        return tuple(parts)

    base, camera_after, places, interop = everything(after)
    assert float(camera_after.pop(ExifTags.Base.FocalLength)) == 35
    assert (base, camera_after, places, interop) == everything(before)
    assert base[ExifTags.Base.Copyright] == "© Zoë"
    assert interop == {1: "R98"}
    assert len(camera_after) == 4
    assert len(places) == 4
    picture = decode(after)
    np.testing.assert_array_equal(picture.rgb, decode(before).rgb)
    assert picture.rgb.shape == (64, 48, 3), "still turned upright"
    assert picture.camera.focal_length_source == "exif"
    assert after.count(b"Exif\0\0") == 1


@pytest.mark.parametrize("tag", [ExifTags.Base.FocalLength, ExifTags.Base.FocalLengthIn35mmFilm])
@pytest.mark.parametrize("is_nested", [False, True])
def test_existing_focal_length_is_kept(tag: int, is_nested: bool) -> None:
    exif = Image.Exif()
    if is_nested:
        exif[ExifTags.IFD.Exif] = {tag: 24}
    else:
        exif[tag] = 24
    picture = jpeg(exif)
    assert with_focal_length(picture, 35) == picture


def test_other_bytes_than_a_jpeg_are_returned_unchanged() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "PNG")
    whole = jpeg()
    for content in (
        b"",
        b"text",
        file.getvalue(),
        b"\xff\xd8",
        b"\xff\xd8\xff",
        whole[:10],
        whole[:100],
        b"\xff\xd8abc",
    ):
        assert with_focal_length(content, 35) == content


@pytest.mark.parametrize("block", [b"II*\0", b"garbage that is no TIFF", b"MM\0*\0\0\xff\xff"])
def test_broken_exif_leaves_the_jpeg_unchanged(block: bytes) -> None:
    picture = jpeg(b"Exif\0\0" + block)
    np.testing.assert_array_equal(decode(with_focal_length(picture, 35)).rgb, decode(picture).rgb)


def test_full_exif_segment_is_kept() -> None:
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: bytes(65_480)}
    picture = jpeg(exif)
    assert with_focal_length(picture, 35) == picture


@pytest.mark.parametrize("focal_length_mm", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_impossible_focal_length_is_refused(focal_length_mm: float) -> None:
    with pytest.raises(ValueError, match="focal_length_mm is"):
        with_focal_length(jpeg(), focal_length_mm)
