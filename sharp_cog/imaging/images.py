"""Decoding images: turns a file's bytes, a Pillow image or an array into upright sRGB pixels and a camera."""

from __future__ import annotations

import io
import logging
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import ImageError
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging import focal_length, sizes, tiff
from sharp_cog.imaging.boxes import Container, read_container, repair_avif
from sharp_cog.imaging.codings import Coding
from sharp_cog.imaging.kinds import ISO_BRANDS, name_kind, name_raw
from sharp_cog.imaging.limits import MeteredFile, check_jpeg, prepare_to_load
from sharp_cog.imaging.pixels import DECODER_ERRORS, ToSrgb, convert_16_bits, to_srgb
from sharp_cog.imaging.raws import decode_raw
from sharp_cog.text import reason_of

_LOG = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "HEIC", "AVIF")
"""Names of the formats that can be decoded."""

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
        *(".heic", ".heif", ".hif", ".avif"),
    }
)
"""Suffixes of the files in a folder that are taken for images. A file that is named itself may have any suffix."""

DEFAULT_MAX_PIXELS = 200_000_000
"""Maximum number of pixels of an image, unless the caller sets another one: the largest that phones take."""

MIN_SIDE_PX = 32
"""Least width and height in pixels."""

MAX_ASPECT = 10
"""Largest ratio of the longer side to the shorter one."""

# Only these plugins may see the bytes, selected by the first bytes of a file. They are called directly, because
# `Image.open` would try every plugin that any package has registered, and would warn about or refuse large images by a
# limit that is global to the process, while the limit that counts here is `max_pixels`.
_PLUGINS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),  # This plugin also reads the first frame of a multi-picture JPEG.
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
)
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
_OTHER_CODECS: dict[bytes | None, str] = {b"avc1": "H.264", b"jpeg": "JPEG", b"j2k1": "JPEG 2000", b"vvc1": "VVC"}
_AVIF_BRANDS = {b"avif", b"avis"}

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # The last two are BigTIFF.
_BIG_ENDIAN_BIGTIFF = b"MM\0+"

# TIFF tags, and the value by which a camera raw says that its first image is a small preview.
_NEW_SUBFILE_TYPE, _REDUCED, _DNG_VERSION = 254, 1, 50706
_XMP_TAG = 700

# In XMP, a value is an attribute or an element. Google's namespace for panoramas has no other value so far than
# equirectangular; a projection that is none of a pinhole camera is meant in any case.
_PROJECTION = re.compile(rb"""ProjectionType\s*(?:=\s*["']|>)\s*(?!perspective|rectilinear)(\w+)""", re.IGNORECASE)
_PANORAMA_NAMESPACES = (b"http://ns.google.com/photos/1.0/panorama/", b"http://ns.google.com/videos/1.0/spherical/")

_END_OF_JPEG = b"\xff\xd9"
_PROBE = b"\xa5\x5a" * 32
"""Bytes that change a JPEG's picture if its pixels are not complete; none of them is a marker."""

_STRIP_PX = 2**20
"""Number of pixels that are converted, and copied out of Pillow's memory, at once."""

_ORIENTATIONS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operation that makes an image of each EXIF orientation upright; any other value counts as upright."""

_UNSUPPORTED = re.compile(
    "unsupported|not supported|cannot handle|unknown (pixel mode|data organization|compression|extension)|no codec",
    re.IGNORECASE,
)
"""Words by which decoders say that a file is not broken, but of a kind that they do not know."""

_TURNED = (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)
"""Operations that exchange width and height."""

_REVERSED = (
    *(Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM),
    *(Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE),
)
"""Operations by which the first rows of the stored image become the last rows or columns."""

_MAX_CHUNKS = 10_000
_MAX_PROJECTION_CHARS = 40
_MAX_MISSING_ROWS = 18
"""Rows at the bottom that a JPEG without its end may lack: one row of blocks, and what is smoothed with it."""

_MIN_ROWS_PER_MISSING = 20
"""Rows of the image for each row that it may lack."""

_MAX_REPAIRED_PX = 50_000_000
"""Maximum number of pixels of a JPEG that is decoded three times to see whether it lacks its end alone."""

_EXIF_TAGS = (ExifTags.Base.Orientation, *focal_length.EXIF_TAGS)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """A decoded image.

    Attributes:
        rgb: (height, width, 3) uint8, sRGB, upright, contiguous.
        camera: Size of the image, its focal length and the source of that.
        image_format: Format of the bytes, such as `JPEG`.
        orientation: Operation that made the stored image upright, as EXIF asked for; None if it was upright already. A
            depth map in the sensor's orientation needs the same operation.
    """

    rgb: NDArray[np.uint8]
    camera: Camera
    image_format: str
    orientation: Image.Transpose | None = None

    def __post_init__(self) -> None:
        expected = (self.camera.height, self.camera.width, 3)
        if self.rgb.shape != expected or self.rgb.dtype != np.uint8:
            raise ValueError(f"rgb is {self.rgb.dtype} of shape {self.rgb.shape}, expected uint8 of {expected}")


def decode(
    image_bytes: bytes, options: PredictOptions | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> SourceImage:
    """Decode an image file, whose format is recognised by its content.

    Args:
        image_bytes: Content of a JPEG, PNG, WebP, TIFF, BMP, GIF (first frame), HEIC or AVIF.
        options: Options that may name the focal length; None leaves it to EXIF, or else to the default of 30 mm.
        max_pixels: Maximum number of pixels; larger images are refused before they are decoded.

    Raises:
        ImageError: The bytes are not an image, or it is broken, too large, too small or too long.
    """
    if not image_bytes:
        raise ImageError("the image has zero bytes: give the file's content")
    with _translate_errors():
        opened = _open(image_bytes, max_pixels)
        exif = opened.exif or _read_exif(opened.image)
        _check_projection(opened.image)
        orientation = None if opened.is_upright else _ORIENTATIONS.get(exif.get(ExifTags.Base.Orientation))
        rgb = _to_upright_array(opened.image, ToSrgb(opened.image, opened.coding), orientation)
    return _source_image(
        rgb,
        exif,
        options,
        image_format=opened.image_format,
        orientation=orientation,
        intrinsic_px=opened.intrinsic_px,
    )


def from_pil(
    image: Image.Image, options: PredictOptions | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> SourceImage:
    """Take an image that Pillow has opened, with its EXIF and colour profile.

    Args:
        image: The image, loaded or not.
        options: Options that may name the focal length, as for `decode`.
        max_pixels: Maximum number of pixels.

    Raises:
        ImageError: The image is broken, too large, too small or too long.
    """
    with _translate_errors():
        _check_size(*image.size, max_pixels)
        _check_kind(image)
        _check_projection(image)
        exif = _read_exif(image)
        image.load()
        orientation = _ORIENTATIONS.get(exif.get(ExifTags.Base.Orientation))
        rgb = _to_upright_array(image, ToSrgb(image), orientation)
    return _source_image(rgb, exif, options, image_format=image.format or "PIL", orientation=orientation)


def from_array(
    rgb: NDArray[Any], options: PredictOptions | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> SourceImage:
    """Take upright pixels.

    Args:
        rgb: (height, width, 3) uint8, sRGB.
        options: Options that may name the focal length; None takes the default of 30 mm.
        max_pixels: Maximum number of pixels.

    Raises:
        TypeError: The array has another shape or type.
        ImageError: The image is too large, too small or too long.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise TypeError(
            f"image is a numpy array of shape {rgb.shape} and type {rgb.dtype}: give (height, width, 3) uint8 in sRGB"
        )
    _check_size(rgb.shape[1], rgb.shape[0], max_pixels)
    # A copy, since torch warns about read-only arrays, and the caller may change the array while the request is queued.
    return _source_image(np.array(rgb, order="C"), {}, options, image_format="array", orientation=None)


def _source_image(
    rgb: NDArray[np.uint8],
    exif: dict[int, object],
    options: PredictOptions | None,
    *,
    image_format: str,
    orientation: Image.Transpose | None,
    intrinsic_px: float | None = None,
) -> SourceImage:
    height, width = rgb.shape[:2]
    chosen = focal_length.choose_focal_length(
        exif, options or PredictOptions(), width=width, height=height, intrinsic_px=intrinsic_px
    )
    camera = Camera(
        width=width,
        height=height,
        focal_length_px=chosen.px,
        focal_length_source=chosen.source,
        focal_length_reason=chosen.reason,
    )
    return SourceImage(rgb=rgb, camera=camera, image_format=image_format, orientation=orientation)


@dataclass(kw_only=True, slots=True)
class _Opened:
    """A decoded image with what its container says.

    Attributes:
        image: The pixels as they are stored.
        image_format: Format of the bytes.
        coding: Meaning of the pixels by the file's own numbers.
        exif: EXIF tags that are not to be read from the image; empty for those of the image.
        is_upright: Whether the pixels are upright, so that EXIF's orientation no longer counts.
        intrinsic_px: Focal length in pixels by the camera matrix.
    """

    image: Image.Image
    image_format: str = ""
    coding: Coding | None = None
    exif: dict[int, object] = field(default_factory=dict)
    is_upright: bool = False
    intrinsic_px: float | None = None

    def __post_init__(self) -> None:
        self.image_format = self.image_format or self.image.format or ""


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate the exceptions of decoders to ImageError."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # The plugins of WebP and GIF check Pillow's global limit themselves. It lies above `max_pixels` by default.
        raise ImageError(f"the image is too large for Pillow to decode ({reason_of(error)}): downscale it") from error
    except DECODER_ERRORS as error:
        if _UNSUPPORTED.search(str(error)):
            raise ImageError(
                f"the image is of a kind that cannot be read ({reason_of(error)}): export it as JPEG or PNG"
            ) from error
        raise ImageError(f"the image is broken or truncated ({reason_of(error)}): export or send it again") from error


def _open(image_bytes: bytes, max_pixels: int) -> _Opened:
    """Open and decode an image of any format.

    Raises:
        ImageError: The file is of another kind, or its size is out of the limits.
    """
    brands = _brands(image_bytes)
    if name := name_raw(image_bytes):
        return _open_raw(image_bytes, name, max_pixels)
    if brands & (_HEIF_BRANDS | _AVIF_BRANDS) and image_bytes[8:12] not in ISO_BRANDS:
        container = read_container(image_bytes)
        is_avif = bool(brands & _AVIF_BRANDS)
        if not is_avif and container is not None:
            is_avif = container.kinds.get(container.primary_item) == b"av01"
        return (_open_avif if is_avif else _open_heic)(image_bytes, container, max_pixels)
    if image_bytes.startswith(b"RIFF") and image_bytes[8:12] == b"WEBP":
        return _Opened(image=_load(WebPImagePlugin.WebPImageFile, image_bytes, max_pixels))
    if image_bytes.startswith(_TIFF_MAGIC):
        return _open_tiff(image_bytes, max_pixels)
    plugin = next((plugin for magic, plugin in _PLUGINS if image_bytes.startswith(magic)), None)
    if plugin is None:
        kind, remedy = name_kind(image_bytes) or ("", "")
        if kind:
            raise ImageError(f"the file is not an image that can be read, but {kind}: {remedy}")
        raise ImageError(f"the bytes are not an image: give one of {', '.join(FORMATS)}")
    if plugin is JpegImagePlugin.JpegImageFile:
        return _Opened(image=_load_jpeg(image_bytes, max_pixels))
    image = _load(plugin, image_bytes, max_pixels)
    coding = _read_cicp(image_bytes) if plugin is PngImagePlugin.PngImageFile else None
    if coding is not None:
        image.info.pop("icc_profile", None)
    return _Opened(image=image, coding=coding)


def _load(
    plugin: Callable[[io.BytesIO], ImageFile.ImageFile], image_bytes: bytes, max_pixels: int
) -> ImageFile.ImageFile:
    """Open and decode an image with one of Pillow's plugins."""
    _check_canvas(image_bytes, max_pixels)
    image = plugin(MeteredFile(image_bytes))
    _check_size(*image.size, max_pixels)
    _check_kind(image)
    prepare_to_load(image)
    image.load()
    return image


def _load_jpeg(image_bytes: bytes, max_pixels: int) -> Image.Image:
    """Decode a JPEG, even if it ends after its pixels without the marker of the end."""
    check_jpeg(image_bytes)
    pixels = image_bytes.rstrip(b"\xff")  # Half of the marker may be there.
    load = partial(_load, JpegImagePlugin.JpegImageFile, max_pixels=max_pixels)
    try:
        return load(image_bytes=image_bytes)
    except OSError as error:
        if "truncated" not in str(error):
            raise
        # libjpeg fills pixels that are missing without a word. What it fills in depends on the bytes at the end, so
        # that two different ends show whether, and down to which row, the pixels are complete.
        image = load(image_bytes=pixels + _END_OF_JPEG)
        if image.width * image.height > _MAX_REPAIRED_PX:
            raise
        other = load(image_bytes=pixels + _PROBE + _END_OF_JPEG)
        changed = ImageChops.difference(image, other).getbbox()
        num_missing_rows = 0 if changed is None else image.height - changed[1]
        if num_missing_rows > min(_MAX_MISSING_ROWS, image.height // _MIN_ROWS_PER_MISSING):
            raise
        _LOG.warning("the image lacks the end of its file, but its pixels are complete to the last rows")
        return image


def _open_tiff(image_bytes: bytes, max_pixels: int) -> _Opened:
    """Open a TIFF, or a camera raw that is one."""
    directory = tiff.read_directory(image_bytes)
    if directory is not None and directory.raw is not None:
        return _open_raw(image_bytes, directory.raw, max_pixels)
    if directory is not None and image_bytes.startswith(_BIG_ENDIAN_BIGTIFF):  # Pillow takes it for a classic TIFF.
        image_bytes = tiff.as_classic(image_bytes, directory)
        directory = tiff.read_directory(image_bytes)
    if directory is not None and directory.num_planes and not directory.is_rgb:
        raise ImageError("the image has planes of 16 bits that are not red, green and blue: export it as JPEG or PNG")
    if directory is not None and directory.compression not in TiffImagePlugin.COMPRESSION_INFO:
        raise ImageError(
            f"the image is a TIFF of compression {directory.compression}, which cannot be read: export it with LZW, "
            "Deflate or none"
        )
    load = partial(_load, TiffImagePlugin.TiffImageFile, max_pixels=max_pixels)
    if directory is None or not directory.num_planes:
        return _Opened(image=load(image_bytes=image_bytes))
    # Pillow reads planes of 16 bits as if they had 8. One plane alone is a grey image, which it reads right.
    whole = TiffImagePlugin.TiffImageFile(MeteredFile(image_bytes))
    _check_size(*whole.size, max_pixels)
    exif = _read_exif(whole)
    planes = [
        to_srgb(load(image_bytes=tiff.plane(image_bytes, directory, index))).getchannel(0)
        for index in range(min(directory.num_planes, 4))
    ]
    image = Image.merge("RGBA" if len(planes) == 4 else "RGB", planes)
    image.info.update(whole.info)
    return _Opened(image=image, image_format="TIFF", exif=exif)


def _open_raw(image_bytes: bytes, name: str, max_pixels: int) -> _Opened:
    image, tags = decode_raw(image_bytes, name, partial(_check_size, max_pixels=max_pixels))
    exif: dict[int, object] = {tag: tags[tag] for tag in _EXIF_TAGS if tag in tags}
    return _Opened(image=image, image_format=name, exif=exif, is_upright=True)


def _open_heic(image_bytes: bytes, container: Container | None, max_pixels: int) -> _Opened:
    coding = _coding(container)
    is_hdr = coding is not None and coding.is_hdr
    kind = container.kinds.get(container.primary_item) if container is not None else None
    if kind in _OTHER_CODECS:
        raise ImageError(
            f"the image is a HEIF coded with {_OTHER_CODECS[kind]}, which cannot be read: export it as JPEG"
        )
    heif = pillow_heif.open_heif(MeteredFile(image_bytes), convert_hdr_to_8bit=not is_hdr)
    _check_size(heif.size[0], heif.size[1], max_pixels)
    if coding is not None and is_hdr and heif.mode in ("RGB;16", "RGBA;16"):
        # The values of fewer bits are the upper ones of the 16.
        bits = int(heif.info.get("bit_depth", 16))
        image = convert_16_bits(np.asarray(heif), coding, white=((1 << bits) - 1) << (16 - bits))
        coding = None
    else:
        image = heif.to_pillow()
    # `to_pillow` resets the orientation in EXIF.
    image.info |= {key: heif.info[key] for key in ("exif", "xmp") if heif.info.get(key)}
    _check_size(*image.size, max_pixels)  # The file's transformations may have cropped it.
    # libheif has applied the file's own transformations. HEIF's standard ranks these above EXIF's orientation, and
    # phones write both: applying EXIF as well would rotate the image twice. Where the file has none, EXIF counts, as in
    # the viewers of phones.
    is_upright = container is None or container.is_turned
    intrinsic_px = None if container is None else container.focal_length_px
    return _Opened(image=image, image_format="HEIC", coding=coding, is_upright=is_upright, intrinsic_px=intrinsic_px)


def _open_avif(image_bytes: bytes, container: Container | None, max_pixels: int) -> _Opened:
    load = partial(_load, AvifImagePlugin.AvifImageFile, max_pixels=max_pixels)
    try:
        image: Image.Image = load(image_bytes=image_bytes)
    except DECODER_ERRORS:
        repaired = repair_avif(image_bytes)
        if repaired is None:
            raise
        image = load(image_bytes=repaired)
    if container is None:
        return _Opened(image=image, image_format="AVIF")
    if container.crop is not None and image.size == container.size:  # libavif leaves the cropping to its callers.
        image = image.crop(container.crop)
        _check_size(*image.size, max_pixels)
    return _Opened(image=image, image_format="AVIF", coding=_coding(container), intrinsic_px=container.focal_length_px)


def _coding(container: Container | None) -> Coding | None:
    if container is None or container.coding is None:
        return None
    return Coding.from_numbers(*container.coding)


def _read_cicp(png: bytes) -> Coding | None:
    """Return the coding by the chunk cICP of a PNG, which ranks above all others; None if it has none.

    Two bytes are the numbers of primaries and transfer in ITU-T H.273 (PNG specification, third edition, 11.3.2.6).
    """
    position = len(b"\x89PNG\r\n\x1a\n")
    for _ in range(_MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", png, position)
        if kind == b"cICP" and length == 4:
            return Coding.from_numbers(png[position + 8], png[position + 9])
        if kind == b"IDAT":
            return None
        position += length + 12
    return None


def _check_projection(image: Image.Image) -> None:
    """Refuse panoramas, which are no pictures of a pinhole camera, by Google's metadata in XMP."""
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        xmp = image.tag_v2.get(_XMP_TAG, xmp)
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    if not isinstance(xmp, bytes) or not any(namespace in xmp for namespace in _PANORAMA_NAMESPACES):
        return
    if found := _PROJECTION.search(xmp):
        projection = found[1].decode("ascii", "replace").lower()[:_MAX_PROJECTION_CHARS]
        raise ImageError(
            f"the image is a panorama ({projection}, by its GPano metadata), not the picture of a pinhole camera: cut "
            "a perspective view out of it, in a panorama viewer or editor, and give that"
        )


def _check_canvas(image_bytes: bytes, max_pixels: int) -> None:
    """Check the size in the header of GIF and WebP, whose plugins allocate memory for all pixels on opening."""
    width, height = sizes.canvas(image_bytes)
    if width * height > max_pixels:  # Every other error is left to the check of the opened image.
        _check_size(width, height, max_pixels)


def _check_kind(image: Image.Image) -> None:
    """Refuse images that can be decoded but do not show the photograph as taken: previews of raws, and floats."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(_NEW_SUBFILE_TYPE) == _REDUCED or _DNG_VERSION in tags:
        raise ImageError("the image is a camera raw, in which only a preview can be read: export it as JPEG or TIFF")
    if image.mode == "F":
        raise ImageError("the image holds floats, whose white is unknown: export it with 8 or 16 bits a channel")


def _brands(image_bytes: bytes) -> set[bytes]:
    """Return the major and compatible brands of an ISO base media file (HEIC, AVIF); empty for other files."""
    if image_bytes[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(image_bytes[:4], "big"), 256)
    return {image_bytes[8:12], *(image_bytes[start : start + 4] for start in range(16, end, 4))}


def _check_size(width: int, height: int, max_pixels: int) -> None:
    megapixels, limit = width * height / 1e6, max_pixels / 1e6
    if width * height > max_pixels:
        raise ImageError(
            f"the image is {width}x{height} ({megapixels:.1f} MP), the limit is {limit:g} MP: downscale it, or raise "
            "SHARP_MAX_MEGAPIXELS"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"the image is {width}x{height}, the least is {MIN_SIDE_PX} px a side: give a larger one")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"the image is {width}x{height}, the longest shape is {MAX_ASPECT}:1: crop it")


def _read_exif(image: Image.Image) -> dict[int, object]:
    """Return orientation and focal lengths from EXIF; tags that cannot be read are left out."""
    tags: dict[int, object] = {}
    try:
        exif = image.getexif()
        tags |= {tag: exif[tag] for tag in _EXIF_TAGS if tag in exif}
        block = exif.get_ifd(ExifTags.IFD.Exif)
        tags |= {tag: block[tag] for tag in _EXIF_TAGS if tag in block}
    except DECODER_ERRORS as error:
        _LOG.warning("the image's EXIF block is broken and was ignored: %s", error)
    return tags


def _to_upright_array(image: Image.Image, convert: ToSrgb, orientation: Image.Transpose | None) -> NDArray[np.uint8]:
    """Return (height, width, 3) pixels, converted and upright.

    It is done in strips: Pillow's own memory has four bytes a pixel, and must not be there twice.
    """
    width, height = image.size
    is_turned = orientation in _TURNED
    rgb = np.empty((width, height, 3) if is_turned else (height, width, 3), dtype=np.uint8)
    num_rows = max(1, _STRIP_PX // width)
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        strip = convert(image.crop((0, top, width, bottom)))
        if orientation is not None:
            strip = strip.transpose(orientation)
        part = slice(height - bottom, height - top) if orientation in _REVERSED else slice(top, bottom)
        rgb[(slice(None), part) if is_turned else part] = np.asarray(strip)
    return rgb
