"""Read files that may not exist and streams that may not end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from sharp_cog.errors import SharpError


def read_bytes(path: Path, error_type: type[SharpError]) -> bytes:
    """Return a file's content.

    Raises:
        SharpError: An error of type `error_type`: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror or error}") from error


def read_capped(
    chunks: Iterable[bytes], limit: int, too_large: Exception, *, declared_bytes: int | None = None
) -> bytes:
    """Return the content of a stream that somebody else controls; see `capped`."""
    content = bytearray()
    for chunk in capped(chunks, limit, too_large, declared_bytes=declared_bytes):
        content += chunk
    return bytes(content)


def capped(
    chunks: Iterable[bytes], limit: int, too_large: Exception, *, declared_bytes: int | None = None
) -> Iterator[bytes]:
    """Pass on a stream that somebody else controls, up to a limit.

    Args:
        chunks: The stream. Stop at a deadline inside of it, by a generator that raises.
        limit: Largest number of bytes to accept.
        too_large: Error to raise for a longer stream.
        declared_bytes: Length that the sender announced, such as Content-Length. Where it exceeds the limit, nothing is
            read. The content may still be shorter: compare its length where that matters.

    Yields:
        The chunks, none of which exceeds the limit together with those before.

    Raises:
        Exception: `too_large`.
    """
    if declared_bytes is not None and declared_bytes > limit:
        raise too_large
    # The announced length is only a claim, so the bytes that arrive are counted too.
    num_bytes = 0
    for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > limit:
            raise too_large
        yield chunk
