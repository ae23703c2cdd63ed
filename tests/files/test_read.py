import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharp_cog.errors import DepthError, FetchError
from sharp_cog.files.read import read_bytes, read_capped

TOO_LARGE = FetchError("larger than 10 bytes")


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "depth.npy").write_bytes(b"content")
    assert read_bytes(tmp_path / "depth.npy", DepthError) == b"content"


def test_a_file_that_cannot_be_read_raises_the_callers_error_with_path_and_reason(tmp_path: Path) -> None:
    missing = tmp_path / "depth.npy"
    with pytest.raises(DepthError, match=re.escape(f"{missing} cannot be read: No such file or directory")):
        read_bytes(missing, DepthError)


def test_a_stream_up_to_the_limit_is_read_whole() -> None:
    assert read_capped([], 10, TOO_LARGE) == b""
    assert read_capped([b"01234", b"", b"56789"], 10, TOO_LARGE, declared_bytes=10) == b"0123456789"


def test_an_endless_stream_is_left_at_the_limit() -> None:
    num_read = 0

    def endless() -> Iterator[bytes]:
        nonlocal num_read
        while True:
            num_read += 4
            yield b"0123"

    with pytest.raises(FetchError, match="larger than 10 bytes"):
        read_capped(endless(), 10, TOO_LARGE)
    assert num_read == 12


def test_nothing_is_read_of_a_stream_that_announces_too_much() -> None:
    def unread() -> Iterator[bytes]:
        pytest.fail("the stream was read")
        yield b""

    with pytest.raises(FetchError):
        read_capped(unread(), 10, TOO_LARGE, declared_bytes=11)
