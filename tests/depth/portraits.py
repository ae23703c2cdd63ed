"""Photographs that carry depth, written as the published structures say: Google's, Apple's, and HEIF's."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
from collections.abc import Sequence

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 96, 64
NEAR_M, FAR_M = 0.5, 4.0
SEI = bytes.fromhex("000000110000000d4e01b109351f7bfc010bc620")
"""Depth representation of ITU-T H.265 as iPhones write it: disparity from 1.498 to 4.383."""
D_MIN, D_MAX = 1.498046875, 4.3828125

_SOI, _RDF = b"\xff\xd8", "http://www.w3.org/1999/02/22-rdf-syntax-ns#"


def true_depth(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.float64]:
    """Return depth that grows to the right and, less, downwards, so that every turn of it is another one."""
    y, x = np.mgrid[0:height, 0:width]
    depth: NDArray[np.float64] = NEAR_M + (FAR_M - NEAR_M) * (0.8 * x / (width - 1) + 0.2 * y / (height - 1))
    return depth


def jpeg(pixels: NDArray[np.uint8] | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=100, **options)
    return file.getvalue()


def png(pixels: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def packet(body: str) -> bytes:
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">{body}</rdf:RDF></x:xmpmeta>'.encode()


def with_segments(image: bytes, *segments: tuple[int, bytes]) -> bytes:
    """Return a JPEG with segments, given as marker and content, after its beginning."""
    written = [bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content for marker, content in segments]
    return _SOI + b"".join(written) + image[len(_SOI) :]


def xmp_segment(xml: bytes) -> tuple[int, bytes]:
    return 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xml


def google_share(depth: NDArray[np.float64], form: str, near: float, far: float) -> NDArray[np.float64]:
    """Return normalised values by the formulas of Google's formats."""
    if form == "RangeLinear":
        return (depth - near) / (far - near)
    return far * (depth - near) / (depth * (far - near))


def gdepth_jpeg(
    form: str = "RangeInverse",
    *,
    units: str = "m",
    is_extended: bool = False,
    bits: int = 8,
    image: bytes | None = None,
    extra: str = "",
    depth: NDArray[np.float64] | None = None,
) -> bytes:
    """Return a photograph with GDepth (https://developers.google.com/depthmap-metadata/reference)."""
    per_metre = 1000.0 if units == "mm" else 1.0
    share = google_share(true_depth() if depth is None else depth, form, NEAR_M, FAR_M)
    white = (1 << bits) - 1
    data = base64.b64encode(png(np.rint(share * white).astype(np.uint8 if bits == 8 else np.uint16))).decode()
    names = 'xmlns:GDepth="http://ns.google.com/photos/1.0/depthmap/" xmlns:xmpNote="http://ns.adobe.com/xmp/note/"'
    facts = (
        f'GDepth:Format="{form}" GDepth:Near="{NEAR_M * per_metre}" GDepth:Far="{FAR_M * per_metre}" '
        f'GDepth:Mime="image/png" GDepth:Units="{units}" {extra}'
    )
    if not is_extended:
        xml = packet(f'<rdf:Description rdf:about="" {names} {facts} GDepth:Data="{data}"/>')
        return with_segments(image or jpeg(), xmp_segment(xml))
    extended = packet(f'<rdf:Description rdf:about="" {names} GDepth:Data="{data}"/>')
    guid = hashlib.md5(extended).hexdigest().upper()
    xml = packet(f'<rdf:Description rdf:about="" {names} {facts} xmpNote:HasExtendedXMP="{guid}"/>')
    step = len(extended) // 3 + 1
    parts = [
        (
            0xE1,
            b"http://ns.adobe.com/xmp/extension/\0"
            + guid.encode()
            + struct.pack(">II", len(extended), start)
            + extended[start : start + step],
        )
        for start in range(0, len(extended), step)
    ]
    return with_segments(image or jpeg(), xmp_segment(xml), *parts[::-1])


def dynamic_depth_jpeg(*, units: str = "Meters", trailer: bytes = b"") -> bytes:
    """Return a photograph with Dynamic Depth 1.0: another picture and the depth map follow the main image."""
    depth_image = png(np.rint(google_share(true_depth(), "RangeInverse", NEAR_M, FAR_M) * 255).astype(np.uint8))
    other = jpeg()
    near, far = (1 / NEAR_M, 1 / FAR_M) if units == "Diopters" else (NEAR_M, FAR_M)
    dd = "http://ns.google.com/photos/dd/1.0"
    names = " ".join(
        f'xmlns:{prefix}="{dd}/{prefix.lower()}/"' for prefix in ("Device", "Container", "Item", "Camera", "DepthMap")
    )
    items = [
        f'Item:Mime="image/{mime}" Item:Length="{length}" Item:Padding="{padding}" Item:DataURI="{uri}"'
        for mime, length, padding, uri in (
            ("jpeg", 0, 5, "primary_image"),
            ("jpeg", len(other), 0, "android/original_image"),
            ("png", len(depth_image), 0, "android/depthmap"),
        )
    ]
    listed = "".join(f'<rdf:li rdf:parseType="Resource"><Container:Item {item}/></rdf:li>' for item in items)
    xml = packet(
        f"<rdf:Description {names}><Device:Container rdf:parseType='Resource'><Container:Directory><rdf:Seq>{listed}"
        "</rdf:Seq></Container:Directory></Device:Container><Device:Cameras><rdf:Seq><rdf:li rdf:parseType='Resource'>"
        "<Device:Camera rdf:parseType='Resource'><Camera:DepthMap rdf:parseType='Resource'>"
        f"<DepthMap:Format>RangeInverse</DepthMap:Format><DepthMap:Near>{near}</DepthMap:Near>"
        f"<DepthMap:Far>{far}</DepthMap:Far><DepthMap:Units>{units}</DepthMap:Units>"
        "<DepthMap:DepthURI>android/depthmap</DepthMap:DepthURI></Camera:DepthMap></Device:Camera></rdf:li></rdf:Seq>"
        "</Device:Cameras></rdf:Description>"
    )
    return with_segments(jpeg(), xmp_segment(xml)) + bytes(5) + other + depth_image + trailer


def apple_packet(kind: str, low: float, high: float, *, accuracy: str = "absolute", focal_px: float = 3000.0) -> bytes:
    """Return Apple's metadata of an auxiliary image, as in iPhones' HEIC files."""
    matrix = "".join(f"<rdf:li>{value}</rdf:li>" for value in (focal_px, 0, 0, 0, focal_px, 0, 1990, 1510, 1))
    return packet(
        '<rdf:Description rdf:about="" xmlns:apdi="http://ns.apple.com/pixeldatainfo/1.0/" '
        'xmlns:depthData="http://ns.apple.com/depthData/1.0/"><apdi:IntMaxValue>255</apdi:IntMaxValue>'
        f"<apdi:IntMinValue>0</apdi:IntMinValue><apdi:FloatMaxValue>{high}</apdi:FloatMaxValue>"
        f"<apdi:FloatMinValue>{low}</apdi:FloatMinValue><apdi:AuxiliaryImageType>{kind}</apdi:AuxiliaryImageType>"
        "<depthData:IntrinsicMatrixReferenceWidth>4032</depthData:IntrinsicMatrixReferenceWidth>"
        "<depthData:IntrinsicMatrixReferenceHeight>2688</depthData:IntrinsicMatrixReferenceHeight>"
        f"<depthData:IntrinsicMatrix><rdf:Seq>{matrix}</rdf:Seq></depthData:IntrinsicMatrix>"
        f"<depthData:Accuracy>{accuracy}</depthData:Accuracy></rdf:Description>"
    )


def apple_values(kind: str, depth: NDArray[np.float64] | None = None) -> tuple[NDArray[np.uint8], float, float]:
    """Return the 8-bit values of a map, and the numbers of the least and the largest."""
    depth = true_depth() if depth is None else depth
    numbers = 1 / depth if kind == "disparity" else depth
    low, high = float(numbers.min()), float(numbers.max())
    return np.rint((numbers - low) / (high - low) * 255).astype(np.uint8), low, high


def apple_jpeg(kind: str = "disparity", *, orientation: int = 1, accuracy: str = "absolute") -> bytes:
    """Return a portrait JPEG: depth is the second image of the Multi-Picture Format (CIPA DC-007)."""
    values, low, high = apple_values(kind)
    exif = Image.Exif()
    exif[0x0112] = orientation
    second = with_segments(jpeg(values), xmp_segment(apple_packet(kind, low, high, accuracy=accuracy)))
    return multi_picture(jpeg(exif=exif.tobytes()), second)


def multi_picture(first: bytes, second: bytes) -> bytes:
    """Join two JPEG images with the index of the Multi-Picture Format."""
    # Version, number of images, and their entries: attribute, size, offset from the index, and two dependents.
    head = b"MPF\0" + struct.pack(">2sHIH", b"MM", 42, 8, 3)
    entries_at = 8 + 2 + 3 * 12 + 4
    head += struct.pack(">HHI4s", 0xB000, 7, 4, b"0100")
    head += struct.pack(">HHII", 0xB001, 4, 1, 2)
    head += struct.pack(">HHII", 0xB002, 7, 32, entries_at) + bytes(4)
    length = len(first) + 4 + len(head) + 32
    index_at = 2 + 4 + 4  # Behind the beginning of the file, marker and length, and the name.
    entries = struct.pack(">IIIHH", 0x030000, length, 0, 0, 0)
    entries += struct.pack(">IIIHH", 0, len(second), length - index_at, 0, 0)
    return with_segments(first, (0xE2, head + entries)) + second


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def full_box(kind: bytes, content: bytes, *, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, bytes((version,)) + flags.to_bytes(3, "big") + content)


def heic(
    images: Sequence[NDArray[np.uint8]],
    *,
    properties: Sequence[Sequence[bytes]],
    auxiliary: Sequence[int] = (),
    group: Sequence[int] = (),
    metadata: bytes = b"",
) -> bytes:
    """Write images into one HEIC (ISO/IEC 23008-12); the first one is the main image.

    Args:
        images: Pixels, grey or RGB, which pillow-heif encodes.
        properties: Encoded boxes of properties for each image, besides its size and coding.
        auxiliary: Numbers, from 1, of images that are auxiliary images of the first.
        group: Numbers of the left and the right image of a stereo pair.
        metadata: XMP packet of the first auxiliary image.
    """
    stored, coded = list[bytes](), list[list[bytes]]()
    for pixels, others in zip(images, properties, strict=True):
        file = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=-1)
        content = file.getvalue()
        stored.append(_payload(content, b"mdat"))
        own = [_whole_box(content, kind) for kind in (b"hvcC", b"ispe")]
        coded.append([*own, *others])
    boxes = [each for own in coded for each in own]
    if metadata:
        stored.append(metadata)
    entries, places, number = b"", b"", 0
    for item, own in enumerate(coded, 1):
        places += struct.pack(">HB", item, len(own)) + bytes(number + 1 + index for index in range(len(own)))
        number += len(own)
        entries += full_box(b"infe", struct.pack(">HH4s", item, 0, b"hvc1") + b"\0", version=2)
    if metadata:
        xmp = struct.pack(">HH4s", len(stored), 0, b"mime") + b"\0application/rdf+xml\0\0"
        entries += full_box(b"infe", xmp, version=2)
    references = b"".join(box(b"auxl", struct.pack(">HHH", item, 1, 1)) for item in auxiliary)
    if metadata:
        references += box(b"cdsc", struct.pack(">HHH", len(stored), 1, auxiliary[0]))
    inner = full_box(b"hdlr", bytes(4) + b"pict" + bytes(13)) + full_box(b"pitm", struct.pack(">H", 1))
    inner += full_box(b"iinf", struct.pack(">H", len(stored)) + entries)
    inner += full_box(b"iref", references) if references else b""
    inner += box(b"iprp", box(b"ipco", b"".join(boxes)) + full_box(b"ipma", struct.pack(">I", len(coded)) + places))
    if group:
        numbers = struct.pack(f">II{len(group)}I", 100, len(group), *group)
        inner += box(b"grpl", full_box(b"ster", numbers))
    head = box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")
    # The places of the items follow the size of all boxes before the pixels, which does not depend on them.
    offset = len(head) + len(full_box(b"meta", inner + _locations(stored, 0))) + 8
    return head + full_box(b"meta", inner + _locations(stored, offset)) + box(b"mdat", b"".join(stored))


def cmin(focal_px: float, size: int) -> bytes:
    """Return the camera matrix for an image of a width."""
    one = 1 << 20
    numbers = (round(focal_px / size * one), one // 2, one // 2)
    return full_box(b"cmin", struct.pack(">iii", *numbers), flags=20 << 8)


def cmex(x_um: int) -> bytes:
    """Return the position of a camera along the rows, in micrometres."""
    return full_box(b"cmex", struct.pack(">i", x_um), flags=1) if x_um else full_box(b"cmex", b"")


def _locations(stored: list[bytes], offset: int) -> bytes:
    content = struct.pack(">BBH", 0x44, 0, len(stored))
    for item, each in enumerate(stored, 1):
        content += struct.pack(">HHHII", item, 0, 1, offset, len(each))
        offset += len(each)
    return full_box(b"iloc", content)


def _payload(content: bytes, kind: bytes) -> bytes:
    return _whole_box(content, kind)[8:]


def _whole_box(content: bytes, kind: bytes) -> bytes:
    at = content.rindex(kind) - 4
    return content[at : at + int.from_bytes(content[at : at + 4], "big")]
