"""Files of other kinds, which are named and never called broken."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from sharp_cog.errors import ImageError
from sharp_cog.imaging.images import decode
from tests.imaging.samples import NOISE, encoded

SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
FILES = {
    "JPEG XL": b"\xff\x0a" + bytes(200),
    "JPEG XL in its container": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200),
    "JPEG 2000": encoded(Image.fromarray(NOISE), "JPEG2000"),
    "a Photoshop document": b"8BPS\0\1" + bytes(200),
    "an SVG drawing": SVG,
    "an SVG drawing ": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made by hand -->\n<!DOCTYPE svg PUBLIC "-//W3C">\n'
    + SVG,
    "a PDF document": b"%PDF-1.7 nothing",
    "a web page": b"<!doctype html><html><body>Not found</body></html>",
    "a video": b"\0\0\0\x20ftypmp42\0\0\0\0mp42isom" + bytes(200),
    "a video ": b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(200),
    "a video  ": b"RIFF\0\0\1\0AVI LIST" + bytes(200),
    "a video   ": b"\x1aE\xdf\xa3" + bytes(200),
    "a sound": b"RIFF\0\0\1\0WAVEfmt " + bytes(200),
    "an OpenEXR image": b"v/1\x01\2\0\0\0" + bytes(200),
    "a NumPy array": b"\x93NUMPY\1\0" + bytes(200),
    "a 3D model or splat": b"ply\nformat binary_little_endian 1.0\n",
    "an archive": b"PK\3\4" + bytes(200),
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    "a Windows icon": encoded(Image.fromarray(NOISE), "ICO"),
    "a HEIF image coded with H.264": b"\0\0\0\x18ftypavci\0\0\0\0mif1avci" + bytes(200),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_named_with_what_to_do(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(FILES[name])
    message = str(caught.value)
    assert name.removesuffix(" in its container").strip() in message
    assert "broken" not in message
    assert ": " in message.split("coded with")[-1]


def test_text_and_noise_are_no_images() -> None:
    for content in (b"This is not an image." * 9, bytes(500), b"\xfe" * 500, b"<xml><a/></xml>", b"{}"):
        with pytest.raises(ImageError, match="not an image: give one of JPEG"):
            decode(content)


def gpano(value: str = "equirectangular") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:GPano="http://ns.google.com/photos/1.0/panorama/">'
        f"<GPano:ProjectionType>{value}</GPano:ProjectionType></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


ATTRIBUTE = (
    gpano()
    .replace(b"<rdf:Description ", b"<rdf:Description GPano:ProjectionType = 'equirectangular' ")
    .replace(b"<GPano:ProjectionType>equirectangular</GPano:ProjectionType>", b"")
)
PANORAMA = Image.new("RGB", (128, 64))


def with_xmp(format_name: str, xmp: bytes) -> bytes:
    if format_name == "HEIC":
        import pillow_heif

        file = io.BytesIO()
        pillow_heif.from_pillow(PANORAMA).save(file, xmp=xmp)
        return file.getvalue()
    if format_name == "PNG":
        from PIL import PngImagePlugin

        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode())
        return encoded(PANORAMA, "PNG", pnginfo=chunks)
    if format_name == "TIFF":
        return encoded(PANORAMA, "TIFF", tiffinfo={700: xmp})
    return encoded(PANORAMA, format_name, xmp=xmp)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "HEIC", "AVIF"])
@pytest.mark.parametrize("xmp", [gpano(), gpano("cylindrical"), ATTRIBUTE])
def test_a_panorama_is_refused(format_name: str, xmp: bytes) -> None:
    with pytest.raises(ImageError, match=r"a panorama \(.*\), not the picture of a pinhole camera: cut a perspective"):
        decode(with_xmp(format_name, xmp))


def test_other_xmp_is_no_panorama() -> None:
    for xmp in (gpano("perspective"), gpano().replace(b"photos/1.0/panorama", b"photos/1.0/image"), b"ProjectionType"):
        assert decode(with_xmp("JPEG", xmp)).rgb.shape == (64, 128, 3)
