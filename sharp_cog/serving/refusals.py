"""Refusals that are the same at every frontend: the description of an error, and its HTTP status and headers.

This module imports neither torch nor a web framework, so that the guard of Cog's server starts at once.
"""

from __future__ import annotations

import logging

from sharp_cog.errors import (
    BusyError,
    DeadlineError,
    ForbiddenError,
    InputError,
    NoSpaceError,
    NotInstalledError,
    RateLimitError,
    RequestTooLargeError,
    SharpError,
    SlowClientError,
    UnauthorizedError,
)
from sharp_cog.text import redact, trace

_LOG = logging.getLogger(__name__)


def error_body(error: BaseException) -> dict[str, str]:
    """Return the description of an error for the caller: `error`, a message for people, and `code`, for programs."""
    if isinstance(error, (InputError, BusyError, DeadlineError)):
        # The message may repeat input with lone surrogates, which UTF-8 cannot encode.
        return {"error": str(error).encode("utf-8", "backslashreplace").decode("utf-8"), "code": error.code}
    # Its message holds a command for the operator, and the caller can do no more than choose another format.
    if isinstance(error, NotInstalledError):
        _LOG.warning("%s", error)
        return {
            "error": "this service lacks what that format or option needs: choose another",
            "code": error.code,
        }
    # Any other message may hold paths and settings of the service, so it goes to the log alone.
    code = error.code if isinstance(error, SharpError) else SharpError.code
    _LOG.error("%s: %s\n%s", code, redact(str(error)), trace(error))
    return {"error": "the service failed; its log says why", "code": code}


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error."""
    # The first match counts, so a subclass comes before its base.
    table = {
        RequestTooLargeError: 413,
        SlowClientError: 408,
        UnauthorizedError: 401,
        ForbiddenError: 403,
        InputError: 422,
        NotInstalledError: 422,
        RateLimitError: 429,
        NoSpaceError: 507,
        BusyError: 503,
        DeadlineError: 504,
    }
    return next((status for type_, status in table.items() if isinstance(error, type_)), 500)


def headers_of(error: BaseException) -> dict[str, str]:
    """Return the headers of the HTTP answer to an error."""
    headers = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, SlowClientError):
        headers["Connection"] = "close"  # The rest of the body is not waited for.
    return headers
