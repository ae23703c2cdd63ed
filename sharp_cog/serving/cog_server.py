"""`python -m sharp_cog.serving.cog_server`: Cog's HTTP server behind the guard.

Coglet becomes a child process on an address of this machine that only the guard knows. Signals and exit codes pass
through: SIGTERM and Ctrl-C end both after the running prediction, and if coglet ends, so does the guard.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import uvicorn

from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import process_environment
from sharp_cog.errors import SettingError, SharpError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.serving.access import for_listener
from sharp_cog.serving.cog_guard import CogGuard
from sharp_cog.serving.cog_worker import GUARDED, check_folder
from sharp_cog.serving.coglet import Coglet
from sharp_cog.serving.server import Server, listen
from sharp_cog.text import read_json

_LOG = logging.getLogger(__name__)

SCHEMA = Path(".cog/openapi_schema.json")
"""Schema of the inputs, in the folder in which Cog's server starts."""
STOP_SECONDS = 8.0
"""Time that coglet has to end after SIGTERM, before it is killed; it takes 5 s."""
_PR_SET_PDEATHSIG = 1
"""Option of `prctl`, from Linux's prctl.h."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal, or until coglet ends, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sharp_cog.serving.cog_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    parser.add_argument("--upload-url", help="send each output to this URL by PUT, instead of returning it")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="sharp_cog: %(message)s")
    try:
        settings = ServiceSettings.from_environment()
        file_fields = check_start()
        listener = listen(asked.host, asked.port)
        return asyncio.run(serve(listener, asked.host, asked.upload_url, settings, file_fields))
    except SharpError as error:
        print(f"sharp_cog: {error}", file=sys.stderr)
        return 2


def check_start() -> frozenset[str]:
    """Check what coglet needs and does not check itself.

    Returns:
        Names of the inputs that are files.

    Raises:
        SettingError: The schema is missing, or coglet's folder cannot be written.
    """
    try:
        schema = read_json(SCHEMA.read_bytes())
        properties = schema["components"]["schemas"]["Input"]["properties"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        # Coglet would accept any input.
        raise SettingError(f"{SCHEMA} cannot be read ({type(error).__name__}): start scripts/serve") from error
    check_folder()
    return file_fields_of(properties)


def file_fields_of(properties: Mapping[str, Mapping[str, object]]) -> frozenset[str]:
    """Return the names of the inputs that are files, given their schemas by name."""
    return frozenset(name for name, about in properties.items() if about.get("format") == "uri")


def hidden_address() -> tuple[str, int]:
    """Return an address of this machine and a free port, both by chance.

    A web page can send requests to any port of 127.0.0.1 that it guesses. On Linux the whole network 127.0.0.0/8 is
    this machine, so that it would have to guess one in 2**38.
    """
    candidates = []
    if sys.platform == "linux":
        candidates = [f"127.{secrets.randbelow(255)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"]
    for address in (*candidates, "127.0.0.1"):
        with contextlib.suppress(OSError), socket.create_server((address, 0)) as listener:
            return address, listener.getsockname()[1]
    raise SettingError("no port of this machine is free: end other servers")


class _WithoutSignals(uvicorn.Server):
    """Uvicorn without its own handlers of signals, since two servers end in an order here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class _Outer(_WithoutSignals, Server):
    """The server for clients."""


async def serve(
    listener: socket.socket,
    host: str,
    upload_url: str | None,
    settings: ServiceSettings,
    file_fields: frozenset[str],
) -> int:
    """Start coglet, serve in front of it, and return the exit code.

    Args:
        listener: Socket for clients.
        host: Name or address of that socket, as the operator gave it.
        upload_url: Address for outputs; None returns them in the answers.
        settings: Settings of the service.
        file_fields: Names of the inputs that are files.
    """
    settings = for_listener(settings, host, listener.getsockname()[0])
    if not settings.api_keys and not settings.allowed_hosts:
        _LOG.warning(
            "everybody who reaches this machine at port %d may use this service: set SHARP_API_KEY, for example to the "
            "output of `openssl rand -hex 16`, or leave --host out",
            listener.getsockname()[1],
        )
    address, port = hidden_address()
    with ScratchFolder() as folder, socket.create_server(("127.0.0.1", 0)) as internal:
        temporary = folder / "cog"
        temporary.mkdir()
        stopping = asyncio.Event()

        def connect(inside: str) -> Coglet:
            url = f"http://{address}:{port}"
            return Coglet(url, inside=inside, settings=settings, folder=folder, temporary=temporary)

        guard = CogGuard(
            connect,
            settings,
            folder=folder,
            inside=f"http://127.0.0.1:{internal.getsockname()[1]}",
            file_fields=file_fields,
            stop=stopping.set,
        )
        command = [sys.executable, "-m", "cog.server.http", "--host", address]
        command += ["--upload-url", upload_url or f"{guard.inside}/outputs/"]
        environment = process_environment() | {"PORT": str(port), "TMPDIR": str(temporary), GUARDED: "1"}
        child = await asyncio.create_subprocess_exec(*command, env=environment, preexec_fn=_before_coglet)
        # Two servers, since coglet still needs its own when the one for clients takes no more connections.
        outer = _Outer(guard.app, settings)
        inner = _WithoutSignals(uvicorn.Config(guard.inside_app, log_level="warning"))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        inside = asyncio.create_task(inner.serve(sockets=[internal]))
        serving = asyncio.create_task(outer.serve(sockets=[listener]))
        ended = asyncio.create_task(child.wait())
        asked_to_stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, inside, ended, asked_to_stop}, return_when=asyncio.FIRST_COMPLETED)
        code = child.returncode
        if code is not None:
            _LOG.error("Cog's server has ended with code %d", code)
        guard.stop()
        outer.should_exit = True

        async def end() -> None:
            # It takes 5 s, while clients may still read their answers.
            await guard.idle()
            await _end(child)

        await asyncio.gather(serving, end())
        inner.should_exit = True
        await inside
        asked_to_stop.cancel()
    # A process that a signal has ended has a negative code.
    return 0 if code is None else 128 - code if code < 0 else code


def _before_coglet() -> None:
    """Prepare the process that becomes coglet: Ctrl-C is the guard's matter, and without the guard it ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        await asyncio.wait_for(child.wait(), STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


if __name__ == "__main__":
    sys.exit(main())
