"""Refusals that all frontends share: what a caller sees of an error, and its HTTP status and headers."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from sharp_cog.errors import (
    BusyError,
    DeadlineError,
    ImageError,
    NotInstalledError,
    OutputError,
    RequestTooLargeError,
    SharpError,
    SlowClientError,
    UnauthorizedError,
)
from sharp_cog.serving import refusals


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ImageError("bad image"), 422, "invalid_image"),
        (RequestTooLargeError("too large"), 413, "request_too_large"),
        (BusyError("busy"), 503, "busy"),
        (DeadlineError("late"), 504, "deadline_exceeded"),
        (NotInstalledError("no viewer in /secret/path"), 422, "not_installed"),
        (OutputError("cannot write /secret/path"), 500, "cannot_write"),
        (SharpError("/secret/path"), 500, "internal_error"),
        (ZeroDivisionError("/secret/path"), 500, "internal_error"),
    ],
)
def test_the_caller_gets_the_message_of_its_own_errors_alone(
    error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        body = refusals.error_body(error)
    assert (refusals.status_of(error), body["code"]) == (status, code)
    if "secret" in str(error):
        assert "secret" not in body["error"]
        assert "/secret/path" in caplog.text, "but the log has it"
    else:
        assert body["error"] == str(error)


def test_a_message_with_a_lone_surrogate_can_be_sent() -> None:
    assert refusals.error_body(ImageError("bad \ud800"))["error"] == "bad \\ud800"


def test_headers_say_when_to_come_back_and_what_is_missing() -> None:
    assert refusals.headers_of(BusyError("busy", retry_after_s=7)) == {"Retry-After": "7"}
    assert refusals.headers_of(UnauthorizedError("no key")) == {"WWW-Authenticate": "Bearer"}
    assert refusals.headers_of(SlowClientError("slow", reason="slow_upload")) == {"Connection": "close"}
    assert refusals.headers_of(ImageError("bad")) == {}


def test_the_guard_of_cogs_server_starts_without_torch() -> None:
    program = (
        "import sys, sharp_cog.serving.cog_server as s; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
