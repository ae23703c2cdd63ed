"""Access to a service: host names, origins of web pages, keys, and rates.

All checks need the head of a request alone, so they come before its body is read. They do not depend on a framework;
`sharp_cog.serving.transport.Guard` applies them to an ASGI application.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import ForbiddenError, NotInstalledError, RateLimitError, UnauthorizedError
from sharp_cog.text import quoted

KEY_HEADERS = ("Authorization", "X-API-Key")
"""Headers in which a request may carry its key; the first one as `Bearer KEY`."""
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Names under which a browser on this machine reaches this machine."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]*)(?::[0-9]*)?", re.IGNORECASE)
_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
_CALLING = ("POST", "PUT")
"""Methods of requests that cost a prediction, and that the rate limit counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Rules of access to a service.

    Attributes:
        key_digests: SHA-256 digests of the keys; none means that no key is needed.
        hosts: Host names under which clients may address the service; none means any.
        origins: Origins of other sites whose pages may use the service.
        open_paths: Paths that need no key.
    """

    key_digests: tuple[bytes, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    open_paths: frozenset[str] = frozenset()

    @classmethod
    def from_settings(cls, settings: ServiceSettings, *, open_paths: Collection[str] = ()) -> Access:
        """Return the rules that the settings give.

        Args:
            settings: Settings of the service; see `for_listener` for their default host names.
            open_paths: Paths that need no key, such as that of the health check.
        """
        return cls(
            key_digests=tuple(_digest(key) for key in settings.api_keys),
            hosts=tuple(host.lower() for host in settings.allowed_hosts),
            origins=settings.allowed_origins,
            open_paths=frozenset(open_paths),
        )

    def check_host(self, host: str) -> None:
        """Check the Host header.

        A page can point its own name at this machine (DNS rebinding), and its requests then count as those of the same
        site. They still carry that name.

        Raises:
            ForbiddenError: The service does not answer to this name.
        """
        if not self.hosts or "*" in self.hosts:
            return
        name = host_name(host)
        for allowed in self.hosts:
            if name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:])):
                return
        raise ForbiddenError(
            f"the request names the host {quoted(name)}, and this service answers only to {', '.join(self.hosts)}: "
            "use one of these, or let its operator add the name to SHARP_ALLOWED_HOSTS"
        )

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Check that a request of a web page comes from the service's own page, or from an allowed origin.

        Browsers let every page send forms to every address, and only keep the answer from it.

        Args:
            headers: Headers of the request, with names in lower case.

        Raises:
            ForbiddenError: The page belongs to another site.
        """
        origin = headers.get("origin")
        if origin is None or "*" in self.origins or origin in self.origins:
            return
        # A proxy may have replaced the Host header. Then the browser's own verdict counts, which no page can forge.
        if headers.get("sec-fetch-site") == "same-origin" or _authority(origin) == headers.get("host", "").lower():
            return
        raise ForbiddenError(
            f"a page of {quoted(origin)} must not use this service: let its operator add the origin to "
            "SHARP_ALLOWED_ORIGINS"
        )

    def key_of(self, headers: Mapping[str, str]) -> str | None:
        """Return a short digest of the valid key that a request carries, which names its caller; None without one.

        Args:
            headers: Headers of the request, with names in lower case.
        """
        bearer = _BEARER.fullmatch(headers.get("authorization", ""))
        given = [key for key in (bearer and bearer[1], headers.get("x-api-key", "").strip()) if key]
        found = None
        # Digests of equal length, all of them compared: neither the time nor the order reveals anything about a key.
        for digest in map(_digest, given):
            for valid in self.key_digests:
                if hmac.compare_digest(digest, valid):
                    found = valid.hex()[:16]
        return found

    def check_key(self, path: str, key: str | None) -> None:
        """Check that a request has a key if its path needs one.

        Args:
            path: Path of the request.
            key: Result of `key_of`.

        Raises:
            UnauthorizedError: The request has no valid key.
        """
        if self.key_digests and key is None and path not in self.open_paths:
            raise UnauthorizedError(
                "the request has no valid key: send it in the header X-API-Key, or as Authorization: Bearer KEY"
            )


class RateLimit:
    """Limit of the requests of each caller, within this process.

    Raises:
        NotInstalledError: A rate is given, and the package `limits` is not installed.
    """

    def __init__(self, rate: str) -> None:
        """Create the limit.

        Args:
            rate: Number of requests and unit of time, such as `30/minute`; empty means no limit.
        """
        self._rate = None
        if not rate:
            return
        try:
            import limits
        except ModuleNotFoundError as error:
            raise NotInstalledError(
                f"SHARP_RATE_LIMIT needs {error.name}: .venv/bin/pip install -e '.[http]', or unset it"
            ) from error
        self._rate = limits.parse(rate)
        # Two counters for each caller: the memory does not grow with the rate.
        self._window = limits.strategies.SlidingWindowCounterRateLimiter(limits.storage.MemoryStorage())

    def check(self, caller: str) -> None:
        """Count a request.

        Args:
            caller: Name of the caller, such as the digest of its key or `network_of` its address.

        Raises:
            RateLimitError: The caller has used up its rate.
        """
        if self._rate is None or self._window.hit(self._rate, caller):
            return
        wait_s = max(1, math.ceil(self._window.get_window_stats(self._rate, caller).reset_time - time.time()))
        raise RateLimitError(
            f"more than {self._rate.amount} requests in one {self._rate.GRANULARITY.name}: try again in {wait_s} s",
            retry_after_s=wait_s,
        )


class Gate:
    """All checks of a request's head, in their order."""

    def __init__(self, access: Access, rate_limit: RateLimit) -> None:
        self._access = access
        self._rate_limit = rate_limit

    def check(self, *, method: str, path: str, headers: Mapping[str, str], address: str) -> None:
        """Check a request before its body is read.

        Args:
            method: Method, such as `POST`.
            path: Path below the service's root, decoded.
            headers: Headers, with names in lower case.
            address: Address of the client.

        Raises:
            ForbiddenError: The host name or the page's origin is not allowed.
            RateLimitError: The caller has used up its rate.
            UnauthorizedError: The request has no valid key, and its path needs one.
        """
        access = self._access
        access.check_host(headers.get("host", ""))
        access.check_origin(headers)
        key = access.key_of(headers)
        # Wrong keys count too, whatever the request, so that nobody can try many of them.
        is_guess = bool(access.key_digests) and key is None and any(name.lower() in headers for name in KEY_HEADERS)
        if method in _CALLING or is_guess:
            self._rate_limit.check(key or network_of(address))
        access.check_key(path, key)


def for_listener(settings: ServiceSettings, name: str, address: str) -> ServiceSettings:
    """Return settings whose host names are those of this machine, if the service listens on this machine alone.

    Args:
        settings: Settings of the service; host names that they have stay as they are.
        name: Name or address that the operator gave.
        address: Address that the socket is bound to.
    """
    if settings.allowed_hosts or not ipaddress.ip_address(address).is_loopback:
        return settings
    return replace(settings, allowed_hosts=tuple(dict.fromkeys((*LOOPBACK_HOSTS, name.lower(), address))))


def host_name(host: str) -> str:
    """Return the name in a Host header: in lower case, without port, brackets and a dot at the end."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").rstrip(".").lower() if found else host


def network_of(address: str) -> str:
    """Return the network that counts as one caller: an IPv4 address, or the /64 network of an IPv6 address.

    A customer of IPv6 has at least 2**64 addresses. A text that is no address, such as that of a Unix socket, stays.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def _authority(origin: str) -> str:
    """Return host and port of an origin; empty for `null` and anything that is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
