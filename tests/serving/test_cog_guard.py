"""Attacks on Cog's real server, and what its clients may expect, through the guard in front of it."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from sharp_cog.serving.cog_worker import PREDICTIONS
from tests.e2e.cog_server import Outside, started_outside
from tests.serving.guarded_cog import IMAGE, GuardedCog, guarded_cog
from tests.website import Site, says

LIMIT_MB = 8
KEY = "a-key-of-the-operator"
HELLO = base64.b64decode(IMAGE.partition(",")[2])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedCog]:
    folder = tmp_path_factory.mktemp("cog") / "server"
    with guarded_cog(folder, SHARP_MAX_BODY_MEGABYTES=str(LIMIT_MB), SHARP_COG_WAIT_SECONDS="2.5") as server:
        yield server


@pytest.fixture
def server(running: GuardedCog) -> Iterator[GuardedCog]:
    """A server without a key; afterwards it must still be able to predict, and hold no file of the test."""
    yield running
    running.wait_for("READY", 10)
    answer = running.predict()
    assert answer.status_code == 200, running.log()
    # An output is deleted a moment after its last byte has been sent.
    deadline = time.monotonic() + 5
    while left := [name for name in running.files() if not name.endswith(".bin")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.fixture(scope="module")
def with_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedCog]:
    folder = tmp_path_factory.mktemp("cog") / "with_key"
    origin = "https://app.example"
    with guarded_cog(folder, SHARP_API_KEY=KEY, SHARP_FETCH_PRIVATE="1", SHARP_ALLOWED_ORIGINS=origin) as server:
        yield server


@pytest.fixture
def outside() -> Iterator[Outside]:
    with started_outside() as outside:
        yield outside


def output_of(response: requests.Response) -> bytes:
    answer = response.json()
    assert (response.status_code, answer["status"]) == (200, "succeeded"), answer
    head, _, text = answer["output"].partition(",")
    assert head == "data:application/octet-stream;base64"
    return base64.b64decode(text, validate=True)


def raw(server: GuardedCog, request: bytes, *, seconds: float = 10) -> bytes:
    """Send bytes, and return the first kilobytes of the answer."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(request)
        return connection.recv(1 << 14)


@pytest.mark.parametrize("prediction_id", ["a" * 300, "a" * 65, "x%00y", "%2e%2e", "a.b", "caf%C3%A9", "a b", "%0a"])
def test_an_id_that_is_no_name_is_refused_and_the_slot_stays_free(server: GuardedCog, prediction_id: str) -> None:
    answer = server.put(prediction_id)
    assert answer.status_code in (404, 422), answer.text
    assert answer.json()["status"] == "failed"
    assert server.health()["status"] == "READY"


@pytest.mark.parametrize("prediction_id", ["../../x", "/tmp/x", "a" * 300, "", 5, ["a"], {"a": 1}, True])
def test_an_id_in_the_body_follows_the_same_rule(server: GuardedCog, prediction_id: object) -> None:
    answer = server.predict(id=prediction_id)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert "give 1 to 64 letters" in answer.json()["error"]


@pytest.mark.parametrize("path", ["..%2f..%2fescaped", "..%2f..%2f..%2fescaped", "%2ftmp%2fescaped", "../../escaped"])
def test_no_id_makes_folders_elsewhere(server: GuardedCog, path: str) -> None:
    assert server.put(path).status_code in (404, 405)
    assert not [place for place in (PREDICTIONS, *PREDICTIONS.parents) if (place / "escaped").exists()]


def test_an_id_of_the_caller_is_kept_and_leaves_no_folder(server: GuardedCog) -> None:
    answer = server.put("of-my_own-7")
    assert output_of(answer) == HELLO
    assert answer.json()["id"] == "of-my_own-7"
    assert not (PREDICTIONS / "of-my_own-7").exists()
    conflict = requests.put(f"{server.url}/predictions/one", json={"id": "two", "input": {"image": IMAGE}}, timeout=10)
    assert conflict.status_code == 422


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {}])
def test_no_page_stops_the_server(server: GuardedCog, headers: dict[str, str]) -> None:
    text = {"Content-Type": "text/plain", **headers}
    answer = requests.post(f"{server.url}/shutdown", data="x", headers=text, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    time.sleep(0.2)
    assert server.process.poll() is None


def test_pages_of_other_origins_and_other_host_names_are_refused(server: GuardedCog) -> None:
    body = {"input": {"image": IMAGE}}
    for headers in ({"Origin": "https://evil.example"}, {"Host": "rebound.evil.example:5000"}, {"Host": "localhost.x"}):
        answer = requests.post(f"{server.url}/predictions", json=body, headers=headers, timeout=10)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), headers
        assert "access-control-allow-origin" not in answer.headers
    rebound = requests.get(f"{server.url}/health-check", headers={"Host": "rebound.evil.example"}, timeout=10)
    assert rebound.status_code == 403
    own = {"Host": f"localhost:{server.url.rpartition(':')[2]}"}
    assert requests.post(f"{server.url}/predictions", json=body, headers=own, timeout=10).status_code == 200


def test_coglet_listens_where_no_page_finds_it(server: GuardedCog) -> None:
    import psutil

    guard = psutil.Process(server.process.pid)
    listening = [
        connection.laddr
        for process in guard.children(recursive=True)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) == 1
    assert listening[0].ip.startswith("127.")
    assert listening[0].ip != "127.0.0.1"


@pytest.mark.parametrize("field", ["webhook", "output_file_prefix"])
def test_without_a_key_the_server_sends_nothing(server: GuardedCog, outside: Outside, field: str) -> None:
    fields: dict[str, Any] = {field: f"{outside.url}/inside"}
    answer = server.predict(**fields)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert f"without a key, {field} is off: set SHARP_API_KEY" in answer.json()["error"]
    twice = f'{{"{field}": "{outside.url}/x", "{field}": null, "input": {{"image": "{IMAGE}"}}}}'
    headers = {"Content-Type": "application/json"}
    assert requests.post(f"{server.url}/predictions", data=twice, headers=headers, timeout=20).status_code == 200
    escaped = json.dumps({"input": {"image": IMAGE}})[:-1] + f', "\\u0077ebhook": "{outside.url}/x"}}'
    assert requests.post(f"{server.url}/predictions", data=escaped, headers=headers, timeout=20).status_code in (
        200,
        403,
    )
    time.sleep(0.3)
    assert outside.webhooks.empty()
    assert outside.uploads == []


@pytest.mark.parametrize("image", ["http://127.0.0.1:{port}/a", "http://localhost:{port}/a", "HTTP://[::1]:{port}/a"])
def test_private_addresses_are_not_fetched(server: GuardedCog, site: Site, image: str) -> None:
    site.url("/a", says(b"secret"))
    answer = server.predict({"image": image.format(port=site.port)})
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"].startswith("fetch_failed: the host ")
    assert site.seen == []


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_a_request_that_is_too_large_is_refused_before_it_is_read(server: GuardedCog) -> None:
    head = b"POST /predictions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    start = raw(server, head + b"Content-Length: 99000000\r\n\r\n{")
    assert start.startswith(b"HTTP/1.1 413")
    endless = (b"x" * (1 << 20) for _ in range(LIMIT_MB + 2))
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{server.url}/predictions", data=endless, headers=headers, timeout=20)
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        pytest.param(b"{}", "text/plain", 415, id="text, which any page may send"),
        pytest.param(b"{}", "application/x-www-form-urlencoded", 415, id="form"),
        pytest.param(b"{", "application/json", 400, id="no JSON"),
        pytest.param(b"", "application/json", 400, id="nothing"),
        pytest.param(b"\xff\xfe", "application/json", 400, id="no UTF-8"),
        pytest.param(b"[" * 200_000, "application/json", 400, id="nested"),
        pytest.param(b"9" * 100_000, "application/json", 400, id="digits"),
        pytest.param(b"[]", "application/json", 422, id="list"),
        pytest.param(b'{"input": {"image": "data:,", "seconds": NaN}}', "application/json", 422, id="NaN"),
        pytest.param(b'{"input": {"image": "data:,", "seconds": 1e999}}', "application/json", 422, id="infinity"),
        pytest.param(b'{"input": {}}', "application/json", 422, id="no image"),
        pytest.param(b'{"input": []}', "application/json", 422, id="input is a list"),
        pytest.param(b'{"input": {"image": "\\ud800"}}', "application/json", (200, 400, 422), id="lone surrogate"),
    ],
)
def test_bodies_that_are_no_predictions_are_refused(
    server: GuardedCog, body: bytes, content_type: str, status: int | tuple[int, ...]
) -> None:
    headers = {"Content-Type": content_type}
    answer = requests.post(f"{server.url}/predictions", data=body, headers=headers, timeout=20)
    assert answer.status_code in (status if isinstance(status, tuple) else (status,)), answer.text
    answer.json()


@pytest.mark.parametrize(("method", "path"), [("GET", "/predictions"), ("POST", "/trainings"), ("PUT", "/shutdown")])
def test_other_paths_and_methods_of_coglet_are_not_passed_on(server: GuardedCog, method: str, path: str) -> None:
    answer = requests.request(method, server.url + path, json={"input": {"image": IMAGE}}, timeout=10)
    assert answer.status_code in (404, 405)


def test_a_sequential_client_never_meets_a_busy_server(server: GuardedCog) -> None:
    with requests.Session() as session:
        for _ in range(12):
            answer = session.post(
                f"{server.url}/predictions", json={"input": {"image": IMAGE, "times": 10**6}}, timeout=20
            )
            assert output_of(answer) == HELLO * 10**6


def test_a_second_client_waits_a_moment_and_then_gets_409(server: GuardedCog) -> None:
    answers: dict[str, requests.Response] = {}
    first, second, third = (
        threading.Thread(target=lambda name=name, s=s: answers.update({name: server.predict({"seconds": s})}))
        for name, s in (("first", 0.4), ("second", 0.0), ("long", 5.0))
    )
    first.start()
    time.sleep(0.2)
    second.start()
    first.join()
    second.join()
    assert [output_of(answers[name]) for name in ("first", "second")] == [HELLO, HELLO]
    third.start()
    time.sleep(0.3)
    refused = server.predict()
    assert refused.status_code == 409
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.json()["status"] == "failed"
    third.join()
    assert output_of(answers["long"]) == HELLO


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_client_that_leaves_cancels_its_prediction_and_the_next_one_runs(server: GuardedCog, size: int) -> None:
    image = "data:;base64," + base64.b64encode(bytes(size)).decode()
    for delay in (0.0, 0.05, 0.5):
        body = json.dumps({"input": {"image": image, "seconds": 60.0}}).encode()
        head = b"POST /predictions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(delay)
        server.wait_for("READY", 10)


def test_an_asynchronous_prediction_can_be_cancelled_at_once(server: GuardedCog) -> None:
    for delay in (0.0, 0.3):
        headers = {"Prefer": "respond-async"}
        body: dict[str, Any] = {"input": {"image": IMAGE, "seconds": 60.0}}
        answer = requests.put(f"{server.url}/predictions/slow", json=body, headers=headers, timeout=10)
        assert (answer.status_code, answer.json()) == (202, {"id": "slow", "status": "starting"})
        again = requests.put(f"{server.url}/predictions/slow", json=body, headers=headers, timeout=10)
        assert (again.status_code, again.json()["id"]) == (202, "slow")
        time.sleep(delay)
        assert requests.post(f"{server.url}/predictions/slow/cancel", timeout=10).status_code == 200
        server.wait_for("READY", 10)
    assert requests.post(f"{server.url}/predictions/slow/cancel", timeout=10).status_code == 404


def test_an_asynchronous_prediction_with_bad_inputs_is_refused(server: GuardedCog) -> None:
    answer = requests.post(
        f"{server.url}/predictions", json={"input": {}}, headers={"Prefer": "respond-async"}, timeout=10
    )
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "input", "image"]


def test_the_server_describes_itself_as_coglet_does(server: GuardedCog) -> None:
    assert requests.get(server.url, timeout=10).json()["predictions_url"] == "/predictions"
    schema = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    assert "image" in schema["components"]["schemas"]["Input"]["properties"]
    assert server.health()["version"]["coglet"] == "0.23.1"


def test_requests_without_the_key_are_refused(with_key: GuardedCog) -> None:
    body = {"input": {"image": IMAGE}}
    wrong: list[dict[str, str]] = [{}, {"Authorization": "Bearer wrong"}, {"X-API-Key": KEY[:-1]}]
    for headers in wrong:
        for path in ("/predictions", "/shutdown", "/predictions/x/cancel"):
            answer = requests.post(with_key.url + path, json=body, headers=headers, timeout=10)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    for right in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
        assert output_of(requests.post(f"{with_key.url}/predictions", json=body, headers=right, timeout=20)) == HELLO
    assert with_key.health()["status"] == "READY"


def test_with_the_key_a_webhook_gets_the_states_and_the_output(with_key: GuardedCog, outside: Outside) -> None:
    body = {"input": {"image": IMAGE}, "webhook": f"{outside.url}/hook", "id": "reported"}
    headers = {"X-API-Key": KEY, "Prefer": "respond-async"}
    assert requests.post(f"{with_key.url}/predictions", json=body, headers=headers, timeout=10).status_code == 202
    first = outside.next_webhook()
    assert (first["id"], first["status"]) == ("reported", "processing")
    last = first
    while last["status"] == "processing":
        last = outside.next_webhook()
    assert (last["id"], last["status"], last["output"]) == ("reported", "succeeded", IMAGE_AS_OUTPUT)
    body = {**body, "webhook_events_filter": ["completed"]}
    assert requests.post(f"{with_key.url}/predictions", json=body, headers=headers, timeout=10).status_code == 202
    assert outside.next_webhook()["status"] == "succeeded"


IMAGE_AS_OUTPUT = f"data:application/octet-stream;base64,{base64.b64encode(HELLO).decode()}"


def test_with_private_addresses_allowed_a_url_names_the_output(with_key: GuardedCog, outside: Outside) -> None:
    outside.files = {"/photos/summer%20beach.jpg": b"a photograph"}
    body = {"input": {"image": f"{outside.url}/photos/summer%20beach.jpg"}}
    answer = requests.post(f"{with_key.url}/predictions", json=body, headers={"X-API-Key": KEY}, timeout=20)
    assert output_of(answer) == b"a photograph"
    assert [name for name in with_key.files() if name.endswith(".bin")] == ["summer_beach.bin"]
    missing = {"input": {"image": f"{outside.url}/nothing"}}
    answer = requests.post(f"{with_key.url}/predictions", json=missing, headers={"X-API-Key": KEY}, timeout=20)
    assert answer.json()["status"] == "failed"
    assert "answered 404" in answer.json()["error"]


def test_pages_of_an_allowed_origin_may_use_the_server(with_key: GuardedCog) -> None:
    page = {"Origin": "https://app.example"}
    asked = {
        **page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-api-key",
    }
    preflight = requests.options(f"{with_key.url}/predictions", headers=asked, timeout=10)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    body = {"input": {"image": IMAGE}}
    answer = requests.post(f"{with_key.url}/predictions", json=body, headers={**page, "X-API-Key": KEY}, timeout=20)
    assert output_of(answer) == HELLO
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_the_longest_prediction_is_cancelled_and_a_lost_slot_becomes_unhealthy(tmp_path: Path) -> None:
    # Coglet loses its slot if it cannot make a folder; a full disk does the same.
    taken = f"taken-{uuid.uuid4().hex}"
    (PREDICTIONS / taken).touch()
    try:
        with guarded_cog(tmp_path / "server", SHARP_REQUEST_SECONDS="2.5", SHARP_COG_WAIT_SECONDS="0.2") as server:
            answer = server.predict({"seconds": 60.0})
            assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
            server.wait_for("READY", 10)
            assert output_of(server.predict()) == HELLO

            assert server.put(taken).json()["status"] == "failed"
            assert server.health()["status"] == "BUSY"
            assert server.predict().status_code == 409
            server.wait_for("UNHEALTHY", 10)
            assert "restart the server" in server.health()["user_healthcheck_error"]
            assert server.predict().status_code == 503
            assert "Cog's server is UNHEALTHY: busy for more than 2.5 s" in server.log()
    finally:
        (PREDICTIONS / taken).unlink()


def test_clients_that_stall_or_do_not_read_leave_the_server_to_others(tmp_path: Path) -> None:
    settings = {"SHARP_STALL_SECONDS": "1", "SHARP_HEADER_SECONDS": "1", "SHARP_MAX_UPLOADS": "4"}
    with contextlib.ExitStack() as stack:
        environment: dict[str, Any] = settings
        server = stack.enter_context(guarded_cog(tmp_path / "server", **environment))
        host, _, port = server.url.removeprefix("http://").partition(":")

        def connection(start: bytes) -> socket.socket:
            opened = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            opened.sendall(start)
            return opened

        post = (
            b"POST /predictions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        )
        stalled = [connection(post % 100_000_000 + b"\r\n{") for _ in range(6)]
        half_open = connection(b"POST /predictions HTTP/1.1\r\nHost:")
        body = json.dumps({"input": {"image": IMAGE, "times": 10_000_000}}).encode()
        unread = connection(post % len(body) + b"\r\n" + body)
        assert output_of(server.predict()) == HELLO
        assert half_open.recv(100) == b""
        assert all(each.recv(100).startswith(b"HTTP/1.1 408") for each in stalled[:1])
        long_header = connection(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        with contextlib.suppress(ConnectionError):
            long_header.sendall(b"x" * 1_000_000)
            assert long_header.recv(100).startswith((b"HTTP/1.1 4", b""))
        deadline = time.monotonic() + 20
        while [name for name in server.files() if not name.endswith(".bin")]:
            assert time.monotonic() < deadline, server.files()
            time.sleep(0.1)
        assert unread.fileno() > 0
        assert output_of(server.predict()) == HELLO
