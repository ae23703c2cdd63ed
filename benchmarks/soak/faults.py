"""Faults of requests, and the refusal of each frontend."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.soak.images import npy, slope
from benchmarks.soak.mix import Fault, Frontend, Raw, Request

_CLOSED_PORT = "http://127.0.0.1:9/beach.jpg"
"""URL of a port on which nobody listens."""


def faults(frontend: Frontend, good: Request, outside_url: str) -> list[Fault]:
    """Return every fault of requests to a frontend.

    Args:
        frontend: The frontend.
        good: A good request, to which the faults are added.
        outside_url: URL of a web server that does not have the file.
    """
    image, depth = good.image, good.depth
    assert isinstance(image, bytes)
    assert depth is not None
    cut_npy = npy(slope(64, 48))[:-100]
    shared: list[tuple[str, dict[str, Any], str, str]] = [
        # Name, changes of the request, refusal of HTTP, refusal of Cog.
        ("truncated image", {"image": image[: len(image) // 2]}, "422 invalid_image", "failed invalid_image"),
        ("text as image", {"image": b"a letter, not an image"}, "422 invalid_image", "failed invalid_image"),
        ("no image", {"image": None}, "422 invalid_image", "422 image"),
        ("tiny image", {"image": _png(16, 16)}, "422 invalid_image", "failed invalid_image"),
        ("image that is too long", {"image": _png(640, 40)}, "422 invalid_image", "failed invalid_image"),
        ("image that is too large", {"image": _huge_png()}, "422 invalid_image", "failed invalid_image"),
        ("no depth map", {"depth": None}, "422 invalid_depth", "failed invalid_depth"),
        ("text as depth map", {"depth": b"a letter, not a map"}, "422 invalid_depth", "failed invalid_depth"),
        ("truncated depth map", {"depth": cut_npy}, "422 invalid_depth", "failed invalid_depth"),
        ("depth map with code", {"depth": _pickled()}, "422 invalid_depth", "failed invalid_depth"),
        ("depth map of another view", {"depth": npy(slope(48, 64))}, "422 invalid_depth", "failed invalid_depth"),
        ("address without a file", {"image": f"{outside_url}/gone.jpg"}, "422 fetch_failed", "failed fetch_failed"),
        (
            "address without a server",
            {"image": _CLOSED_PORT},
            "422 fetch_failed",
            "failed fetch_failed",
        ),
        ("address of a file", {"image": "file:///etc/passwd"}, "422 fetch_failed", "failed invalid_input"),
        ("option out of range", {"options": {"min_opacity": 7}}, "422 invalid_option", "422 min_opacity"),
        ("unknown value", {"options": {"depth_mode": "guess"}}, "422 invalid_option", "422 depth_mode"),
        (
            "both focal lengths",
            {"options": {"focal_length_px": 900, "focal_length_mm": 28}},
            *("422 invalid_option", "failed invalid_option"),
        ),
        (
            "axes that glb does not have",
            {"output": "glb", "options": {"axes": "opencv"}},
            *("422 invalid_option", "failed invalid_option"),
        ),
        ("unknown format", {"output": "obj"}, "422 invalid_option", "422 output_format"),
    ]
    found = [
        Fault(name=name, request=replace(good, **change), expected=by_http if frontend == "http" else by_cog)
        for name, change, by_http, by_cog in shared
    ]
    return found + (_http_faults(good) if frontend == "http" else _cog_faults(good))


def _http_faults(good: Request) -> list[Fault]:
    form = "multipart/form-data; boundary=x"
    opened = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
    unknown = replace(good, options={"colour": "red"})
    return [
        Fault(
            name="body that is not a form",
            request=Raw(body=b"--y\r\n{}", content_type=form),
            expected="422 invalid_input",
        ),
        Fault(name="form that breaks off", request=Raw(body=opened, content_type=form), expected="422 invalid_image"),
        Fault(
            name="JSON as a form",
            request=Raw(body=b'{"file": 5}', content_type="application/json"),
            expected="422 invalid_image",
        ),
        Fault(
            name="body too large",
            request=Raw(body=b"", content_type=form, num_bytes_claimed=10**12),
            expected="413 request_too_large",
        ),
        Fault(name="unknown option", request=unknown, expected="422 invalid_option"),
    ]


def _cog_faults(good: Request) -> list[Fault]:
    json = "application/json"
    return [
        Fault(name="broken JSON", request=Raw(body=b'{"input": {', content_type=json), expected="400 invalid_input"),
        Fault(name="JSON of another shape", request=Raw(body=b"[]", content_type=json), expected="422 invalid_input"),
        Fault(
            name="JSON without an object", request=Raw(body=b'{"input": 5}', content_type=json), expected="422 __root__"
        ),
        Fault(name="empty image", request=replace(good, image=b""), expected="failed invalid_input"),
        Fault(name="path of a file", request=replace(good, image="/etc/passwd"), expected="failed invalid_input"),
    ]


def _png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(content, "PNG")
    return content.getvalue()


def _huge_png() -> bytes:
    """Return some hundred bytes that declare 400 megapixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _pickled() -> bytes:
    content = io.BytesIO()
    named: Mapping[str, int] = {"depth": 1}
    np.save(content, np.array([named], dtype=object), allow_pickle=True)
    return content.getvalue()
