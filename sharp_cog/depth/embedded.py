"""Depth that a photograph carries: portraits of phones, Google's depth metadata, and stereo pairs.

Ranges and units are those that the file names, and nothing is guessed from the numbers. Sources of the formulas:

- HEIC: auxiliary images, ISO/IEC 23008-12, with the depth representation of ITU-T H.265, annex G.14.
- Apple: XMP of the namespaces pixeldatainfo and depthData, in the auxiliary image of a HEIC, or in a further image of a
  JPEG in CIPA's Multi-Picture Format (DC-007).
- Google: https://developers.google.com/depthmap-metadata/encoding (GDepth) and Dynamic Depth 1.0.
- Stereo pairs: the group `ster` of ISO/IEC 23008-12, with the cameras' `cmin` and `cmex`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pillow_heif
from PIL import JpegImagePlugin, PngImagePlugin

from sharp_cog.depth import stereo
from sharp_cog.depth.files import MAX_PIXELS
from sharp_cog.depth.maps import FAR_DEPTH_M, MAX_ASPECT_DIFFERENCE, MIN_DEPTH_M, Depth, DepthMap, turned
from sharp_cog.errors import DepthError
from sharp_cog.imaging import xmp
from sharp_cog.imaging.boxes import Container, read_container
from sharp_cog.imaging.images import SourceImage
from sharp_cog.imaging.limits import MeteredFile, check_jpeg
from sharp_cog.imaging.pixels import DECODER_ERRORS
from sharp_cog.text import plain, reason_of

_APDI, _DEPTH_DATA = "http://ns.apple.com/pixeldatainfo/1.0/", "http://ns.apple.com/depthData/1.0/"
_GDEPTH, _NOTE = "http://ns.google.com/photos/1.0/depthmap/", "http://ns.adobe.com/xmp/note/"
_DYNAMIC, _ITEM = "http://ns.google.com/photos/dd/1.0/depthmap/", "http://ns.google.com/photos/dd/1.0/item/"
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"

_AUXILIARY_DEPTH = (b"urn:mpeg:hevc:2015:auxid:2", b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth")
_INVERSE_Z, _DISPARITY, _Z = 0, 1, 2
"""Types of depth representation in ITU-T H.265, table G.3; the other one is not linear."""
_MP_ENTRIES = 0xB002
_MAX_IMAGES = 20
"""Number of further images of a multi-picture JPEG that are looked at."""
_UNITS_M = {"": 1.0, "m": 1.0, "meters": 1.0, "mm": 0.001, "millimeters": 0.001, "cm": 0.01}
_PNG_MAGIC, _JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_LARGEST_8_BIT, _LARGEST_16_BIT = 255, 65_535


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedDepth:
    """The depth map in the file of a photograph, before it is decoded.

    Attributes:
        kind: Phrase such as `disparity of an Apple portrait`.
        width: Width of the map in pixels.
        height: Height of the map in pixels.
        load: Decodes the map: (height, width) float32 in metres, NaN where unknown, turned like the decoded image
            before EXIF's orientation is applied.
        is_metric: Whether the metres are measured, and not only in proportion.
        focal_length: Focal length and the longer side of the image that it belongs to, both in pixels; None if the
            file gives none with the depth.
        is_along_ray: Whether distances are along the rays, and not along the optical axis.
        image_aspect: Width over height of the image for which the map was made; None if it is that of the map.
        baseline_m: Distance between the cameras of a stereo pair in metres.
    """

    kind: str
    width: int
    height: int
    load: Callable[[], Depth]
    is_metric: bool = True
    focal_length: tuple[float, float] | None = None
    is_along_ray: bool = False
    image_aspect: float | None = None
    baseline_m: float | None = None


def find(image_bytes: bytes) -> EmbeddedDepth | None:
    """Find the depth that the file of a photograph carries; None if it carries none.

    Raises:
        DepthError: There is depth that is broken, or whose range the file does not say.
    """
    try:
        if image_bytes.startswith(_JPEG_MAGIC):
            return _find_in_jpeg(image_bytes)
        container = read_container(image_bytes)
        return None if container is None else _find_in_heic(image_bytes, container)
    except DECODER_ERRORS as error:
        raise _broken(error) from error


def decode(image_bytes: bytes, source: SourceImage) -> DepthMap | None:
    """Decode the depth that a photograph carries; None if it carries none.

    Args:
        image_bytes: Content of the photograph's file.
        source: The photograph, decoded.

    Returns:
        The map in the orientation of the upright image.

    Raises:
        DepthError: The depth is broken, its range is not known, or the photograph was cropped without it.
        NotInstalledError: A stereo pair needs the extra `stereo`.
    """
    found = find(image_bytes)
    if found is None:
        return None
    try:
        depth_m = found.load()
    except DECODER_ERRORS as error:
        raise _broken(error) from error
    if source.orientation is not None:
        depth_m = turned(depth_m, source.orientation)
    camera = source.camera
    height, width = depth_m.shape
    aspect = width / height
    if found.image_aspect is not None:  # The map is stretched over an image of that aspect.
        is_turned = (camera.width > camera.height) != (found.image_aspect > 1)
        aspect = 1 / found.image_aspect if is_turned else found.image_aspect
    difference = abs(aspect * camera.height / camera.width - 1)
    if difference > MAX_ASPECT_DIFFERENCE:
        raise DepthError(
            f"the depth in the photograph ({width}x{height}) has another aspect than the image ({camera.width}x"
            f"{camera.height}), which was cropped without it: give a depth map, or the original photograph"
        )
    focal_length_px = None
    if found.focal_length is not None:
        focal_length_px = found.focal_length[0] * max(camera.width, camera.height) / found.focal_length[1]
    if found.is_along_ray:
        used_px = camera.focal_length_px if focal_length_px is None else focal_length_px
        depth_m = _along_axis(depth_m, used_px / camera.width, camera.height / camera.width)
    known = depth_m[~np.isnan(depth_m)]
    if not len(known):
        raise DepthError("the depth in the photograph has no known pixel: give a depth map")
    depth_m = np.clip(depth_m, np.float32(MIN_DEPTH_M), np.float32(FAR_DEPTH_M))
    near_m, far_m = (float(value) for value in (known.min(), known.max()))
    scale = "" if found.is_metric else ", whose scale is approximate"
    return DepthMap(
        depth_m=np.ascontiguousarray(depth_m, dtype=np.float32),
        is_metric=found.is_metric,
        origin=f"{found.kind}, {width}x{height}, {near_m:.3g} to {far_m:.3g} m{scale}",
        focal_length_px=focal_length_px,
    )


def describe(image_bytes: bytes) -> dict[str, object]:
    """Return facts about the depth that a photograph carries, for people: kind, size and range; empty for none."""
    try:
        found = find(image_bytes)
        if found is None:
            return {}
        facts: dict[str, object] = {"kind": found.kind, "width": found.width, "height": found.height}
        if found.baseline_m is not None:  # Matching the two images takes seconds.
            return {**facts, "baseline_m": round(found.baseline_m, 5)}
        depth_m = found.load()
    except (DepthError, *DECODER_ERRORS) as error:
        return {"error": reason_of(error)}
    near_m, far_m = float(np.nanmin(depth_m)), float(np.nanmax(depth_m))
    return {**facts, "near_m": float(f"{near_m:.4g}"), "far_m": float(f"{far_m:.4g}"), "is_metric": found.is_metric}


def _broken(error: BaseException) -> DepthError:
    return DepthError(f"the depth in the photograph is broken ({reason_of(error)}): give a depth map")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DepthError(
            f"the depth in the photograph is {width}x{height}, the limit is {MAX_PIXELS // 10**6} MP: give a depth map"
        )


def _along_axis(distance_m: Depth, disparity_factor: float, shape: float) -> Depth:
    """Convert distances along the rays to depth along the optical axis.

    Args:
        distance_m: (height, width), metres.
        disparity_factor: Focal length over the width of the image.
        shape: Height over width of the image.
    """
    height, width = distance_m.shape
    x = ((np.arange(width) + 0.5) / width - 0.5) / disparity_factor
    y = ((np.arange(height) + 0.5) / height - 0.5) * shape / disparity_factor
    depth_m: Depth = (distance_m / np.sqrt(1 + x[None] ** 2 + y[:, None] ** 2)).astype(np.float32)
    return depth_m


# Apple.


@dataclass(frozen=True, kw_only=True, slots=True)
class _Range:
    """The numbers that the least and the largest value of a map stand for.

    Attributes:
        low: Number of the least value.
        high: Number of the largest value.
        is_disparity: Whether the numbers are inverse metres, and not metres.
        lowest: The least value.
        highest: The largest value.
    """

    low: float
    high: float
    is_disparity: bool
    lowest: float = 0.0
    highest: float = float(_LARGEST_8_BIT)

    def to_metres(self, values: Depth) -> Depth:
        share = (values - np.float32(self.lowest)) / np.float32(self.highest - self.lowest)
        numbers = self.low + share * np.float32(self.high - self.low)
        if self.is_disparity:
            numbers = 1 / np.maximum(numbers, np.float32(1 / FAR_DEPTH_M))
        depth_m: Depth = np.where(numbers > 0, numbers, np.float32(np.nan)).astype(np.float32)
        return depth_m


def _apple_range(packet: xmp.Packet) -> _Range | None:
    """Return the range that Apple's metadata names; None for packets of other images."""
    kind = packet.get(_APDI, "AuxiliaryImageType").lower()
    low, high = (packet.number(_APDI, name) for name in ("FloatMinValue", "FloatMaxValue"))
    if kind not in ("disparity", "depth") or low is None or high is None:
        return None
    lowest, highest = (packet.number(_APDI, name) for name in ("IntMinValue", "IntMaxValue"))
    has_integers = lowest is not None and highest is not None and highest > lowest
    return _Range(
        low=low,
        high=high,
        is_disparity=kind == "disparity",
        lowest=lowest if has_integers and lowest is not None else 0.0,
        highest=highest if has_integers and highest is not None else float(_LARGEST_8_BIT),
    )


def _apple_focal_length(packet: xmp.Packet) -> tuple[float, float] | None:
    """Return the focal length of Apple's camera matrix, and the longer side of its image, both in pixels."""
    sides = [packet.number(_DEPTH_DATA, f"IntrinsicMatrixReference{name}") for name in ("Width", "Height")]
    try:
        focal_length_px = float(packet.get(_DEPTH_DATA, "IntrinsicMatrix").split()[0])
    except (ValueError, IndexError):
        return None
    known = [side for side in sides if side is not None and side > 0]
    return (focal_length_px, max(known)) if focal_length_px > 0 and len(known) == 2 else None


def _apple_depth(
    packet: xmp.Packet, range_: _Range, values: Callable[[], Depth], size: tuple[int, int]
) -> EmbeddedDepth:
    what = "disparity" if range_.is_disparity else "depth"
    return EmbeddedDepth(
        kind=f"{what} of an Apple portrait",
        width=size[0],
        height=size[1],
        load=lambda: range_.to_metres(values()),
        # By Apple's documentation of AVDepthData.Accuracy, `relative` depth has the right order and a rough scale.
        is_metric=packet.get(_DEPTH_DATA, "Accuracy").lower() != "relative",
        focal_length=_apple_focal_length(packet),
    )


# HEIC.


def _find_in_heic(image_bytes: bytes, container: Container) -> EmbeddedDepth | None:
    if container.kinds.get(container.primary_item) == b"av01":
        return None  # libheif's package for HEIC reads no AVIF here.
    heif = pillow_heif.open_heif(MeteredFile(image_bytes))
    images = heif.info.get("depth_images") or []
    if not images:
        return _find_stereo(heif, container)
    image = images[0]
    width, height = image.size
    _check_size(width, height)

    def values() -> Depth:
        pixels = np.asarray(image)
        pixels = pixels[..., 0] if pixels.ndim == 3 else pixels
        if pixels.dtype != np.uint8:
            pixels = pixels / np.float32(_LARGEST_16_BIT / _LARGEST_8_BIT)
        return _turned_like_primary(pixels.astype(np.float32), container)

    for packet in xmp.scan(image_bytes):
        range_ = _apple_range(packet)
        if range_ is not None:
            return _apple_depth(packet, range_, values, (width, height))
    range_ = _range_of_representation(image.info.get("metadata") or {})
    is_apple = (heif.info.get("exif") or b"").find(b"Apple\0") >= 0
    return EmbeddedDepth(
        kind=f"auxiliary {'disparity' if range_.is_disparity else 'depth'} of a HEIC",
        width=width,
        height=height,
        load=lambda: range_.to_metres(values()),
        is_metric=is_apple,  # The standard leaves the unit open; Apple's is metres.
    )


def _range_of_representation(about: dict[str, Any]) -> _Range:
    """Return the range by the depth representation information of ITU-T H.265."""
    kind = about.get("representation_type")
    near, far = about.get("z_near"), about.get("z_far")
    low, high = about.get("d_min"), about.get("d_max")
    if kind == _DISPARITY and low is not None and high is not None and high > low:
        return _Range(low=low, high=high, is_disparity=True)
    if kind == _INVERSE_Z and near and far and far > near > 0:
        return _Range(low=1 / far, high=1 / near, is_disparity=True)
    if kind == _Z and near is not None and far and far > near >= 0:
        return _Range(low=near, high=far, is_disparity=False)
    raise DepthError(
        f"the photograph carries depth of representation type {plain(kind)} without a range that is known: give a "
        "depth map"
    )


def _turned_like_primary(values: Depth, container: Container) -> Depth:
    """Crop and turn a map like the main image, unless the file did that with the map itself."""
    item = next(
        (item for item in container.kinds if (container.find(b"auxC", item) or b"")[4:].startswith(_AUXILIARY_DEPTH)),
        None,
    )
    if item is None or any(container.find(kind, item) is not None for kind in (b"irot", b"imir", b"clap")):
        return values
    if container.crop is not None and container.size is not None:
        height, width = values.shape
        left, top, right, bottom = container.crop
        across, down = width / container.size[0], height / container.size[1]
        values = values[round(top * down) : round(bottom * down), round(left * across) : round(right * across)]
    for kind, content in container.turns:
        if kind == b"irot":
            values = np.rot90(values, content[0] & 3)
        else:
            values = values[:, ::-1] if content[0] & 1 else values[::-1]
    return np.ascontiguousarray(values)


def _find_stereo(heif: Any, container: Container) -> EmbeddedDepth | None:
    """Find a stereo pair whose main image is one of its two."""
    groups = heif.info.get("entity_groups") or []
    group = next(
        (
            group
            for group in groups
            if group["type"] == "ster" and len(group["entities"]) == 2 and container.primary_item in group["entities"]
        ),
        None,
    )
    if group is None or None in group["images"]:
        return None
    left, right = (container.position_m(item) for item in group["entities"])
    baseline_m = abs(right - left) if left is not None and right is not None else 0.0
    focal_length_px = container.focal_length_px
    if not baseline_m or focal_length_px is None or container.size is None:
        raise DepthError(
            "the photograph is a stereo pair without its cameras' focal length and distance: give a depth map"
        )
    turns = container.turns
    if any(kind == b"imir" for kind, _ in turns):
        raise DepthError("the photograph is a stereo pair that is stored mirrored: give a depth map")
    num_turns = sum(content[0] & 3 for _, content in turns)
    is_left = group["entities"][0] == container.primary_item
    width, height = container.size

    def load() -> Depth:
        # Rows must lie along the line between the cameras, as they do before the images are turned.
        views = [np.rot90(np.asarray(heif[index].to_pillow().convert("RGB")), -num_turns) for index in group["images"]]
        if views[0].shape != views[1].shape:
            raise DepthError("the two images of the stereo pair have different sizes: give a depth map")
        depth_m = stereo.depth_from_pair(
            views[0], views[1], focal_length_px=focal_length_px, baseline_m=baseline_m, of_left=is_left
        )
        return np.rot90(depth_m, num_turns)

    return EmbeddedDepth(
        kind=f"stereo pair, {baseline_m * 1000:.1f} mm apart",
        width=width,
        height=height,
        load=load,
        focal_length=(focal_length_px, max(width, height)),
        baseline_m=baseline_m,
    )


# JPEG.


def _find_in_jpeg(image_bytes: bytes) -> EmbeddedDepth | None:
    end = check_jpeg(image_bytes)
    image = JpegImagePlugin.JpegImageFile(MeteredFile(image_bytes))
    segments = [content for name, content in image.applist if name == "APP1"]
    packets = [xmp.read(segment[len(_XMP_HEADER) :]) for segment in segments if segment.startswith(_XMP_HEADER)]
    for packet in packets:
        if packet is None:
            continue
        found = _find_dynamic_depth(packet, image_bytes, end) or _find_gdepth(packet, segments)
        if found is not None:
            return found
    return _find_further_image(image, image_bytes)


def _find_further_image(image: JpegImagePlugin.JpegImageFile, image_bytes: bytes) -> EmbeddedDepth | None:
    """Find Apple's depth among the further images of a multi-picture JPEG."""
    for content in _further_images(image, image_bytes):
        head = content[: content.find(b"\xff\xda") if b"\xff\xda" in content else None]
        for packet in xmp.scan(head):
            range_ = _apple_range(packet)
            if range_ is not None:
                load, size, _ = _grey(content)
                return _apple_depth(packet, range_, load, size)
    return None


def _further_images(image: JpegImagePlugin.JpegImageFile, image_bytes: bytes) -> Iterator[bytes]:
    """Yield the images after the first one, by the index of the Multi-Picture Format; none if it is broken."""
    try:
        index = image._getmp()
        entries = [(int(each["DataOffset"]), int(each["Size"])) for each in (index or {}).get(_MP_ENTRIES, ())[1:]]
    except DECODER_ERRORS:
        return
    start = image.info.get("mpoffset", 0)
    for offset, length in entries[:_MAX_IMAGES]:
        content = image_bytes[start + offset : start + offset + length]
        if content.startswith(_JPEG_MAGIC):
            yield content


def _find_gdepth(packet: xmp.Packet, segments: list[bytes]) -> EmbeddedDepth | None:
    """Find a depth map of Google's GDepth, whose image lies in the metadata as base64."""
    if (_GDEPTH, "Format") not in packet.values and (_GDEPTH, "Near") not in packet.values:
        return None
    data = packet.get(_GDEPTH, "Data")
    if not data:
        extended = xmp.read(xmp.merge_extension(segments, packet.get(_NOTE, "HasExtendedXMP")))
        data = "" if extended is None else extended.get(_GDEPTH, "Data")
    try:
        content = base64.b64decode(data, validate=False)
    except binascii.Error as error:
        raise _broken(error) from error
    sides = [packet.number(_GDEPTH, name) for name in ("ImageWidth", "ImageHeight")]
    aspect = sides[0] / sides[1] if sides[0] and sides[1] else None
    return _google_depth(packet, _GDEPTH, content, kind="GDepth", image_aspect=aspect)


def _find_dynamic_depth(packet: xmp.Packet, image_bytes: bytes, end: int) -> EmbeddedDepth | None:
    """Find a depth map of Dynamic Depth, whose image follows the main image in the file."""
    if (_DYNAMIC, "Near") not in packet.values:
        return None
    uri = packet.get(_DYNAMIC, "DepthURI")
    items = [own for own in packet.structures if (_ITEM, "DataURI") in own or (_ITEM, "Mime") in own]
    # The main image comes first, and ends where its JPEG ends; each further item begins behind the one before.
    position = end + _whole(items[0], "Padding") if items else end
    for item in items[1:]:
        length = _whole(item, "Length")
        if item.get((_ITEM, "DataURI"), "").strip() == uri:
            content = image_bytes[position : position + length]
            return _google_depth(packet, _DYNAMIC, content, kind="Dynamic Depth", image_aspect=None)
        position += length + _whole(item, "Padding")
    raise DepthError(
        f"the photograph's metadata names a depth map {plain(uri)!r} that is not in the file: give a depth map"
    )


def _whole(item: dict[tuple[str, str], str], name: str) -> int:
    text = item.get((_ITEM, name), "0").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0


def _google_depth(
    packet: xmp.Packet, namespace: str, content: bytes, *, kind: str, image_aspect: float | None
) -> EmbeddedDepth:
    """Read a depth map whose range is that of Google's formats RangeLinear or RangeInverse."""
    near, far = (packet.number(namespace, name) for name in ("Near", "Far"))
    format_ = packet.get(namespace, "Format", "RangeInverse")
    unit = packet.get(namespace, "Units").lower()
    load, size, white = _grey(content)
    is_inverse = format_.lower() == "rangeinverse"
    if unit == "diopters" and near and far:  # Inverse metres.
        near, far = 1 / near, 1 / far
    if near is None or far is None or not 0 < near < far or not (is_inverse or format_.lower() == "rangelinear"):
        raise DepthError(
            f"the photograph's {kind} names the range {plain(near)} to {plain(far)} in the format {plain(format_)!r}, "
            "which is none: give a depth map"
        )
    is_metric = unit in _UNITS_M or unit == "diopters"
    unit_m = _UNITS_M.get(unit, 1.0)

    def depth_m() -> Depth:
        share = load() / np.float32(white)  # 0 is near in both formats.
        depth = far * near / (far - share * (far - near)) if is_inverse else near + share * (far - near)
        return np.asarray(depth * unit_m, dtype=np.float32)

    return EmbeddedDepth(
        kind=f"{kind} map",
        width=size[0],
        height=size[1],
        load=depth_m,
        is_metric=is_metric,
        is_along_ray=packet.get(namespace, "MeasureType").lower() == "opticray",
        image_aspect=image_aspect,
    )


def _grey(content: bytes) -> tuple[Callable[[], Depth], tuple[int, int], int]:
    """Open a JPEG or PNG of grey; return its decoder, its width and height, and its largest value."""
    if not content.startswith((_JPEG_MAGIC, _PNG_MAGIC)):
        raise DepthError("the depth in the photograph is neither JPEG nor PNG, or is not in the file: give a depth map")
    is_png = content.startswith(_PNG_MAGIC)
    if not is_png:
        check_jpeg(content)
    image = (PngImagePlugin.PngImageFile if is_png else JpegImagePlugin.JpegImageFile)(MeteredFile(content))
    _check_size(*image.size)
    is_16_bit = image.mode.startswith("I")

    def load() -> Depth:
        image.load()
        return np.asarray(image if is_16_bit else image.convert("L")).astype(np.float32)

    return load, image.size, _LARGEST_16_BIT if is_16_bit else _LARGEST_8_BIT
