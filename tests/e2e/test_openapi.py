"""The service's own description, taken at its word by schemathesis: whatever it allows, and what it does not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.parameters import parameters
from sharp_cog.config.services import ServiceSettings
from sharp_cog.formats import FORMATS
from tests.gated import Gated
from tests.service import serving

load_all_checks()
schemathesis.openapi.format("binary", st.sampled_from([b"a", b"abc", bytes(40), b""]))

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
]
"""Not `positive_data_acceptance`: that two fields exclude each other, such as a file and its URL, no schema says."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A service for which any bytes are a picture, in a world without other hosts."""
    system = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **rest: Any) -> Any:
        if host != "127.0.0.1":
            raise socket.gaierror(f"{host} is not known")
        return system(host, *args, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        with serving(Gated, ServiceSettings(request_seconds=20)) as service:
            yield service.url


@pytest.fixture(scope="module")
def described(url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


OPERATIONS = [
    *(("GET", path) for path in ("/", "/health", "/metrics", "/progress/{request_id}")),
    *(("POST", path) for path in ("/predict", "/predict/{output_format}")),
]


def attack(described: schemathesis.BaseSchema, method: str, path: str, num_requests: int) -> None:
    """Sends what the description allows, and checks the answers against it."""

    @given(case=described[path][method].as_strategy())
    @settings(max_examples=num_requests, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @seed(6)
    def check(case: Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_the_service(described: schemathesis.BaseSchema, url: str, method: str, path: str) -> None:
    attack(described, method, path, 100 if method == "GET" else 600)
    if method == "POST":
        metrics = requests.get(f"{url}/metrics", timeout=10).text
        num_made = float(metrics.partition('outcome="ok"} ')[2].partition("\n")[0])
        assert num_made >= 5, "hardly any request was a good one"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_many_requests_do_not_break_it(described: schemathesis.BaseSchema, method: str, path: str) -> None:
    attack(described, method, path, 5000)


NAMES = [
    *(about.name for about in parameters(PredictOptions)),
    "f_px",
    "format",
    "file",
    "depth",
    "image_url",
    "depth_url",
]
FIELDS = st.tuples(
    st.sampled_from(NAMES) | st.text(max_size=20),
    st.none() | st.text(max_size=20),
    st.sampled_from(["", "1", "nan", "-1", "1e999", "true", "spz", "\x00", "9" * 5000]) | st.text() | st.binary(),
)
"""Name, file name (None is text) and content."""


# What the description forbids. schemathesis' own way of it cannot handle files in forms (4.32).
@given(st.lists(FIELDS, max_size=6), st.sampled_from([*FORMATS, "", "obj", "%00", "a/b"]))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_form_breaks_the_service(url: str, form: list[Any], output_format: str) -> None:
    files = [(name, content if filename is None else (filename, content)) for name, filename, content in form]
    parts = [(name, (None, part) if not isinstance(part, tuple) else part) for name, part in files]
    answer = requests.post(f"{url}/predict/{output_format}", files=parts or {"": b""}, timeout=30)
    assert answer.status_code in (200, 404, 405, 422), answer.text
    assert answer.status_code == 200 or answer.json().keys() == {"error", "code"}


@given(st.binary(max_size=300), st.sampled_from(["x", "", "x" * 200]) | st.text('ab-"=; ', max_size=10))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_breaks_the_service(url: str, body: bytes, boundary: str) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    for content in (body, head + body, head + body + b"\r\n--x--\r\n"):
        answer = requests.post(
            f"{url}/predict/spz",
            data=content,
            headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
            timeout=30,
        )
        assert answer.status_code in (200, 422), answer.text
        assert answer.status_code == 200 or answer.json().keys() == {"error", "code"}


def test_the_attack_sees_a_fault(url: str) -> None:
    """With a description that promises too much, the same checks fail."""
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    del document["paths"]["/predict/{output_format}"]["post"]["responses"]["422"]
    wrong = schemathesis.openapi.from_dict(document)
    wrong.config.update(base_url=url)
    with pytest.raises(FailureGroup):
        attack(wrong, "POST", "/predict/{output_format}", 50)


def test_every_operation_is_attacked(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == set(OPERATIONS)


def test_every_endpoint_is_described(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    told = requests.get(url, timeout=10).json()["endpoints"]
    paths = {path.replace("{output_format}", "{format}") for path in document["paths"]}
    assert paths == set(told) - {"/docs"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "200" in operation["responses"], path


def test_every_option_is_described_as_it_is(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    for path in ("/predict", "/predict/{output_format}"):
        form = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        properties = form["properties"]
        options = {about.name: about for about in parameters(PredictOptions)}
        assert properties.keys() == options.keys() | {"file", "image_url", "depth", "depth_url", "f_px"}
        for name, about in options.items():
            assert properties[name]["description"]
            assert properties[name].get("enum", []) == list(about.choices)
            assert (properties[name].get("minimum"), properties[name].get("maximum")) == (about.limits or (None, None))
            assert properties[name].get("default") == about.default


def test_every_format_of_a_file_is_described(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    answers = document["paths"]["/predict/{output_format}"]["post"]["responses"]["200"]["content"]
    assert answers.keys() == {format_.media_type.partition(";")[0] for format_ in FORMATS.values()}
