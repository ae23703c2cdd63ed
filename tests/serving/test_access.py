"""Access to the HTTP service: the rules on header values, and requests on a real socket."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import ForbiddenError, RateLimitError, UnauthorizedError
from sharp_cog.serving.access import Access, Gate, RateLimit, for_listener, host_name, network_of
from tests.gated import Gated
from tests.service import Service, serving

KEYS = ServiceSettings(api_keys=("sesame-1", "sesame-2"))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sesame-1"},
        {"authorization": "bearer  sesame-2 "},
        {"x-api-key": "sesame-2"},
        {"x-api-key": "sesame-1", "authorization": "Basic dXNlcjpwYXNz"},
        {"x-api-key": "wrong", "authorization": "Bearer sesame-1"},
    ],
)
def test_a_key_is_taken_from_either_header(headers: dict[str, str]) -> None:
    access = Access.from_settings(KEYS)
    key = access.key_of(headers)
    assert key is not None
    assert "sesame" not in key
    access.check_key("/predict", key)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "sesame-1"},
        {"authorization": "Basic sesame-1"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer sesame-"},
        {"authorization": "Bearer sesame-1 more"},
        {"x-api-key": ""},
        {"x-api-key": "SESAME-1"},
        {"x-api-key": "s\xe9same"},
    ],
)
def test_a_request_without_a_valid_key_is_refused(headers: dict[str, str]) -> None:
    access = Access.from_settings(KEYS, open_paths=("/health",))
    with pytest.raises(UnauthorizedError):
        access.check_key("/predict", access.key_of(headers))
    access.check_key("/health", access.key_of(headers))


def test_no_key_is_needed_where_none_is_set() -> None:
    access = Access.from_settings(ServiceSettings())
    access.check_key("/predict", access.key_of({"authorization": "Bearer anything"}))


def test_every_key_is_compared_in_constant_time_wherever_the_right_one_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    access = Access.from_settings(KEYS)
    monkeypatch.setattr(hmac, "compare_digest", counted)
    for key in ("sesame-1", "sesame-2", "wrong", "a" * 5000):
        access.key_of({"x-api-key": key})
    assert compared == [(32, 32)] * 8, "digests of equal length, two for each key"


LOCAL = for_listener(ServiceSettings(), "127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize(
    ("settings", "host", "is_allowed"),
    [
        (LOCAL, "127.0.0.1:8000", True),
        (LOCAL, "localhost", True),
        (LOCAL, "LOCALHOST.:8000", True),
        (LOCAL, "[::1]:8000", True),
        (LOCAL, "rebinding.example:8000", False),
        (LOCAL, "127.0.0.1.rebinding.example", False),
        (LOCAL, "localhost.rebinding.example", False),
        (LOCAL, "rebinding.example#localhost", False),
        (LOCAL, "", False),
        (ServiceSettings(), "anything.example", True),
        (ServiceSettings(allowed_hosts=("*.example.com",)), "a.b.example.com:443", True),
        (ServiceSettings(allowed_hosts=("*.example.com",)), "example.com", False),
        (ServiceSettings(allowed_hosts=("*.example.com",)), "badexample.com", False),
        (ServiceSettings(allowed_hosts=("Splats.example.com",)), "splats.example.com", True),
        (ServiceSettings(allowed_hosts=("*",)), "rebinding.example", True),
    ],
)
def test_a_service_answers_to_its_names_alone(settings: ServiceSettings, host: str, is_allowed: bool) -> None:
    access = Access.from_settings(settings)
    if is_allowed:
        access.check_host(host)
    else:
        with pytest.raises(ForbiddenError, match="SHARP_ALLOWED_HOSTS"):
            access.check_host(host)


@pytest.mark.parametrize(
    ("address", "is_local"),
    [("127.0.0.1", True), ("127.0.1.1", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_only_a_loopback_address_restricts_the_names(address: str, is_local: bool) -> None:
    assert bool(for_listener(ServiceSettings(), "box", address).allowed_hosts) == is_local
    given = ServiceSettings(allowed_hosts=("*",))
    assert for_listener(given, "box", address) is given
    if is_local:
        Access.from_settings(for_listener(given, "Box", address)).check_host("box:8000")


@pytest.mark.parametrize(
    ("headers", "is_allowed"),
    [
        ({}, True),
        ({"origin": "http://127.0.0.1:8000"}, True),
        ({"origin": "https://127.0.0.1:8000"}, True),
        ({"origin": "https://splats.example", "sec-fetch-site": "same-origin"}, True),
        ({"origin": "https://app.example.com"}, True),
        ({"origin": "https://app.example.com:8443"}, False),
        ({"origin": "http://app.example.com"}, False),
        ({"origin": "http://127.0.0.1:3000"}, False),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://app.example.com.evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "http://[::1"}, False),
    ],
)
def test_only_the_services_own_page_and_allowed_origins_may_use_it(headers: dict[str, str], is_allowed: bool) -> None:
    access = Access.from_settings(ServiceSettings(allowed_origins=("https://app.example.com",)))
    given = {"host": "127.0.0.1:8000", **headers}
    if is_allowed:
        access.check_origin(given)
    else:
        with pytest.raises(ForbiddenError, match="SHARP_ALLOWED_ORIGINS"):
            access.check_origin(given)


def test_the_rate_is_counted_for_each_key_and_for_each_address_without_one() -> None:
    gate = Gate(Access.from_settings(KEYS, open_paths=("/",)), RateLimit("2/hour"))

    def call(key: str = "", address: str = "192.0.2.1", method: str = "POST", path: str = "/predict") -> str:
        try:
            gate.check(
                method=method, path=path, headers={"host": "a", **({"x-api-key": key} if key else {})}, address=address
            )
        except (RateLimitError, UnauthorizedError) as error:
            return error.code
        return "ok"

    assert [call("sesame-1", f"192.0.2.{number}") for number in range(3)] == ["ok", "ok", "rate_limited"]
    assert call("sesame-2") == "ok", "another key has its own rate"
    assert call("sesame-1", method="GET", path="/progress/a") == "ok", "only predictions count"
    guesses = [call(f"guess-{number}", "192.0.2.9", "GET", "/metrics") for number in range(3)]
    assert guesses == ["unauthorized", "unauthorized", "rate_limited"]
    assert [call("", "192.0.2.7", "GET", "/") for _ in range(3)] == ["ok"] * 3


def test_a_rate_says_when_to_try_again() -> None:
    limit = RateLimit("1/minute")
    limit.check("a")
    with pytest.raises(RateLimitError, match="more than 1 requests in one minute") as caught:
        limit.check("a")
    assert 1 <= caught.value.retry_after_s <= 120
    RateLimit("").check("a")


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "", True),
    ],
)
def test_the_addresses_of_one_caller_count_as_one(one: str, other: str, is_same: bool) -> None:
    assert (network_of(one) == network_of(other)) == is_same


def test_a_host_header_is_read_as_browsers_write_it() -> None:
    read = {"a.example": "a.example", "A.Example.:80": "a.example", "[2001:DB8::1]:8000": "2001:db8::1", "[::1]": "::1"}
    assert {host: host_name(host) for host in read} == read


# ---- on a real socket

OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")


@pytest.fixture(scope="module")
def locked() -> Iterator[Service]:
    settings = ServiceSettings(
        api_keys=("sesame",), allowed_hosts=("127.0.0.1",), allowed_origins=("https://app.example.com",)
    )
    with serving(Gated, settings) as service:
        yield service


def post(service: Service, **headers: str) -> requests.Response:
    return requests.post(f"{service.url}/predict/splat", files={"file": b"abc"}, headers=headers, timeout=30)


def test_a_service_with_a_key_predicts_for_those_who_have_it(locked: Service) -> None:
    for headers in ({"Authorization": "Bearer sesame"}, {"X-API-Key": "sesame"}):
        assert post(locked, **headers).status_code == 200
    for wrong in ({}, {"X-API-Key": "wrong"}):
        answer = post(locked, **wrong)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_all_but_the_page_the_description_and_health_need_the_key(locked: Service) -> None:
    document = requests.get(f"{locked.url}/openapi.json", timeout=10).json()
    paths = [path.replace("{", "").replace("}", "") for path in document["paths"]]
    for path in {*paths, *OPEN_PATHS, "/elsewhere", "/docs/", "//health", "/health/../metrics"}:
        status = requests.get(f"{locked.url}{path}", timeout=10).status_code
        assert (status == 200) == (path in OPEN_PATHS), path
        assert status in (200, 401)
    assert requests.get(f"{locked.url}/metrics", headers={"X-API-Key": "sesame"}, timeout=10).status_code == 200
    assert requests.get(locked.url, timeout=10).json()["needs_key"] is True


def test_a_description_of_a_service_with_a_key_names_the_key(locked: Service) -> None:
    document = requests.get(f"{locked.url}/openapi.json", timeout=10).json()
    schemes = document["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("scheme") or scheme.get("name")) for scheme in schemes.values()} == {
        ("http", "bearer"),
        ("apiKey", "X-API-Key"),
    }
    assert {tuple(entry) for entry in document["paths"]["/predict"]["post"]["security"]} == {
        (name,) for name in schemes
    }
    assert "401" in document["paths"]["/predict"]["post"]["responses"]
    assert "security" not in document["paths"]["/health"]["get"]


def test_a_name_that_was_pointed_at_this_machine_is_refused(locked: Service) -> None:
    """DNS rebinding: the request of a page that has given its own name the address 127.0.0.1."""
    for path in ("/", "/health", "/metrics"):
        answer = requests.get(
            f"{locked.url}{path}", headers={"Host": "rebinding.example", "X-API-Key": "sesame"}, timeout=10
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "'rebinding.example'" in answer.json()["error"]


def test_a_form_of_another_site_is_refused(locked: Service) -> None:
    answer = post(locked, Origin="https://evil.example", **{"X-API-Key": "sesame"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_page_of_an_allowed_origin_may_ask_read_and_see_errors(locked: Service) -> None:
    origin = {"Origin": "https://app.example.com"}
    preflight = requests.options(
        f"{locked.url}/predict/splat",
        headers={
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-api-key,x-request-id,content-type",
        },
        timeout=10,
    )
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    for answer, status in ((post(locked, **origin), 401), (post(locked, **origin, **{"X-API-Key": "sesame"}), 200)):
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == origin["Origin"]
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "Content-Disposition" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Host: 127.0.0.1\r\n", b"401"),
        (b"Host: 127.0.0.1\r\nX-API-Key: wrong\r\n", b"401"),
        (b"Host: rebinding.example\r\nX-API-Key: sesame\r\n", b"403"),
        (b"Host: 127.0.0.1\r\nX-API-Key: sesame\r\nOrigin: null\r\n", b"403"),
    ],
)
def test_a_request_without_access_is_refused_before_its_body_is_read(
    locked: Service, head: bytes, status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as sock:
        sock.sendall(b"POST /predict/ply HTTP/1.1\r\n" + head + b"Content-Length: 100000000\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 " + status


def test_too_many_requests_are_refused_with_when_to_try_again() -> None:
    with serving(Gated, ServiceSettings(rate_limit="2/hour")) as limited:
        answers: list[Any] = [post(limited) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json()["code"] == "rate_limited"
        assert 1 <= int(answers[2].headers["Retry-After"]) <= 7200
        assert requests.get(f"{limited.url}/health", timeout=10).status_code == 200
