"""Guarded download and upload, against servers on loopback that lie, stall and redirect."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import FetchError, UploadError
from sharp_cog.serving.fetch import fetch, notify, upload
from sharp_cog.serving.networks import is_public
from tests.website import Answer, Site, says

OPEN = ServiceSettings(fetch_private=True, fetch_seconds=10, fetch_megabytes=1)
GUARDED = ServiceSettings(fetch_seconds=10)


def leads_to(url: str, status: int = 302) -> Answer:
    return says(b"", status, Location=url)


def test_the_content_is_returned_unchanged(site: Site) -> None:
    url = site.url("/a%20b.jpg?signature=x%2By", says(b"picture"))
    assert fetch(url, OPEN) == b"picture"
    method, path, headers, _ = site.seen[0]
    assert (method, path) == ("GET", "/a%20b.jpg?signature=x%2By")
    assert headers["host"] == f"127.0.0.1:{site.port}"
    assert headers["accept-encoding"] == "identity"


def test_a_path_is_quoted_as_browsers_do(site: Site) -> None:
    site.answers["/sch%C3%B6n%20.jpg"] = says(b"picture")
    assert fetch(f"http://127.0.0.1:{site.port}/schön .jpg", OPEN) == b"picture"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_three_times(site: Site, status: int) -> None:
    site.url("/3", says(b"picture"))
    for number in (2, 1, 0):
        site.url(f"/{number}", leads_to(f"/{number + 1}", status))
    assert fetch(f"http://127.0.0.1:{site.port}/0", OPEN) == b"picture"
    site.url("/start", leads_to("/0", status))
    with pytest.raises(FetchError, match="redirects more than 3 times"):
        fetch(f"http://127.0.0.1:{site.port}/start", OPEN)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "0.0.0.0", "[::1]", "[::]"),
        *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.100.100.200", "224.0.0.1", "[ff02::1]", "[fe80::1]", "[fd00:ec2::254]", "255.255.255.255"),
        *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "168.63.129.16", "[::ffff:168.63.129.16]", "192.0.0.192"),
        *("[fec0::1]", "[3fff::1]", "[::7f00:1]"),
    ],
)
def test_private_addresses_are_refused_however_they_are_written(site: Site, host: str) -> None:
    with pytest.raises(FetchError, match=r"private address|is not known"):
        fetch(f"http://{host}:{site.port}/", GUARDED)
    with pytest.raises(UploadError, match=r"private address|is not known"):
        upload(f"http://{host}:{site.port}/", Path(__file__), "text/plain", GUARDED)
    with pytest.raises(UploadError, match=r"private address|is not known"):
        notify(f"http://{host}:{site.port}/", b"{}", GUARDED)
    assert site.seen == []


def resolving(monkeypatch: pytest.MonkeyPatch, table: dict[str, list[str]]) -> list[str]:
    """Answer in place of the system's resolver, with the next address of a name at each call. Return the calls."""
    calls: list[str] = []
    system = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **rest: Any) -> Any:
        if host not in table:
            return system(host, port, *args, **rest)
        calls.append(host)
        addresses = table[host]
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return calls


def allowing(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Treat these addresses of loopback as public ones."""
    monkeypatch.setattr(
        "sharp_cog.serving.fetch.is_public", lambda address: str(address) in addresses or is_public(address)
    )


def test_a_redirect_to_loopback_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, {"public.example": ["127.0.0.1"]})
    allowing(monkeypatch, "127.0.0.1")
    target = site.url("/secret", says(b"secret"), host="127.0.0.2")
    for url in (target, f"http://localhost.localdomain:{site.port}/secret", "http://169.254.169.254/latest/meta-data"):
        site.url("/open", leads_to(url))
        with pytest.raises(FetchError, match=r"private address|is not known"):
            fetch(f"http://public.example:{site.port}/open", GUARDED)
    site.url("/file", leads_to("file:///etc/passwd"))
    with pytest.raises(FetchError, match="begins with 'file'"):
        fetch(f"http://public.example:{site.port}/file", GUARDED)
    assert {path for _, path, _, _ in site.seen} == {"/open", "/file"}


def test_a_name_is_resolved_once_so_that_it_cannot_change_its_address(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: public when it is checked, private when it is used."""
    calls = resolving(monkeypatch, {"rebinding.example": ["127.0.0.1", "127.0.0.2"]})
    allowing(monkeypatch, "127.0.0.1")
    url = site.url("/", says(b"first"), host="rebinding.example")
    assert fetch(url, GUARDED) == b"first"
    assert calls == ["rebinding.example"]
    assert site.seen[0][2]["host"] == f"rebinding.example:{site.port}"
    with pytest.raises(FetchError, match="private address"):
        fetch(url, GUARDED)


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, port: int, **rest: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(FetchError, match="private address"):
        fetch("http://mixed.example/", GUARDED)


def test_an_endless_body_is_cut_at_the_size_limit(site: Site) -> None:
    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                sent += handler.wfile.write(b"x" * 65536)

    with pytest.raises(FetchError, match="larger than 1 MB"):
        fetch(site.url("/", endless), OPEN)
    assert sent < 20e6, "a megabyte, and what was on its way"


@pytest.mark.parametrize("part", ["header", "body", "nothing"])
def test_a_slow_answer_is_cut_at_the_time_limit(site: Site, part: str) -> None:
    """Each piece comes in time, but the whole never does."""
    is_over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if part == "body" else b""))
            while not is_over.wait(0.05):
                if part != "nothing":
                    handler.wfile.write(b"X-A: b\r\n" if part == "header" else b"x")

    url = site.url("/", drip)
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"127\.0\.0\.1 did not answer in full within 0\.7 s"):
        fetch(url, ServiceSettings(fetch_private=True, fetch_seconds=0.7))
    assert time.monotonic() - start < 5
    is_over.set()


def test_a_tls_handshake_that_never_begins_is_cut_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(FetchError, match="did not answer in full"):
            fetch(
                f"https://127.0.0.1:{silent.getsockname()[1]}/", ServiceSettings(fetch_private=True, fetch_seconds=0.5)
            )
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"short", "1000", r"sent 5 of 1000 bytes"),
        (b"x", "2000000", "larger than 1 MB"),
        (b"", "0", "sent an empty file"),
    ],
)
def test_a_wrong_length_is_an_error(site: Site, body: bytes, length: str, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        fetch(site.url("/", says(body, Content_Length=length)), OPEN)


def test_a_body_is_cut_at_its_declared_length(site: Site) -> None:
    assert fetch(site.url("/", says(b"picture and more", Content_Length="7")), OPEN) == b"picture"


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate, gzip"])
def test_a_compressed_body_is_refused(site: Site, encoding: str) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(FetchError, match="compression, which was not asked for"):
        fetch(site.url("/", says(bomb, Content_Encoding=encoding)), OPEN)


@pytest.mark.parametrize("raw", [b"", b"\x00\xff garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])
def test_an_answer_that_is_not_http_is_an_error(site: Site, raw: bytes) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(raw)

    with pytest.raises(FetchError):
        fetch(site.url("/", answer), OPEN)


def test_a_refusal_is_reported_without_the_secrets_of_the_url(site: Site) -> None:
    url = site.url("/private?X-Signature=sesame", says(b"", 403))
    with pytest.raises(FetchError, match=r"127\.0\.0\.1 answered 403 Forbidden") as caught:
        fetch(url, OPEN)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.com/a.jpg", "begins with 'ftp'"),
        ("file:///etc/passwd", "begins with 'file'"),
        ("//example.com/a.jpg", "give an http or https address"),
        ("a.jpg", "give an http or https address"),
        ("", "give an http or https address"),
        ("http://", "give an http or https address"),
        ("http://[::1/", "cannot be read"),
        ("http://example.com:99999/", "cannot be read"),
        ("http://user:sesame@example.com/", "holds a user name or password"),
        ("http://no-such-host.invalid/", "is not known"),
        (f"http://{'a' * 300}.com/", "is not known|cannot be read"),
    ],
)
def test_a_malformed_or_foreign_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(FetchError, match=message) as caught:
        fetch(url, GUARDED)
    assert "sesame" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_fetch_error(text: str) -> None:
    for url in (text, f"http://{text}", f"http://127.0.0.1:1/{text}"):
        with pytest.raises(FetchError):
            fetch(url, ServiceSettings(fetch_seconds=0.2))


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as plain, context.wrap_socket(plain, server_side=True) as listener:

        def greet() -> None:
            with contextlib.suppress(OSError):
                listener.accept()

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(FetchError, match="cannot talk to"):
            fetch(
                f"https://localhost:{plain.getsockname()[1] if plain.fileno() != -1 else listener.getsockname()[1]}/",
                OPEN,
            )


def test_a_certificate_must_be_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = self_signed(tmp_path)
    monkeypatch.setattr("certifi.where", lambda: str(certificate))
    site = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    site.answers["/"] = says(b"picture")
    assert fetch(f"https://localhost:{site.port}/", OPEN) == b"picture"
    with pytest.raises(FetchError, match="cannot talk to"):
        fetch(f"https://127.0.0.1:{site.port}/", OPEN)  # The certificate is localhost's.
    site.server.shutdown()
    site.server.server_close()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Key and certificate of `localhost`, signed by itself."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_path, certificate_path = folder / "key.pem", folder / "certificate.pem"
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_path, certificate_path


def test_a_file_is_put_whole(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "splat.ply"
    path.write_bytes(b"ply" * 100_000)
    upload(site.url("/bucket/splat.ply?sig=1", says(b"")), path, "application/octet-stream", OPEN)
    method, where, headers, body = site.seen[0]
    assert (method, where, body) == ("PUT", "/bucket/splat.ply?sig=1", path.read_bytes())
    assert headers["content-length"] == "300000"
    assert headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("status", [302, 403, 500])
def test_a_put_that_is_refused_is_told(site: Site, tmp_path: Path, status: int) -> None:
    path = tmp_path / "splat.ply"
    path.write_bytes(b"ply")
    with pytest.raises(UploadError, match=rf"answered {status} .* to the PUT of 3 bytes"):
        upload(site.url("/?sig=sesame", says(b"", status, Location="/other")), path, "text/plain", OPEN)
    assert len(site.seen) == 1


def test_a_webhook_gets_json_by_post(site: Site) -> None:
    url = site.url("/done?token=sesame", says(b"", 204))
    notify(url, b'{"output": 1}', OPEN)
    method, where, headers, body = site.seen[0]
    assert (method, where, body) == ("POST", "/done?token=sesame", b'{"output": 1}')
    assert headers["content-type"] == "application/json"
    with pytest.raises(UploadError, match=r"answered 500 .* to the POST of 2 bytes") as caught:
        notify(site.url("/done?token=sesame", says(b"", 500)), b"{}", OPEN)
    assert "sesame" not in str(caught.value)
