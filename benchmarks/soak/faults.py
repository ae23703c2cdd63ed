"""All that can be wrong with a request, and how each door must refuse it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.soak.mix import Door, Fault, Raw, Request
from benchmarks.soak.pictures import npy, slope

_CLOSED_PORT = "http://127.0.0.1:9/beach.jpg"
"""The service that discards everything, which nobody runs."""


def faults(door: Door, good: Request, outside_url: str) -> list[Fault]:
    """Every fault that the door can be shown.

    Args:
        door: Whose refusals they have to be.
        good: What is right but for the fault.
        outside_url: A web server that does not have what it is asked for.
    """
    image, depth = good.image, good.depth
    assert isinstance(image, bytes)
    assert depth is not None
    cut_npy = npy(slope(64, 48))[:-100]
    shared: list[tuple[str, dict[str, Any], str, str]] = [
        # name, what differs, how HTTP refuses it, how Cog does
        ("truncated picture", {"image": image[: len(image) // 2]}, "422 invalid_image", "failed invalid_image"),
        ("text as picture", {"image": b"a letter, not a picture"}, "422 invalid_image", "failed invalid_image"),
        ("no picture", {"image": None}, "422 invalid_image", "422 image"),
        ("tiny picture", {"image": _png(16, 16)}, "422 invalid_image", "failed invalid_image"),
        ("too long a picture", {"image": _png(640, 40)}, "422 invalid_image", "failed invalid_image"),
        ("too large a picture", {"image": _huge_png()}, "422 invalid_image", "failed invalid_image"),
        ("no depth map", {"depth": None}, "422 invalid_depth", "failed invalid_depth"),
        ("text as depth map", {"depth": b"a letter, not a map"}, "422 invalid_depth", "failed invalid_depth"),
        ("truncated depth map", {"depth": cut_npy}, "422 invalid_depth", "failed invalid_depth"),
        ("depth map with code", {"depth": _pickled()}, "422 invalid_depth", "failed invalid_depth"),
        ("depth map of another view", {"depth": npy(slope(48, 64))}, "422 invalid_depth", "failed invalid_depth"),
        ("address without a file", {"image": f"{outside_url}/gone.jpg"}, "422 fetch_failed", "failed 404 Client Error"),
        (
            "address of nobody",
            {"image": _CLOSED_PORT},
            "422 fetch_failed",
            "failed HTTPConnectionPool(host='127.0.0.1'",
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
            "axes that glb has not",
            {"output": "glb", "options": {"axes": "opencv"}},
            *("422 invalid_option", "failed invalid_option"),
        ),
        ("unknown format", {"output": "obj"}, "422 invalid_option", "422 output_format"),
    ]
    found = [
        Fault(name=name, request=replace(good, **change), expected=by_http if door == "http" else by_cog)
        for name, change, by_http, by_cog in shared
    ]
    return found + (_of_http(good) if door == "http" else _of_cog(good))


def _of_http(good: Request) -> list[Fault]:
    form = "multipart/form-data; boundary=x"
    opened = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
    unknown = replace(good, options={"colour": "red"})
    return [
        Fault(
            name="form that is none", request=Raw(body=b"--y\r\n{}", content_type=form), expected="422 invalid_input"
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


def _of_cog(good: Request) -> list[Fault]:
    json = "application/json"
    return [
        Fault(name="broken JSON", request=Raw(body=b'{"input": {', content_type=json), expected="400 Failed to parse"),
        Fault(name="JSON of another shape", request=Raw(body=b"[]", content_type=json), expected="422 Failed to"),
        Fault(name="no object", request=Raw(body=b'{"input": 5}', content_type=json), expected="422 __root__"),
        Fault(name="empty picture", request=replace(good, image=b""), expected="failed invalid_input"),
        Fault(name="path of a file", request=replace(good, image="/etc/passwd"), expected="failed invalid_input"),
    ]


def _png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(content, "PNG")
    return content.getvalue()


def _huge_png() -> bytes:
    """Some hundred bytes that declare 400 megapixels."""

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
