"""The download from a real server on this machine, which misbehaves in many ways."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from sharp_cog.errors import DownloadError, OutputError
from sharp_cog.files.retry import RetryPolicy
from sharp_cog.runtime.download import Effort, download
from tests.fuzz.raw_server import RawServer

CONTENT = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Effort(
    num_connections=4, piece_bytes=400_000, retries=RetryPolicy(max_tries=4, first_wait_s=0.01), timeout_s=1.0
)


class Server(ThreadingHTTPServer):
    """Serves `content`, with the faults that its attributes switch on."""

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
        self.total_lie = 0  # added to the length in Content-Range
        self.refuse_ranges = False  # with HTTP 416
        self.num_ranges: int | None = None  # ranges are ignored after that many
        self.send_length = True
        self.content_type = "application/octet-stream"
        self.stall = 0  # answers that send a little and then nothing
        self.pause_s = 0.0  # between blocks
        self.bytes_sent = 0
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.after_request: dict[int, str] = {}  # request number -> new etag
        self.num_answers: int | None = None  # then HTTP 500 for ever

    def handle_error(self, *request: Any) -> None:
        """Ignore clients that disconnect, as many tests do, and report all other errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*request)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/folder/model.pt"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.requests.append(self.headers.get("Range", "whole"))
            server.etag = server.after_request.get(len(server.requests), server.etag)
            fails = server.num_errors > 0
            server.num_errors -= fails
            fails = fails or (server.num_answers is not None and len(server.requests) > server.num_answers)
            if server.num_ranges is not None and len(server.requests) > server.num_ranges:
                server.ranges = False
            stalls = server.stall > 0
            server.stall -= stalls
        if fails:
            self.send_error(server.error_status)
            return
        start, end = 0, len(server.content)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match and server.ranges and (server.refuse_ranges or int(match[1]) >= end):
            self.send_error(416)
            return
        if match and server.ranges:
            start, end = int(match[1]), min(int(match[2]) + 1, end)
            self.send_response(206)
            shift = 7 if server.wrong_range and end - start > 1 else 0
            self.send_header(
                "Content-Range", f"bytes {start + shift}-{end - 1 + shift}/{len(server.content) + server.total_lie}"
            )
            self.send_header("Content-Length", str(end - start))
        else:
            self.send_response(200)
            if server.send_length:
                self.send_header("Content-Length", str(end - start + server.lie))
            else:
                self.send_header("Connection", "close")
        self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.content_type)
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
    assert len(server.requests) == 1 + 8  # The first byte, then eight pieces.
    assert server.bytes_sent == len(CONTENT) + 1


def test_a_server_without_ranges_works(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


def test_a_broken_connection_resumes_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.break_after = 150_000
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")
    assert server.bytes_sent < 1.25 * len(CONTENT)  # Only bytes that were lost with a connection come twice.


def test_transient_errors_are_retried(server: Server, tmp_path: Path) -> None:
    server.num_errors = 3
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_keeps_failing_ends_the_download(server: Server, tmp_path: Path, status: int) -> None:
    server.num_errors, server.error_status = 10**9, status
    with pytest.raises(DownloadError, match=rf"HTTP {status}, 4 times in a row.*SHARP_CHECKPOINT"):
        fetch(server, tmp_path / "model.pt")
    assert len(server.requests) == QUICK.retries.max_tries


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_repeated(server: Server, tmp_path: Path, status: int) -> None:
    server.num_errors, server.error_status = 10**9, status
    with pytest.raises(DownloadError, match=f"HTTP {status}"):
        fetch(server, tmp_path / "model.pt")
    assert len(server.requests) == 1


def test_a_silent_connection_is_replaced(server: Server, tmp_path: Path) -> None:
    server.stall = 2
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


@pytest.mark.parametrize("lie", [-1000, 1000])
def test_a_wrong_length_is_detected(server: Server, tmp_path: Path, lie: int) -> None:
    server.ranges, server.lie = False, lie
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "model.pt", num_bytes=None)
    assert "model.pt" not in files(tmp_path)


def test_another_length_is_refused_before_the_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"offers 3,000,000 bytes, expected 5"):
        fetch(server, tmp_path / "model.pt", num_bytes=5)
    assert server.bytes_sent <= 1


@pytest.mark.parametrize(
    ("lie", "message"), [(500_000, "3,000,000 of 3,500,000"), (-500_000, f"SHA-256 .*, expected {SHA256}")]
)
def test_ranges_of_a_wrong_length_are_detected(server: Server, tmp_path: Path, lie: int, message: str) -> None:
    server.total_lie = lie
    with pytest.raises(DownloadError, match=message):
        fetch(server, tmp_path / "model.pt", num_bytes=None)
    assert files(tmp_path) == set()


def test_the_whole_file_is_fetched_if_ranges_are_wrong(server: Server, tmp_path: Path) -> None:
    server.wrong_range = True
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")
    assert server.requests[-1] == "whole"


def test_the_whole_file_is_fetched_if_ranges_are_refused(server: Server, tmp_path: Path) -> None:
    server.refuse_ranges = True
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")
    assert server.requests == ["bytes=0-0", "whole"]


def test_the_whole_file_is_fetched_if_the_server_stops_serving_ranges(server: Server, tmp_path: Path) -> None:
    server.num_ranges = 4
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


def test_a_server_without_a_length_works(server: Server, tmp_path: Path) -> None:
    server.ranges = server.send_length = False
    fetch(server, tmp_path / "model.pt", num_bytes=None)
    assert_whole(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("expected", "message"), [(2_000_000, "sends more than"), (4_000_000, "3,000,000 of 4,000,000")]
)
def test_the_expected_length_counts_if_the_server_names_none(
    server: Server, tmp_path: Path, expected: int, message: str
) -> None:
    server.ranges = server.send_length = False
    with pytest.raises(DownloadError, match=message):
        fetch(server, tmp_path / "model.pt", num_bytes=expected)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "Text/HTML", "application/json"])
def test_a_web_page_is_not_the_file(server: Server, tmp_path: Path, content_type: str) -> None:
    server.content_type = content_type
    with pytest.raises(DownloadError, match="web page"):
        fetch(server, tmp_path / "model.pt")
    assert len(server.requests) == 1


def test_a_web_page_with_another_content_type_is_not_the_file(server: Server, tmp_path: Path) -> None:
    server.content = b"\n<!DOCTYPE html><html>" + b" " * 500_000
    with pytest.raises(DownloadError, match="web page"):
        fetch(server, tmp_path / "model.pt", sha256=None, num_bytes=None)
    assert files(tmp_path) == set()


def test_another_hash_is_refused_with_both_hashes_and_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"{SHA256}, expected {'0' * 64}"):
        fetch(server, tmp_path / "model.pt", sha256="0" * 64)
    assert files(tmp_path) == set()


def test_a_file_that_changes_during_the_download_is_fetched_again(server: Server, tmp_path: Path) -> None:
    server.after_request = {4: '"two"'}
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")


def break_off(server: Server, folder: Path) -> None:
    """Start a download that fetches four pieces, one after the other, and then fails."""
    server.num_answers = 5
    with pytest.raises(DownloadError, match="HTTP 500"):
        fetch(server, folder / "model.pt", effort=replace(QUICK, num_connections=1))
    server.num_answers = None
    assert files(folder) == {".model.pt.part", ".model.pt.part.json"}


def test_a_download_resumes_from_the_finished_pieces_of_a_failed_one(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    break_off(server, tmp_path)
    sent = server.bytes_sent
    with caplog.at_level(logging.INFO):
        fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")
    assert server.bytes_sent - sent == len(CONTENT) - 4 * QUICK.piece_bytes + 1
    assert "model.pt: resuming at 0.00 of 0.00 GB" in caplog.messages


def test_a_file_that_changed_between_two_downloads_is_fetched_again(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    server.content, server.etag = CONTENT[::-1], '"two"'
    fetch(server, tmp_path / "model.pt", sha256=None)
    assert (tmp_path / "model.pt").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("journal", ["", "[]", '{"done": 3}', '{"done": [0, 400000]}', '{"done": [[]]}'])
def test_a_broken_journal_is_ignored(server: Server, tmp_path: Path, journal: str) -> None:
    (tmp_path / ".model.pt.part").write_bytes(bytes(len(CONTENT)))
    (tmp_path / ".model.pt.part.json").write_text(journal)
    fetch(server, tmp_path / "model.pt", sha256=None)
    assert_whole(tmp_path / "model.pt")


def test_a_partial_file_of_another_length_is_not_resumed(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    os.truncate(tmp_path / ".model.pt.part", 100_000)
    fetch(server, tmp_path / "model.pt", sha256=None)
    assert_whole(tmp_path / "model.pt")


def test_pieces_are_removed_by_a_download_without_ranges(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    server.ranges, server.break_after = False, 100_000
    with pytest.raises(DownloadError, match="4 times in a row"):
        fetch(server, tmp_path / "model.pt")
    assert files(tmp_path) == set()
    server.ranges, server.break_after = True, None
    fetch(server, tmp_path / "model.pt", sha256=None)
    assert_whole(tmp_path / "model.pt")


def test_too_little_space_is_reported_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr("sharp_cog.runtime.download.partial.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"0\.00 GB free.*SHARP_CACHE_DIR"):
        fetch(server, tmp_path / "model.pt")
    assert server.bytes_sent <= 1


def test_a_folder_that_cannot_be_created_is_reported(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="SHARP_CACHE_DIR"):
        fetch(server, tmp_path / "file" / "model.pt")


def test_a_folder_without_permission_is_reported(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sharp_cog.runtime.download.FileLock", refuse)
    with pytest.raises(DownloadError, match=r"cannot write to .*: Permission denied: .*SHARP_CACHE_DIR"):
        fetch(server, tmp_path / "model.pt")


def test_a_journal_that_cannot_be_written_ends_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("sharp_cog.runtime.download.partial.open_atomically", refuse)
    with pytest.raises(DownloadError, match=r"No space left.*SHARP_CACHE_DIR"):
        fetch(server, tmp_path / "model.pt")
    assert "model.pt" not in files(tmp_path)


def test_a_folder_in_place_of_the_file_is_reported_before_the_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(DownloadError, match=r"model\.pt is a folder"):
        fetch(server, tmp_path / "model.pt")
    assert server.requests == []


def test_a_waiting_process_warns_and_uses_the_file_of_the_other_one(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "model.pt"
    waiting = threading.Thread(target=fetch, args=(server, target))
    with FileLock(tmp_path / ".model.pt.lock"):
        waiting.start()
        deadline = time.monotonic() + 30
        while "another process is downloading model.pt: waiting for it" not in caplog.messages:
            assert time.monotonic() < deadline, "no warning of the waiting process"
            time.sleep(0.01)
        target.write_bytes(b"fetched by the other one")
    waiting.join(30)
    assert not waiting.is_alive()
    assert target.read_bytes() == b"fetched by the other one"
    assert server.requests == []


def test_progress_is_logged_if_there_is_no_terminal(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharp_cog.runtime.download._LOG_INTERVAL_S", 0.0)
    with caplog.at_level(logging.INFO):
        fetch(server, tmp_path / "model.pt")
    assert any(re.match(r"model\.pt: 3\.00M of 3\.00M, .*B/s", message) for message in caplog.messages)


def test_progress_is_a_bar_on_a_terminal(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    fetch(server, tmp_path / "model.pt")
    assert "model.pt: 100%" in terminal.getvalue()


def test_nothing_is_fetched_if_the_file_exists(server: Server, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"here")
    fetch(server, tmp_path / "model.pt")
    assert server.requests == []


def test_secrets_stay_out_of_messages(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("http://", "http://user:password@") + "?token=secret"
    server.num_errors, server.error_status = 10**9, 403
    with pytest.raises(DownloadError) as caught:
        download(url, tmp_path / "model.pt", sha256=None, effort=QUICK)
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_secrets_stay_out_of_tracebacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://user:password@127.0.0.1:{port}/model.pt?token=xyzzy"  # The port is closed again.
    with caplog.at_level(logging.INFO, logger="sharp_cog"), pytest.raises(DownloadError, match="refused") as caught:
        download(url, tmp_path / "model.pt", sha256=None, effort=QUICK)
    text = "".join([*traceback.format_exception(caught.value), *caplog.messages])
    assert "trying again" in text
    assert "password" not in text
    assert "xyzzy" not in text


PROCESS = """
import signal
import sys
from pathlib import Path
from sharp_cog.runtime.download import Effort, download
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell starts background jobs with SIGINT ignored.
effort = Effort(num_connections=2, piece_bytes=400_000, timeout_s=5.0)
download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], effort=effort)
"""


def start(server: Server, target: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    return subprocess.Popen([sys.executable, "-c", PROCESS, server.url, str(target), SHA256], env=environment)


def test_only_one_of_two_processes_downloads_and_both_get_the_file(server: Server, tmp_path: Path) -> None:
    server.pause_s = 0.02
    processes = [start(server, tmp_path / "model.pt") for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert_whole(tmp_path / "model.pt")
    assert server.bytes_sent == len(CONTENT) + 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_next_process_resumes_the_download_of_a_stopped_one(
    server: Server, tmp_path: Path, how: signal.Signals
) -> None:
    server.pause_s = 0.05
    process = start(server, tmp_path / "model.pt")
    deadline = time.monotonic() + 30
    while len(finished(tmp_path)) < 2:
        assert time.monotonic() < deadline, "no two pieces were finished"
        time.sleep(0.01)
    process.send_signal(how)
    assert process.wait(30) != 0
    assert "model.pt" not in files(tmp_path)
    kept, num_requests, server.pause_s = finished(tmp_path), len(server.requests), 0.0
    assert len(kept) < 8
    fetch(server, tmp_path / "model.pt")
    assert_whole(tmp_path / "model.pt")
    assert not kept & set(server.requests[num_requests:])


def finished(folder: Path) -> set[str]:
    """Return the ranges that an interrupted download has finished."""
    journal = folder / ".model.pt.part.json"
    starts = json.loads(journal.read_text())["done"] if journal.exists() else []
    return {f"bytes={start}-{min(start + QUICK.piece_bytes, len(CONTENT)) - 1}" for start in starts}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/\xb2\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/" + b"9" * 5000 + b"\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\na",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 80 + b".example/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:99999999/\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nno gzip",
    ],
    ids=["superscript", "digits", "length", "brackets", "label", "port", "gzip"],
)
def test_a_malformed_answer_ends_the_download_and_leaves_nothing(answer: bytes, tmp_path: Path) -> None:
    server = RawServer()
    server.answer = answer
    effort = replace(QUICK, retries=replace(QUICK.retries, max_tries=2))
    with pytest.raises(DownloadError) as caught:
        download(f"{server.url}/model.pt", tmp_path / "model.pt", sha256="0" * 64, effort=effort)
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == [".model.pt.lock"]


@pytest.mark.parametrize("done", [["a", 0], [0.5], [400_001], [-400_000], [10**30], [[0]], None, {"0": 1}, 5], ids=str)
def test_a_journal_of_impossible_pieces_is_ignored(server: Server, tmp_path: Path, done: object) -> None:
    target = tmp_path / "model.pt"
    key = {"url": server.url, "validator": '"one"', "num_bytes": len(CONTENT), "piece_bytes": QUICK.piece_bytes}
    (tmp_path / ".model.pt.part").write_bytes(bytes(len(CONTENT)))
    (tmp_path / ".model.pt.part.json").write_text(json.dumps({**key, "done": done}))
    download(server.url, target, sha256=SHA256, effort=QUICK)
    assert target.read_bytes() == CONTENT
