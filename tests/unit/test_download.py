"""The download against a real server on loopback that misbehaves in every way servers do."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from sharp_cog.download import Effort, download, without_secrets
from sharp_cog.errors import DownloadError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Effort(num_connections=4, piece_bytes=400_000, max_failures=4, first_wait_s=0.01, timeout_s=1.0)


class Server(ThreadingHTTPServer):
    """Serves `content` and, by its switches, does it badly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.ranges = True
        self.break_after: int | None = None  # bytes of each answer, then the connection is cut
        self.num_errors = 0  # answers with this status first
        self.error_status = 500
        self.lie = 0  # added to the Content-Length of whole answers
        self.wrong_range = False
        self.html = False
        self.stall = 0  # answers that send a little and then nothing
        self.pause_s = 0.0  # between blocks
        self.bytes_sent = 0
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.after_request: dict[int, str] = {}  # request number -> new etag

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/folder/model.pt"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.requests.append(self.headers.get("Range", "whole"))
            server.etag = server.after_request.get(len(server.requests), server.etag)
            fails = server.num_errors > 0
            server.num_errors -= fails
            stalls = server.stall > 0
            server.stall -= stalls
        if fails:
            self.send_error(server.error_status)
            return
        start, end = 0, len(server.content)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match and server.ranges:
            start, end = int(match[1]), min(int(match[2]) + 1, end)
            self.send_response(206)
            shift = 7 if server.wrong_range and end - start > 1 else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{end - 1 + shift}/{len(server.content)}")
            self.send_header("Content-Length", str(end - start))
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(end - start + server.lie))
        self.send_header("ETag", server.etag)
        self.send_header("Content-Type", "text/html" if server.html else "application/octet-stream")
        self.end_headers()
        cut = end if server.break_after is None else min(end, start + server.break_after)
        for position in range(start, cut, 50_000):
            block = server.content[position : min(position + 50_000, cut)]
            try:
                self.wfile.write(block)
            except OSError:
                break
            with server.lock:
                server.bytes_sent += len(block)
            time.sleep(server.pause_s)
            if stalls:
                time.sleep(2.5)
                break
        if cut < end or stalls or server.lie > 0:
            self.close_connection = True
            self.connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def fetch(server: Server, target: Path, **changes: object) -> None:
    arguments: dict[str, object] = {"sha256": SHA256, "num_bytes": len(CONTENT), "effort": QUICK, **changes}
    download(server.url, target, **arguments)  # type: ignore[arg-type]


def assert_whole(target: Path) -> None:
    assert target.read_bytes() == CONTENT
    assert files(target.parent) == {target.name}


def test_fetches_ranges_and_makes_the_folder(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "model.pt"
    fetch(server, target)
    assert_whole(target)
    assert len(server.requests) == 1 + 8  # A look, then eight pieces.
    assert server.bytes_sent == len(CONTENT) + 1


def test_a_server_without_ranges_serves_too(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


def test_connections_that_break_go_on_where_they_left_off(server: Server, tmp_path: Path) -> None:
    server.break_after = 150_000
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")
    assert server.bytes_sent < 1.25 * len(CONTENT)  # Only what a broken connection swallowed came twice.


def test_errors_that_pass_are_outlasted(server: Server, tmp_path: Path) -> None:
    server.num_errors = 3
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_keeps_failing_is_given_up(server: Server, tmp_path: Path, status: int) -> None:
    server.num_errors, server.error_status = 10**9, status
    with pytest.raises(DownloadError, match=rf"HTTP {status}, 4 times in a row.*SHARP_CHECKPOINT"):
        fetch(server, tmp_path / "model.pt")
    assert len(server.requests) == QUICK.max_failures


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_repeated(server: Server, tmp_path: Path, status: int) -> None:
    server.num_errors, server.error_status = 10**9, status
    with pytest.raises(DownloadError, match=f"HTTP {status}"):
        fetch(server, tmp_path / "model.pt")
    assert len(server.requests) == 1


def test_a_silent_server_is_left_and_asked_again(server: Server, tmp_path: Path) -> None:
    server.stall = 2
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


@pytest.mark.parametrize("lie", [-1000, 1000])
def test_a_length_that_lies_is_found_out(server: Server, tmp_path: Path, lie: int) -> None:
    server.ranges, server.lie = False, lie
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "model.pt", num_bytes=None)
    assert "model.pt" not in files(tmp_path)


def test_another_length_is_refused_before_the_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"offers 3,000,000 bytes, expected 5"):
        fetch(server, tmp_path / "model.pt", num_bytes=5)
    assert server.bytes_sent <= 1


def test_wrong_ranges_never_become_a_file(server: Server, tmp_path: Path) -> None:
    server.wrong_range = True
    with pytest.raises(DownloadError, match="changed"):
        fetch(server, tmp_path / "model.pt")
    assert files(tmp_path) == set()


def test_a_web_page_is_not_the_file(server: Server, tmp_path: Path) -> None:
    server.html = True
    with pytest.raises(DownloadError, match="web page"):
        fetch(server, tmp_path / "model.pt")


def test_another_hash_is_refused_with_both_hashes_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"{SHA256}, expected {'0' * 64}"):
        fetch(server, tmp_path / "model.pt", sha256="0" * 64)
    assert files(tmp_path) == set()


def test_a_file_that_changes_on_the_way_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.after_request = {4: '"two"'}
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


def test_a_full_disk_is_told_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr("sharp_cog.download.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"0\.00 GB free.*SHARP_CACHE_DIR"):
        fetch(server, tmp_path / "model.pt")
    assert server.bytes_sent <= 1


def test_a_folder_that_cannot_be_made_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="SHARP_CACHE_DIR"):
        fetch(server, tmp_path / "file" / "model.pt")


def test_nothing_is_fetched_where_the_file_is(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"here")
    fetch(server, tmp_path / "model.pt")
    assert server.requests == []


def test_secrets_stay_out_of_messages(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("http://", "http://user:password@") + "?token=secret"
    assert without_secrets(url) == server.url
    server.num_errors, server.error_status = 10**9, 403
    with pytest.raises(DownloadError) as caught:
        download(url, tmp_path / "model.pt", sha256=None, effort=QUICK)
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)


PROCESS = """
import sys
from pathlib import Path
from sharp_cog.download import Effort, download
effort = Effort(num_connections=2, piece_bytes=400_000, first_wait_s=0.01, timeout_s=5.0)
download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], effort=effort)
"""


def start(server: Server, target: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    return subprocess.Popen([sys.executable, "-c", PROCESS, server.url, str(target), SHA256], env=environment)


def test_of_two_processes_one_downloads_and_both_have_the_file(server: Server, tmp_path: Path) -> None:
    server.pause_s = 0.02
    processes = [start(server, tmp_path / "model.pt") for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert_whole(tmp_path / "model.pt")
    assert server.bytes_sent == len(CONTENT) + 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_process_leaves_what_the_next_one_goes_on_from(
    server: Server, tmp_path: Path, how: signal.Signals
) -> None:
    server.pause_s = 0.05
    process = start(server, tmp_path / "model.pt")
    deadline = time.monotonic() + 30
    while server.bytes_sent < 1_500_000:
        assert time.monotonic() < deadline, "the download did not start"
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(30) != 0
    assert "model.pt" not in files(tmp_path)
    sent, server.pause_s = server.bytes_sent, 0.0
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")
    assert server.bytes_sent - sent <= len(CONTENT) - 2 * QUICK.piece_bytes + 1  # and the look
