"""Decoding every format against Pillow's own reading, and every refusal."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import ImageError
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging.images import SourceImage, decode, from_array, from_pil
from tests.imaging.samples import NOISE, SMOOTH, encoded, exif, grey_tiff, heic


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "BMP", "WEBP"])
def test_lossless_formats_return_the_pixels(format_name: str) -> None:
    options = {"lossless": True} if format_name == "WEBP" else {}
    source = decode(encoded(Image.fromarray(NOISE), format_name, **options))
    np.testing.assert_array_equal(source.rgb, NOISE)
    assert source.image_format == format_name
    assert (source.camera.width, source.camera.height) == (64, 48)
    assert source.rgb.flags.c_contiguous
    assert source.rgb.flags.writeable  # torch.from_numpy warns of arrays that are not.


@pytest.mark.parametrize("format_name", ["JPEG", "GIF", "AVIF"])
def test_lossy_formats_are_decoded_as_by_pillow(format_name: str) -> None:
    content = encoded(Image.fromarray(SMOOTH), format_name)
    np.testing.assert_array_equal(decode(content).rgb, Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_heic_is_rotated_once() -> None:
    for orientation in (1, 3, 6, 8):
        upright = ImageOps.exif_transpose(_tagged(Image.fromarray(SMOOTH), orientation))
        source = decode(heic(SMOOTH, exif=exif(orientation, focal_length_35mm=28).tobytes()))
        # The writer converts EXIF's orientation to the file's own transformation.
        assert source.rgb.shape == np.asarray(upright).shape
        assert np.abs(source.rgb.astype(int) - np.asarray(upright).astype(int)).mean() < 6
        assert source.image_format == "HEIC"
        assert source.camera.focal_length_source == "exif_35mm"


def test_the_first_image_of_a_multi_picture_jpeg_is_decoded() -> None:
    second = Image.fromarray(NOISE)
    content = encoded(Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=[second])
    expected = Image.open(io.BytesIO(content))
    assert expected.format == "MPO"
    np.testing.assert_array_equal(decode(content).rgb, expected)


def test_a_heic_of_ten_bits_is_scaled_to_eight() -> None:
    file = io.BytesIO()
    sixteen_bits = (SMOOTH.astype(np.uint16) * 257).tobytes()
    pillow_heif.from_bytes("RGB;16", (SMOOTH.shape[1], SMOOTH.shape[0]), sixteen_bits).save(file, quality=95)
    assert pillow_heif.open_heif(file.getvalue()).info["bit_depth"] == 10
    assert np.abs(decode(file.getvalue()).rgb.astype(int) - SMOOTH).mean() < 6


def _tagged(image: Image.Image, orientation: int) -> Image.Image:
    content = encoded(image, "PNG", exif=exif(orientation))
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF"])
def test_all_orientations_are_applied(orientation: int, format_name: str) -> None:
    content = encoded(Image.fromarray(NOISE), format_name, exif=exif(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode(content).rgb, expected)


def test_an_unknown_orientation_counts_as_upright() -> None:
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(NOISE), "PNG", exif=exif(77))).rgb, NOISE)


def test_the_preview_in_a_camera_raw_is_not_taken_for_the_image() -> None:
    content = grey_tiff(8, bytes(64 * 48))
    assert decode(content).rgb.max() == 0
    with pytest.raises(ImageError, match="camera raw"):
        decode(grey_tiff(8, bytes(64 * 48), subfile_type=1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_is_ignored() -> None:
    content = encoded(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert decode(content).camera.focal_length_source == "default"


def test_a_broken_exif_block_is_logged_where_warnings_are_errors(caplog: pytest.LogCaptureFixture) -> None:
    content = encoded(Image.fromarray(NOISE), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(content).camera.focal_length_source == "default"
    assert "the image's EXIF block is broken and was ignored" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "zero bytes"),
        (b"This is not an image, it is a text." * 9, "not an image: give one of JPEG"),
        (encoded(Image.new("RGB", (31, 64)), "PNG"), "31x64, the least is 32"),
        (encoded(Image.new("RGB", (330, 32)), "PNG"), "330x32, the longest shape is 10:1"),
        (heic(SMOOTH)[:300], "broken or truncated|not an image"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(content)


def test_pillows_global_settings_are_left_alone() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, set(Image.OPEN))
    decode(encoded(Image.fromarray(NOISE), "PNG"))
    decode(heic(SMOOTH))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, set(Image.OPEN)) == before
    assert not {"HEIF", "HEIC"} & set(Image.OPEN)


WHOLE = {name: encoded(Image.fromarray(SMOOTH), name) for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")}
WHOLE["HEIC"] = heic(SMOOTH)


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_images_are_refused(name: str) -> None:
    content = WHOLE[name]
    for percent in range(0, 91, 5):  # With 95 % or more, a small PNG has all its pixels.
        with pytest.raises(ImageError):
            decode(content[: len(content) * percent // 100])


def test_an_image_that_pillow_has_opened_is_decoded_like_its_file() -> None:
    content = encoded(Image.fromarray(NOISE), "PNG", exif=exif(6, focal_length_35mm=28))
    from_file, from_image = decode(content), from_pil(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(from_image.rgb, from_file.rgb)
    assert from_image.camera == from_file.camera
    assert from_image.orientation == from_file.orientation == Image.Transpose.ROTATE_270
    assert from_pil(Image.fromarray(NOISE)).image_format == "PIL"


def test_an_image_that_pillow_has_opened_has_the_same_limits() -> None:
    with pytest.raises(ImageError, match="64x48"):
        from_pil(Image.fromarray(NOISE), max_pixels=1000)
    with pytest.raises(ImageError, match="floats"):
        from_pil(Image.fromarray(np.ones((48, 64), np.float32)))
    content = encoded(Image.fromarray(NOISE), "PNG")
    with pytest.raises(ImageError, match="broken or truncated"):
        from_pil(Image.open(io.BytesIO(content[: len(content) // 2])))


def test_an_array_is_taken_as_upright_pixels() -> None:
    source = from_array(NOISE[:, ::-1], PredictOptions(focal_length_px=77.0))
    np.testing.assert_array_equal(source.rgb, NOISE[:, ::-1])
    assert source.rgb.flags.c_contiguous
    assert source.camera == Camera(width=64, height=48, focal_length_px=77.0)
    assert source.orientation is None


@pytest.mark.parametrize(
    "array", [NOISE.astype(np.float32), NOISE[..., 0], NOISE.transpose(2, 0, 1), np.dstack([NOISE, NOISE[..., :1]])]
)
def test_an_array_of_another_shape_or_type_is_a_type_error(array: NDArray[Any]) -> None:
    with pytest.raises(TypeError, match=r"give \(height, width, 3\) uint8 in sRGB"):
        from_array(array)


def test_an_array_has_the_same_limits() -> None:
    with pytest.raises(ImageError, match="the least is 32 px"):
        from_array(NOISE[:31])
    with pytest.raises(ImageError, match="downscale it"):
        from_array(NOISE, max_pixels=1000)


def test_pixels_and_camera_must_agree() -> None:
    camera = Camera(width=64, height=48, focal_length_px=50.0)
    with pytest.raises(ValueError, match=r"rgb is uint8 of shape \(47, 64, 3\), expected uint8 of \(48, 64, 3\)"):
        SourceImage(rgb=NOISE[:47], camera=camera, image_format="PNG")


BLOCKS = Image.fromarray(np.kron(SMOOTH, np.ones((8, 8, 1), np.uint8)))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_is_read(options: dict[str, Any], mode: str) -> None:
    content = encoded(BLOCKS.convert(mode), "JPEG", **options)
    expected = decode(content).rgb
    for missing in (1, 2):
        np.testing.assert_array_equal(decode(content[:-missing]).rgb, expected)
    last = decode(content[:-4]).rgb  # Some pixels of the last blocks are missing.
    np.testing.assert_array_equal(last[:-18], expected[:-18])
    with pytest.raises(ImageError, match="broken or truncated"):
        decode(content[: len(content) * 9 // 10])
