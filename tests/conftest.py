"""Settings of all tests."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.website import Site

# Benchmarks measure time; a slow machine is no failure of a test.
settings.register_profile("sharp_cog", deadline=None)
settings.load_profile("sharp_cog")

# A shell that starts the tests in the background lets them ignore Ctrl-C, and the tests of Ctrl-C would wait for it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def site() -> Iterator[Site]:
    """A web server on loopback whose answers the test chooses."""
    found = Site()
    yield found
    found.server.shutdown()
    found.server.server_close()
