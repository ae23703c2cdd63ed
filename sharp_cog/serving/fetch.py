"""URLs that callers name: fetched and uploaded to under guard, so that no request reaches what it should not.

A caller may name any address, and the service stands inside a network: its neighbours, the cloud's metadata service and
itself must not be reached through it (server-side request forgery). So each host is resolved once, every address that
it has must be public, the connection goes to just that address, and every redirect is treated the same. Size and time
are capped whatever the other side says or does.

No message holds more of a URL than its host: the rest may be a signature.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urljoin, urlsplit

import certifi
from requests.utils import requote_uri

from sharp_cog import __version__
from sharp_cog.config.settings import ServiceSettings
from sharp_cog.errors import FetchError, InputError, UploadError
from sharp_cog.text import plain

MAX_REDIRECTS = 3
CONNECT_SECONDS = 10.0
MAX_HOST_CHARS = 253
"""As the DNS has it (RFC 1035)."""
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 1 << 16
_REASON_CHARS = 60
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_HEADERS = {"User-Agent": f"sharp_cog/{__version__}", "Accept": "*/*"}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def fetch(url: str, settings: ServiceSettings) -> bytes:
    """Fetches what is behind a URL.

    Args:
        url: http or https.
        settings: Says how much, how long, and whether private addresses may be reached.

    Raises:
        FetchError: It may not or cannot be fetched, is empty, or is too large.
    """
    deadline = time.monotonic() + settings.fetch_seconds
    for _ in range(MAX_REDIRECTS + 1):
        target = _Target.of(url, FetchError)
        with _connected(target, settings, settings.fetch_seconds, deadline) as connection:
            # No compression: what is small on the wire could be huge here.
            connection.request("GET", target.path, headers={**_HEADERS, "Accept-Encoding": "identity"})
            response = connection.getresponse()
            location = response.headers.get("Location")
            if response.status in _REDIRECTS and location:
                url = urljoin(url, location)
                continue
            if response.status != 200:
                reason = plain(response.reason, _REASON_CHARS)
                raise FetchError(f"{target.host} answered {response.status} {reason}: check the URL")
            return _body(response, target.host, settings)
    raise FetchError(f"the URL redirects more than {MAX_REDIRECTS} times: give the last address")


def upload(url: str, path: Path, content_type: str, settings: ServiceSettings) -> None:
    """Sends a file by PUT, as presigned URLs of object stores take it.

    Redirects are not followed: a store's signature holds for one address.

    Raises:
        UploadError: The URL may not be used, or does not take the file.
    """
    target = _Target.of(url, UploadError)
    seconds = settings.request_seconds
    deadline = time.monotonic() + seconds
    with _connected(target, settings, seconds, deadline) as connection, path.open("rb") as file:
        headers = {**_HEADERS, "Content-Type": content_type, "Content-Length": str(path.stat().st_size)}
        connection.request("PUT", target.path, body=file, headers=headers)
        response = connection.getresponse()
        response.read(_CHUNK_BYTES)
        if not 200 <= response.status < 300:
            raise UploadError(
                f"{target.host} answered {response.status} {plain(response.reason, _REASON_CHARS)} to the PUT of "
                f"{path.stat().st_size} bytes as {content_type}: check that upload_url is signed for that"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """Where a URL leads."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str
    error: type[InputError]

    @classmethod
    def of(cls, url: str, error: type[InputError]) -> _Target:
        """Takes a URL apart.

        Raises:
            InputError: Of the type given: it is not one that is used here.
        """
        try:
            parts = urlsplit(url)
            host, port = _ascii_host(parts), parts.port
            path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
            if not path.isascii() or any(char <= " " or char == "\x7f" for char in path):
                # As browsers do: only what may stand in a request line goes there.
                path = requote_uri(path)
            if len(host) > MAX_HOST_CHARS or not host.isprintable():
                raise ValueError("no host has such a name")
        except ValueError:  # Brackets, ports and international names that are none, and halves of characters.
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
    """All addresses of the host, which is resolved here and never again.

    Raises:
        InputError: Of the target's type: there is none, or one is not public.
    """
    # The system's resolver knows no time-out; one that takes too long is left behind.
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
            if not is_public(ipaddress.ip_address(address.partition("%")[0])):
                raise target.error(f"the host {target.host[:100]!r} is at a private address: give a public URL")
    return addresses


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet: not private, loopback, link-local, metadata or multicast.

    IPv6 addresses that stand for an IPv4 address (mapped, 6to4, Teredo, NAT64) are judged by that as well.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:  # What a network of IPv6 alone has for the IPv4 internet (RFC 6052).
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(other) for other in (address.sixtofour, *(address.teredo or ())) if other is not None):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


@contextlib.contextmanager
def _connected(
    target: _Target, settings: ServiceSettings, seconds: float, deadline: float
) -> Iterator[http.client.HTTPConnection]:
    """A connection to one of the host's addresses, cut off at the deadline whatever is under way.

    Args:
        target: Where to.
        settings: Says whether private addresses may be reached.
        seconds: How long everything may take, for the message.
        deadline: When it is over, by `time.monotonic`.

    Raises:
        InputError: Of the target's type: it cannot be made, breaks, or does not end in time.
    """
    error = target.error
    late = f"{target.host} did not answer in full within {seconds:g} s: try again, or give another URL"
    is_late = threading.Event()
    connection: _Connection | None = None
    try:
        sock = _dial(_addresses(target, settings, deadline), target.port, deadline)
        # The same connection under another number, which TLS does not take over: shutting it down ends every wait.
        guard = sock.dup()

        def cut() -> None:
            is_late.set()
            with contextlib.suppress(OSError):
                guard.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
        timer.daemon = True
        timer.start()
        try:
            connection = _Connection(target, sock)
            try:
                yield connection
            finally:
                if is_late.is_set():  # What was read may look whole, or wrong in another way.
                    raise error(late)
        finally:
            timer.cancel()
            guard.close()
            sock.close()
            if connection is not None:
                connection.close()
    except (OSError, http.client.HTTPException, ValueError) as failure:
        if is_late.is_set() or time.monotonic() >= deadline:
            raise error(late) from failure
        reason = failure.strerror if isinstance(failure, OSError) and failure.strerror else type(failure).__name__
        raise error(f"{target.host} cannot be talked to ({reason}): check the URL, or try again") from failure


def _dial(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """Connects to the first address that answers."""
    failure: OSError = TimeoutError("no address answered")
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
    """HTTP over a socket that is there already."""

    def __init__(self, target: _Target, sock: socket.socket) -> None:
        self.default_port = 443 if target.scheme == "https" else 80  # What the Host header leaves out.
        super().__init__(target.host, target.port)
        self._target = target
        self._socket = sock

    def connect(self) -> None:
        """Wraps the socket in TLS for https; the certificate must be the host's."""
        self.sock = self._socket
        if self._target.scheme == "https":
            context = ssl.create_default_context(cafile=certifi.where())
            self.sock = context.wrap_socket(self._socket, server_hostname=self._target.host)


def _body(response: http.client.HTTPResponse, host: str, settings: ServiceSettings) -> bytes:
    """Reads an answer to its end.

    Raises:
        FetchError: It is too large, shorter than it said, compressed, or empty.
    """
    limit = int(settings.fetch_megabytes * 1e6)
    too_large = f"the file behind the URL is larger than {settings.fetch_megabytes:g} MB: give a smaller one"
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise FetchError(f"{host} sends {encoding[:20]!r} compression, which was not asked for: give another URL")
    expected = response.length
    if expected is not None and expected > limit:
        raise FetchError(too_large)
    content = bytearray()
    while chunk := response.read(_CHUNK_BYTES):
        content += chunk
        if len(content) > limit:
            raise FetchError(too_large)
    if expected is not None and len(content) < expected:
        raise FetchError(f"{host} sent {len(content)} of {expected} bytes: try again")
    if not content:
        raise FetchError(f"{host} sent an empty file: check the URL")
    return bytes(content)
