"""Naming files that are no image that can be read: what they are by their first bytes, and what to do with them."""

from __future__ import annotations

import re

# The first expression that matches at the beginning of a file names its kind, with its article, and the remedy.
_EXPORT = "export it as JPEG or PNG"
_FRAME = "give one of its frames as JPEG or PNG"
_PAGE = "export the page as JPEG or PNG"
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL", _EXPORT),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "a JPEG 2000", _EXPORT),
    (rb"8BPS", "a Photoshop document (PSD)", _EXPORT),
    (rb"gimp xcf", "a GIMP document (XCF)", _EXPORT),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE svg[^>]*>|\s)*<svg\b", "an SVG drawing", _EXPORT),
    (rb".{0,1000}%PDF-", "a PDF document", _PAGE),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document", _PAGE),
    (
        rb"(\xef\xbb\xbf)?\s*(<!doctype html|<html|<head|<body)",
        "a web page",
        "give the image itself, not a page with it",
    ),
    (rb"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with `git lfs pull`"),
    (rb"RIFF....AVI |\x1aE\xdf\xa3|\0\0\x01[\xba\xb3]|FLV\x01|OggS|0&\xb2u\x8ef\xcf\x11", "a video", _FRAME),
    (rb"....(moov|mdat|wide|free|skip|pnot)", "a video", _FRAME),
    (rb"RIFF....WAVE|ID3|fLaC", "a sound", "give a photograph"),
    (rb"v/1\x01", "an OpenEXR image, whose white is unknown", _EXPORT),
    (rb"#\?(RADIANCE|RGBE)", "a Radiance HDR image, whose white is unknown", _EXPORT),
    (rb"\0\0[\x01\x02]\0", "a Windows icon", _EXPORT),
    (rb"qoif", "a QOI image", _EXPORT),
    (rb"P[1-7]\s", "a PNM image", _EXPORT),
    (rb"P[Ff]\s", "a PFM map", "give it as the depth map, and a photograph as the image"),
    (rb"\x93NUMPY", "a NumPy array", "give it as the depth map, and a photograph as the image"),
    (rb".{128}DICM", "a DICOM file", _EXPORT),
    (rb"ply\r?\n|glTF|NGSP", "a 3D model or splat", "give a photograph"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive", "give one of the files in it"),
)

_RAWS: tuple[tuple[bytes, str], ...] = (
    (rb"....ftypcrx ", "Canon CR3"),
    (rb"II\*\0....CR\x02", "Canon CR2"),
    (rb"II....HEAPCCDR", "Canon CRW"),
    (rb"FUJIFILMCCD-RAW", "Fujifilm RAF"),
    (rb"IIR[OS]|MMOR", "Olympus ORF"),
    (rb"IIU\0", "Panasonic RW2"),
    (rb"FOVb", "Sigma X3F"),
    (rb"\0MRM", "Minolta MRW"),
    (rb"II\*\0....IIII|IIII", "Phase One IIQ"),
)

ISO_BRANDS: dict[bytes, tuple[str, str]] = {
    b"avci": ("a HEIF image coded with H.264", _EXPORT),
    b"avcs": ("a HEIF sequence coded with H.264", _FRAME),
    b"jpeg": ("a HEIF image coded with JPEG", _EXPORT),
    b"j2ki": ("a HEIF image coded with JPEG 2000", _EXPORT),
    b"vvic": ("a HEIF image coded with VVC", _EXPORT),
    b"M4A ": ("a sound", "give a photograph"),
}
"""Kinds of ISO base media files that are no videos, by their main brand."""

_MAX_HEAD_BYTES = 4096


def name_kind(content: bytes) -> tuple[str, str] | None:
    """Return what a file is, such as `a video`, and what to do instead; None if its first bytes are not known."""
    head = content[:_MAX_HEAD_BYTES]
    if head[4:8] == b"ftyp":
        return ISO_BRANDS.get(head[8:12], ("a video", _FRAME))
    for expression, kind, remedy in _KINDS:
        if re.match(expression, head, re.DOTALL | re.IGNORECASE if b"<" in expression else re.DOTALL):
            return kind, remedy
    return None


def name_raw(content: bytes) -> str | None:
    """Return the name of a camera raw by its first bytes; None for all others, and for raws that look like a TIFF."""
    head = content[:32]
    return next((name for expression, name in _RAWS if re.match(expression, head, re.DOTALL)), None)
