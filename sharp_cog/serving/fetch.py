"""Guarded download from and upload to URLs that callers name.

A caller may name any address, and the service runs inside a network. Its neighbours, the cloud's metadata service and
the service itself must not be reachable through it (server-side request forgery). Therefore each host is resolved once,
all of its addresses must be public, the connection goes to one of these addresses, and every redirect is checked in the
same way. Size and time are capped whatever the server says or does.

Messages name the host of a URL and no more, since the rest may be a signature.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import io
import ipaddress
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal
from urllib.parse import SplitResult, urljoin, urlsplit

import certifi
from requests.utils import requote_uri

from sharp_cog import __version__
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import FetchError, InputError, UploadError
from sharp_cog.files.atomic import cannot_write
from sharp_cog.files.read import capped
from sharp_cog.serving.networks import is_public
from sharp_cog.text import plain

MAX_REDIRECTS = 3
"""Maximum number of redirects that are followed."""
CONNECT_SECONDS = 10.0
"""Time limit of resolving a name, of connecting, and of each read."""
MAX_HOST_CHARS = 253
"""Longest name of a host in the DNS (RFC 1035)."""
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 1 << 16
_REASON_CHARS = 60
"""Maximum length of a server's reason phrase in a message."""
_HEADERS = {"User-Agent": f"sharp_cog/{__version__}", "Accept": "*/*"}


def fetch(url: str, settings: ServiceSettings) -> bytes:
    """Return the content behind a URL; see `fetch_into`."""
    content = io.BytesIO()
    fetch_into(url, settings, content)
    return content.getvalue()


def fetch_into(url: str, settings: ServiceSettings, file: IO[bytes]) -> None:
    """Write the content behind a URL to a file.

    Args:
        url: An http or https URL.
        settings: Settings with the limits, and whether private addresses are allowed.
        file: File to write to.

    Raises:
        FetchError: The URL is not allowed or cannot be fetched, or the content is empty or too large.
        OutputError: The file cannot be written.
    """
    # One deadline for all redirects, and each of them is checked like the first URL.
    deadline = time.monotonic() + settings.fetch_seconds
    for _ in range(MAX_REDIRECTS + 1):
        target = _Target.parse(url, FetchError)
        with _connected(target, settings, settings.fetch_seconds, deadline) as connection:
            # No compression: a small compressed body could expand to gigabytes.
            connection.request("GET", target.path, headers={**_HEADERS, "Accept-Encoding": "identity"})
            response = connection.getresponse()
            location = response.headers.get("Location")
            if response.status in _REDIRECTS and location:
                url = urljoin(url, location)
                continue
            if response.status != 200:
                reason = plain(response.reason, _REASON_CHARS)
                raise FetchError(f"{target.host} answered {response.status} {reason}: check the URL")
            _copy_body(response, target.host, settings, file)
            return
    raise FetchError(f"the URL redirects more than {MAX_REDIRECTS} times: give the last address")


def upload(url: str, path: Path, content_type: str, settings: ServiceSettings) -> None:
    """Upload a file by PUT to a presigned URL of an object store.

    Raises:
        UploadError: The URL is not allowed, or the server refuses the file.
    """
    with path.open("rb") as file:
        _send("PUT", url, file, path.stat().st_size, content_type, "check that upload_url is signed for that", settings)


def notify(url: str, content: bytes, settings: ServiceSettings) -> None:
    """Send JSON by POST to a webhook.

    Raises:
        UploadError: The URL is not allowed, or the server refuses the content.
    """
    post(url, [content], len(content), settings)


def post(url: str, chunks: Iterable[bytes], num_bytes: int, settings: ServiceSettings) -> None:
    """Send JSON by POST to a webhook, in parts, of which only one is in memory at a time.

    Args:
        url: An http or https URL.
        chunks: The JSON.
        num_bytes: Size of all parts together.
        settings: Settings with the time limit, and whether private addresses are allowed.

    Raises:
        UploadError: The URL is not allowed, or the server refuses the content.
    """
    _send("POST", url, chunks, num_bytes, "application/json", "check the webhook", settings)


def _send(
    method: str,
    url: str,
    body: Iterable[bytes],
    num_bytes: int,
    content_type: str,
    remedy: str,
    settings: ServiceSettings,
) -> None:
    """Send a body of known length. Redirects are not followed: a store's signature is valid for one address."""
    target = _Target.parse(url, UploadError)
    seconds = settings.request_seconds
    deadline = time.monotonic() + seconds
    with _connected(target, settings, seconds, deadline) as connection:
        # Without a length, http.client sends a file in chunks, which S3 refuses.
        headers = {**_HEADERS, "Content-Type": content_type, "Content-Length": str(num_bytes)}
        connection.request(method, target.path, body=body, headers=headers)
        response = connection.getresponse()
        response.read(_CHUNK_BYTES)
        if not 200 <= response.status < 300:
            raise UploadError(
                f"{target.host} answered {response.status} {plain(response.reason, _REASON_CHARS)} to the {method} of "
                f"{num_bytes} bytes as {content_type}: {remedy}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """Parsed URL, and the type of the errors that concern it."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str
    error: type[InputError]

    @classmethod
    def parse(cls, url: str, error: type[InputError]) -> _Target:
        """Parse a URL.

        Raises:
            InputError: An error of type `error`: the URL is malformed or of another kind.
        """
        try:
            parts = urlsplit(url)
            host, port = _ascii_host(parts), parts.port
            path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
            if not path.isascii() or any(char <= " " or char == "\x7f" for char in path):
                # A request line holds neither spaces nor other alphabets. Browsers quote them too.
                path = requote_uri(path)
            if len(host) > MAX_HOST_CHARS or not host.isprintable():
                raise ValueError("the host's name is not valid")
        except ValueError:  # Bad brackets, ports and international names, and lone surrogates.
            raise error("the URL cannot be read: give an http or https address") from None
        if parts.scheme not in ("http", "https") or not host:
            raise error(f"the URL begins with {parts.scheme[:20]!r}: give an http or https address")
        if parts.username is not None or parts.password is not None:
            raise error("the URL holds a user name or password: give one without")
        return cls(
            scheme="https" if parts.scheme == "https" else "http",
            host=host,
            port=port or (443 if parts.scheme == "https" else 80),
            path=path,
            error=error,
        )


def _ascii_host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return host if host.isascii() else host.encode("idna").decode("ascii")


def _addresses(target: _Target, settings: ServiceSettings, deadline: float) -> list[str]:
    """Return all addresses of the host, which is resolved here and never again.

    Raises:
        InputError: An error of the target's type: the host has no address, or one that is not public.
    """
    # The system's resolver has no timeout, so a thread in which it takes too long is abandoned.
    executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="resolve")
    try:
        found = executor.submit(socket.getaddrinfo, target.host, target.port, type=socket.SOCK_STREAM).result(
            timeout=max(0.0, min(CONNECT_SECONDS, deadline - time.monotonic()))
        )
    except (OSError, UnicodeError, concurrent.futures.TimeoutError):
        raise target.error(f"the host {target.host[:100]!r} is not known: check the URL") from None
    finally:
        executor.shutdown(wait=False)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not settings.fetch_private:
        for address in addresses:
            # A link-local IPv6 address ends with the name of an interface, after a percent sign.
            if not is_public(ipaddress.ip_address(address.partition("%")[0])):
                raise target.error(f"the host {target.host[:100]!r} is at a private address: give a public URL")
    return addresses


@contextlib.contextmanager
def _connected(
    target: _Target, settings: ServiceSettings, seconds: float, deadline: float
) -> Iterator[http.client.HTTPConnection]:
    """Connect to one of the host's addresses, and cut the connection at the deadline whatever is under way.

    Args:
        target: The URL.
        settings: Settings with whether private addresses are allowed.
        seconds: Time limit that the message names.
        deadline: End of the time limit, by `time.monotonic`.

    Raises:
        InputError: An error of the target's type: the connection cannot be made, breaks, or does not end in time.
    """
    error = target.error
    late = f"{target.host} did not answer in full within {seconds:g} s: try again, or give another URL"
    is_late = threading.Event()
    connection: _Connection | None = None
    try:
        sock = _dial(_addresses(target, settings, deadline), target.port, deadline)
        # TLS takes over the socket but not this duplicate of it: shutting it down ends every wait of the connection.
        guard = sock.dup()

        def cut() -> None:
            is_late.set()
            with contextlib.suppress(OSError):
                guard.shutdown(socket.SHUT_RDWR)

        # The timeout of a socket bounds each read alone: a server that sends a byte at a time would never exceed it.
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
        timer.daemon = True
        timer.start()
        try:
            connection = _Connection(target, sock)
            try:
                yield connection
            finally:
                if is_late.is_set():  # A body that was cut may look whole, or raise a misleading error.
                    raise error(late)
        finally:
            timer.cancel()
            guard.close()
            # Without TLS this closes the connection; TLS has detached the socket, and then `connection` closes it.
            sock.close()
            if connection is not None:
                connection.close()
    except (OSError, http.client.HTTPException, ValueError) as failure:
        if is_late.is_set() or time.monotonic() >= deadline:
            raise error(late) from failure
        reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else type(failure).__name__
        raise error(f"cannot talk to {target.host} ({reason}): check the URL, or try again") from failure


def _dial(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """Connect to the first address that answers."""
    failure: OSError = TimeoutError("no address answered")
    # A host may have an IPv6 address that this network does not reach, so the next one is tried.
    for address in addresses:
        timeout = min(CONNECT_SECONDS, deadline - time.monotonic())
        if timeout <= 0:
            break
        try:
            sock = socket.create_connection((address, port), timeout=timeout)
        except OSError as error:
            failure = error
        else:
            sock.settimeout(CONNECT_SECONDS)
            return sock
    raise failure


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that is connected already."""

    def __init__(self, target: _Target, sock: socket.socket) -> None:
        self.default_port = 443 if target.scheme == "https" else 80  # The Host header omits this port.
        super().__init__(target.host, target.port)
        self._target = target
        self._socket = sock

    def connect(self) -> None:
        """Wrap the socket in TLS for https, and check the host's certificate."""
        self.sock = self._socket
        if self._target.scheme == "https":
            # certifi's certificates, so that the result does not depend on those of the system.
            context = ssl.create_default_context(cafile=certifi.where())
            self.sock = context.wrap_socket(self._socket, server_hostname=self._target.host)


def _copy_body(response: http.client.HTTPResponse, host: str, settings: ServiceSettings, file: IO[bytes]) -> None:
    """Write the body of a response to a file.

    Raises:
        FetchError: The body is too large, shorter than declared, compressed, or empty.
        OutputError: The file cannot be written.
    """
    limit_mb = settings.fetch_megabytes
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise FetchError(f"{host} sends {encoding[:20]!r} compression, which was not asked for: give another URL")
    expected = response.length
    chunks = capped(
        iter(lambda: response.read(_CHUNK_BYTES), b""),
        int(limit_mb * 1e6),
        FetchError(f"the file behind the URL is larger than {limit_mb:g} MB: give a smaller one"),
        declared_bytes=expected,
    )
    num_bytes = 0
    for chunk in chunks:
        num_bytes += len(chunk)
        try:
            file.write(chunk)
        except OSError as error:
            raise cannot_write(Path(tempfile.gettempdir()) / "fetched", error) from error
    # http.client returns what has come when the server closes the connection early.
    if expected is not None and num_bytes < expected:
        raise FetchError(f"{host} sent {num_bytes} of {expected} bytes: try again")
    if not num_bytes:
        raise FetchError(f"{host} sent an empty file: check the URL")
