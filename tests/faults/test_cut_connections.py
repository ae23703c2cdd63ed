"""Connections that are cut at any byte: the result is whole, or an error comes in bounded time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import DownloadError, FetchError, OutputError, UploadError
from sharp_cog.files.retry import RetryPolicy
from sharp_cog.runtime.download import Effort, download
from sharp_cog.serving.bucket import store
from sharp_cog.serving.fetch import fetch, upload
from tests.faults.cutting import CuttingServer, cutting

CONTENT = np.random.default_rng(0).bytes(20_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
EFFORT = Effort(
    num_connections=2, piece_bytes=6000, retries=RetryPolicy(max_tries=3, first_wait_s=0.001), timeout_s=2.0
)
SETTINGS = ServiceSettings(fetch_private=True, fetch_seconds=5, request_seconds=5)
BOUND_S = 5.0
HEAD_BYTES = 140
"""Approximate length of an answer's headers."""

SOME = [0, 1, 12, 40, HEAD_BYTES, 200, 3000, 6000, 10_000, 19_999]
EVERY_PERCENT = sorted({*range(HEAD_BYTES + 20), *range(0, len(CONTENT) + HEAD_BYTES, len(CONTENT) // 100)})


@pytest.fixture(params=["end", "reset"])
def server(request: pytest.FixtureRequest) -> Iterator[CuttingServer]:
    with cutting(CONTENT) as server:
        server.is_reset = request.param == "reset"
        yield server


def check_download(server: CuttingServer, folder: Path, position: int) -> None:
    """Cut the first connections of downloads at a position, and check that each download completes."""
    target = folder / f"model-{position}.pt"
    for first in ([position], [10_000, position, position], [position] * 2):
        server.cuts = list(first)
        download(server.url, target, sha256=SHA256, num_bytes=len(CONTENT), effort=EFFORT)
        assert target.read_bytes() == CONTENT
        assert {path.name for path in folder.iterdir()} == {target.name, f".{target.name}.lock"}
        target.unlink()
    (folder / f".{target.name}.lock").unlink()


@pytest.mark.parametrize("position", SOME)
def test_a_download_resumes_after_a_cut(server: CuttingServer, position: int, tmp_path: Path) -> None:
    check_download(server, tmp_path, position)


@pytest.mark.parametrize("text", ["Content-Length: ", "Content-Range: bytes 0-0/2", 'ETag: "o'])
def test_a_head_that_is_cut_within_a_number_is_not_taken_for_another_file(
    server: CuttingServer, text: str, tmp_path: Path
) -> None:
    """Nobody knows the length or the hash ahead, which would find it out."""
    target = tmp_path / "model.pt"
    for headers in (b"Range: bytes=0-0", b"Range: bytes=6000-11999"):
        position = server.answer(headers).index(text.partition("0-0")[0].encode()) + len(text)
        for cuts in ([position], [10_000, position]):
            server.cuts = list(cuts)
            download(server.url, target, sha256=None, effort=EFFORT)
            assert target.read_bytes() == CONTENT
            target.unlink()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_download_resumes_after_a_cut_anywhere(server: CuttingServer, tmp_path: Path) -> None:
    for position in EVERY_PERCENT:
        check_download(server, tmp_path, position)


@pytest.mark.parametrize("position", [0, 12, 60])
def test_a_download_without_any_progress_fails(server: CuttingServer, position: int, tmp_path: Path) -> None:
    server.always = position
    begun = time.monotonic()
    with pytest.raises(DownloadError, match="3 times in a row"):
        download(server.url, tmp_path / "model.pt", sha256=SHA256, num_bytes=len(CONTENT), effort=EFFORT)
    assert time.monotonic() - begun < BOUND_S
    assert {path.name for path in tmp_path.iterdir()} == {".model.pt.lock"}
    server.always = None
    download(server.url, tmp_path / "model.pt", sha256=SHA256, num_bytes=len(CONTENT), effort=EFFORT)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT


def check_fetch(server: CuttingServer, position: int) -> None:
    whole = len(server.answer(b"GET"))
    server.cuts = [position]
    begun = time.monotonic()
    try:
        assert fetch(server.url, SETTINGS) == CONTENT
        assert position >= whole
    except FetchError:
        assert position < whole
    assert time.monotonic() - begun < BOUND_S
    assert fetch(server.url, SETTINGS) == CONTENT


@pytest.mark.parametrize("position", SOME)
def test_an_input_that_is_cut_is_an_error(server: CuttingServer, position: int) -> None:
    check_fetch(server, position)


@pytest.mark.slow
def test_an_input_that_is_cut_anywhere_is_an_error(server: CuttingServer) -> None:
    for position in EVERY_PERCENT:
        check_fetch(server, position)


def check_upload(server: CuttingServer, path: Path, position: int) -> None:
    server.cuts = [position]
    begun = time.monotonic()
    with pytest.raises(UploadError, match="try again"):
        upload(server.url, path, "application/octet-stream", SETTINGS)
    assert time.monotonic() - begun < BOUND_S
    assert server.received == []
    upload(server.url, path, "application/octet-stream", SETTINGS)
    assert server.received == [path.read_bytes()]
    server.received.clear()


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Return a file that is larger than the buffers of a connection."""
    path = tmp_path / "splat.ply"
    path.write_bytes(CONTENT * 500)
    return path


@pytest.mark.parametrize("position", [0, 1, 5_000_000, 9_999_999])
def test_an_upload_that_is_cut_is_an_error(server: CuttingServer, position: int, result: Path) -> None:
    check_upload(server, result, position)


@pytest.mark.slow
def test_an_upload_that_is_cut_anywhere_is_an_error(server: CuttingServer, result: Path) -> None:
    for percent in range(100):
        check_upload(server, result, percent * 100_000)


@pytest.mark.slow
@pytest.mark.parametrize("position", [0, 1, 5_000_000, 9_999_999])
def test_a_bucket_whose_connections_are_always_cut_is_an_error(
    server: CuttingServer, position: int, result: Path
) -> None:
    server.always = position
    settings = replace(
        SETTINGS,
        bucket_endpoint_url=server.url.removesuffix("/folder/model.pt"),
        bucket_access_key_id="key",
        bucket_secret_access_key="sesame",
        bucket_name="splats",
    )
    begun = time.monotonic()
    with pytest.raises(OutputError, match="the bucket splats does not take splat"):
        store(result, "splat.ply", "application/octet-stream", settings)
    assert time.monotonic() - begun < 60
    assert server.num_connections >= 2, "it was tried again"
