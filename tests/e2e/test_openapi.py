"""Requests that schemathesis makes from the service's own description, and requests that it forbids."""

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
"""Without `positive_data_acceptance`: a schema cannot say that file and image_url exclude each other."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve a pipeline that takes any bytes for an image, and make all other hosts unknown."""
    system = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **rest: Any) -> Any:
        if host != "127.0.0.1":
            raise socket.gaierror(f"{host} is not known")
        return system(host, *args, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        # Most bodies are images here, and the video of each would take half a minute to render.
        patch.setattr("sharp_cog.pipeline.output.write_mp4", lambda file, scene, camera: file.write(b"video"))
        with serving(Gated, ServiceSettings(request_seconds=20)) as service:
            yield service.url


@pytest.fixture(scope="module")
def described(url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


OPERATIONS = [
    *(("GET", path) for path in ("/", "/health", "/metrics", "/progress/{request_id}")),
    *(("POST", path) for path in ("/predict", "/predict/{output_format}")),
]


NUM_REQUESTS = [25, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
"""Number of requests for each operation."""


def attack(described: schemathesis.BaseSchema, method: str, path: str, num_requests: int) -> None:
    """Send requests that the description allows, and check the answers against it."""

    @given(case=described[path][method].as_strategy())
    @settings(max_examples=num_requests, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @seed(6)
    def check(case: Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


@pytest.mark.parametrize("num", NUM_REQUESTS)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_the_service(
    described: schemathesis.BaseSchema, url: str, method: str, path: str, num: int
) -> None:
    attack(described, method, path, num)
    if method == "POST":
        metrics = requests.get(f"{url}/metrics", timeout=10).text
        assert float(metrics.partition('outcome="ok"} ')[2].partition("\n")[0]) >= 1, "no request was a good one"


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
"""Fields of a form: name, file name (None for text) and content."""


@given(st.lists(FIELDS, max_size=6), st.sampled_from([*FORMATS, "", "obj", "%00", "a/b"]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_form_breaks_the_service(url: str, form: list[Any], output_format: str) -> None:
    """Requests that the description forbids, which schemathesis (4.32) cannot make for forms with files."""
    files = [(name, content if filename is None else (filename, content)) for name, filename, content in form]
    parts = [(name, (None, part) if not isinstance(part, tuple) else part) for name, part in files]
    answer = requests.post(f"{url}/predict/{output_format}", files=parts or {"": b""}, timeout=30)
    assert answer.status_code in (200, 404, 405, 422), answer.text
    assert answer.status_code == 200 or answer.json().keys() == {"error", "code"}


@given(st.binary(max_size=300), st.sampled_from(["x", "", "x" * 200]) | st.text('ab-"=; ', max_size=10))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_the_checks_find_an_undescribed_answer(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    del document["paths"]["/predict/{output_format}"]["post"]["responses"]["422"]
    wrong = schemathesis.openapi.from_dict(document)
    wrong.config.update(base_url=url)
    with pytest.raises(FailureGroup):
        attack(wrong, "POST", "/predict/{output_format}", 50)


def test_every_described_operation_gets_requests(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == set(OPERATIONS)


def test_every_endpoint_is_described(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    endpoints = requests.get(url, timeout=10).json()["endpoints"]
    paths = {path.replace("{output_format}", "{format}") for path in document["paths"]}
    assert paths == set(endpoints) - {"/docs"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "200" in operation["responses"], path


def test_every_option_is_described_as_it_is(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    for path in ("/predict", "/predict/{output_format}"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        for media_type, images in (("multipart/form-data", {"file", "image"}), ("application/json", {"image"})):
            properties = content[media_type]["schema"]["properties"]
            options = {about.name: about for about in parameters(PredictOptions)}
            assert properties.keys() == options.keys() | images | {"image_url", "depth", "depth_url", "f_px"}
            for name, about in options.items():
                found = properties[name]
                assert found["description"]
                assert found.get("enum", []) == list(about.choices)
                assert (found.get("minimum"), found.get("maximum")) == (about.limits or (None, None))
                assert found.get("default") == about.default


def test_every_format_of_a_file_is_described(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    answers = document["paths"]["/predict/{output_format}"]["post"]["responses"]["200"]["content"]
    assert answers.keys() == {format_.media_type.partition(";")[0] for format_ in FORMATS.values()}
