"""The engine on a Ray cluster: an actor with the model for each GPU, or for each machine without any.

Images travel to the actors, and splats travel back, through Ray's object store. So the machines need no common folder.
Each needs the same version of sharp_cog, and finds or downloads the checkpoint itself. Only this machine, which must be
one of the cluster's, writes files, and only this machine must not fail: an actor that dies, alone or with its machine,
is replaced, and its job is repeated.
"""

from __future__ import annotations

import logging
import pickle
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._common.usage.usage_lib import set_usage_stats_enabled_via_env_var

from sharp_cog.dataset.engine import Job, Outcome, read_request, write_splats
from sharp_cog.errors import DeviceError, PredictionError, SettingError, SharpError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.pipeline.conveyor import Conveyor, Stage
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.request import Request
from sharp_cog.text import first_line, redact, trace

_LOG = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Maximum actors that one job may cost: after so many, its image is probably the reason that they die."""
OBJECT_STORE_BYTES = 2 << 30
"""Memory of the object store of a cluster that is started here; the rest goes to the disk."""
MAX_CPUS_OF_GPU_ACTOR = 8
"""Maximum processors that Ray reserves for an actor with a GPU."""

_TIMEOUT_S = 10.0
"""Longest wait for a cluster to answer."""

_Made = tuple[dict[str, Any], dict[str, bytes]] | Exception
"""The result of an actor: the facts of `write_splats` and the files by name, or the error."""

_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)
"""Errors of a call whose actor or machine died."""


class ClusterError(SharpError):
    """The Ray cluster cannot be reached, or failed and does not recover."""

    code = "cluster_failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The actors that the model runs in.

    Attributes:
        num_actors: Number of actors.
        num_cpus: Number of processors that Ray reserves for each.
        num_gpus: Number of GPUs of each, 0 or 1.
    """

    num_actors: int
    num_cpus: int
    num_gpus: int


class RayEngine:
    """Makes splats in the actors of a Ray cluster; see `sharp_cog.dataset.engine.Engine`."""

    def __init__(
        self,
        load: Callable[[], SharpPipeline],
        folder: Path,
        formats: tuple[str, ...],
        *,
        address: str = "",
        device: str = "auto",
        num_actors: int = 0,
    ) -> None:
        """Create the engine; `run` connects to Ray.

        Args:
            load: Loads the model in each actor; must be picklable.
            folder: Folder of the splats.
            formats: Formats of the splats.
            address: Address of a cluster; an empty one starts a cluster on this machine until the run ends.
            device: Value of `SHARP_DEVICE`; `auto` uses the GPUs of the cluster if it has any.
            num_actors: Number of actors; 0 means one for each GPU, or one for each machine if there is no GPU.
        """
        self._load, self._folder, self._formats = load, folder, formats
        self._address, self._device, self._num_actors = address, device, num_actors

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Make splats of jobs as they arrive; see `Engine.run`.

        Raises:
            ClusterError: Ray failed.
            SettingError: The cluster lacks the device that the settings ask for.
        """
        with _connection(self._address):
            nodes = ray.nodes()  # type: ignore[no-untyped-call]
            pool = plan_pool(nodes, device=self._device, num_actors=self._num_actors)
            _LOG.info("Ray: %d actors, of %d CPUs and %d GPUs", pool.num_actors, pool.num_cpus, pool.num_gpus)
            # One job is at each actor while another one is read or written.
            num_jobs = 2 * pool.num_actors
            actors = _Actors(pool, self._load, self._formats)
            stage = Stage(lambda job: self._process(job, actors), num_jobs, "ray")
            with Conveyor[tuple[Job, Outcome]](stage) as conveyor:
                try:
                    yield from conveyor.run(jobs, max_items=num_jobs, ordered=False)
                except ray.exceptions.RayError as error:
                    raise ClusterError(f"Ray failed: {type(error).__name__}: {_reason(error)}") from error
                finally:
                    actors.stop()  # The threads of the conveyor wait for them.

    def _process(self, job: Job, actors: _Actors) -> tuple[Job, Outcome]:
        """Read a job's files, have an actor make the splats, and write them."""
        try:
            # The request holds the content of the files, since the actor's machine does not see this one's folders.
            made = actors.make(read_request(job, self._formats))
            if isinstance(made, Exception):
                return job, made
            facts, files = made
            # Only this process writes, so a job that was done twice, as an answer was lost, leaves one set of files.
            for name, content in files.items():
                with open_atomically(self._folder / name) as file:
                    file.write(content)
        # The one error that is not about this photograph: it ends the run.
        except ClusterError:
            raise
        except SharpError as error:
            return job, error
        return job, facts


class _Actors:
    """The actors of a run, each of which starts, is idle, or has one job."""

    def __init__(self, pool: Pool, load: Callable[[], SharpPipeline], formats: tuple[str, ...]) -> None:
        self._actor_class = ray.remote(_Maker).options(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)
        self._arguments = (load, formats)
        # Idle actors, or the error that a starting one has ended with; None once the run is over.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._alive: set[Any] = set()
        self._starters: list[threading.Thread] = []
        # Held while an actor is created, so that none is created after `stop` has killed those that it knows.
        self._mutex = threading.Lock()
        self._is_stopped = False
        for _ in range(pool.num_actors):
            self._start()

    def make(self, request: Request) -> _Made:
        """Have the next idle actor make splats; if it dies, replace it and try another one.

        Raises:
            CancelledError: The run has ended.
            RayError: Ray failed.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            actor = self._take()
            try:
                made: _Made = ray.get(actor.make.remote(request))
            except _DEATHS as error:
                _LOG.warning("%s: the process that predicted it died: %s", request.key, _reason(error))
                made = PredictionError(
                    f"the process that predicted it died {attempt} times: the image may be too large for the memory"
                )
            else:
                # A device that failed works again only in a new process.
                if not isinstance(made, DeviceError):
                    self._idle.put(actor)
                    return made
                _LOG.warning("%s: %s", request.key, made)
            self._replace(actor)
        return made

    def _take(self) -> Any:
        """Wait for an idle actor."""
        actor = self._idle.get()
        if self._is_stopped:
            self._idle.put(None)  # For the next thread that waits.
            raise CancelledError
        if isinstance(actor, Exception):
            raise actor
        return actor

    def _replace(self, actor: Any) -> None:
        with self._mutex:
            self._alive.discard(actor)
            if self._is_stopped:
                return
        # It is alive if only its device has failed, and its successor needs the GPU.
        ray.kill(actor)
        self._start()

    def _start(self) -> None:
        """Start an actor, which becomes idle once its model is loaded.

        A thread waits for it, and no job does: a cluster that has lost a machine may never have room for it.
        """
        thread = threading.Thread(target=self._run_start, daemon=True, name="ray-start")
        with self._mutex:
            self._starters = [*(starter for starter in self._starters if starter.is_alive()), thread]
            thread.start()

    def _run_start(self) -> None:
        for _ in range(MAX_ATTEMPTS):
            with self._mutex:
                if self._is_stopped:
                    return
                # `remote` returns at once, even if no machine has room yet. The actor is known before it is waited for,
                # so that `stop` can kill it and end the wait.
                actor: Any = self._actor_class.remote(*self._arguments)
                self._alive.add(actor)
            try:
                ray.get(actor.wait_until_loaded.remote())
            except _DEATHS as error:
                _LOG.warning("an actor died while it loaded the model: %s", _reason(error))
                with self._mutex:
                    self._alive.discard(actor)
            except ray.exceptions.RayError as error:
                # Not a death but a failure of the cluster itself: another attempt would meet it too.
                self._idle.put(error)
                return
            else:
                self._idle.put(actor)
                return
        self._idle.put(
            ClusterError(
                f"an actor died {MAX_ATTEMPTS} times while it loaded the model: check the memory of the machines"
            )
        )

    def stop(self) -> None:
        """Kill all actors, and end the threads that wait for them."""
        with self._mutex:
            self._is_stopped = True
            # Killed actors fail the calls that wait for them, and so the threads of the conveyor end.
            for actor in self._alive:
                with suppress(ray.exceptions.RayError):  # A cluster that is lost has no actors.
                    ray.kill(actor)
        self._idle.put(None)
        # A call after the shutdown of Ray would start it again.
        for thread in self._starters:
            thread.join(_TIMEOUT_S)


class _Maker:
    """An actor with the model. Every error of an image is returned, so that Ray itself sees no failure."""

    def __init__(self, load: Callable[[], SharpPipeline], formats: tuple[str, ...]) -> None:
        self._formats = formats
        self._pipeline: SharpPipeline | Exception
        try:
            # An error of the constructor would reach the run as a death of the actor.
            self._pipeline = load()
        except Exception as error:  # noqa: BLE001 - returned as the result of every job
            self._pipeline = _portable(error)

    # The constructor has loaded the model, and Ray starts no call before it has returned.
    def wait_until_loaded(self) -> None:
        """Return once the model is loaded, or has failed to load."""

    def make(self, request: Request) -> _Made:
        """Predict a splat and return its files."""
        if isinstance(self._pipeline, Exception):
            return self._pipeline
        try:
            with ScratchFolder() as folder:
                # Formats write to paths, so the files go through a folder here, and then as bytes to the run's machine.
                prediction = self._pipeline.predict(request)
                facts = write_splats(prediction, folder, self._formats, model=self._pipeline.settings.model)
                return facts, {name: (folder / name).read_bytes() for name in facts["splats"].values()}
        except Exception as error:  # noqa: BLE001 - one photograph that fails does not end the run
            return _portable(error)


def plan_pool(nodes: Iterable[Mapping[str, Any]], *, device: str, num_actors: int) -> Pool:
    """Return the actors that a cluster has room for.

    Args:
        nodes: The machines, as `ray.nodes` returns them.
        device: Device, as for `RayEngine`.
        num_actors: Number of actors, as for `RayEngine`.

    Raises:
        SettingError: The cluster has no such device.
    """
    # Ray remembers dead machines. An actor must fit on one machine, so the processors are counted for each.
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [(int(each.get("GPU", 0)), each.get("CPU", 0.0)) for each in resources if each.get("GPU", 0) >= 1]
    cpus = [each["CPU"] for each in resources if each.get("CPU", 0) >= 1]
    if device.startswith("cuda") and not gpus:
        raise SettingError(f"SHARP_DEVICE is {device!r}, but no machine of the Ray cluster has a GPU: use auto or cpu")
    if gpus and not device.startswith(("cpu", "mps")):
        # All actors are alike, so the machine with the fewest processors for each GPU decides.
        num_cpus = int(min(MAX_CPUS_OF_GPU_ACTOR, *(num_cpus // num_gpus for num_gpus, num_cpus in gpus)))
        return Pool(num_actors=num_actors or sum(number for number, _ in gpus), num_cpus=max(1, num_cpus), num_gpus=1)
    if not cpus:
        raise SettingError("no machine of the Ray cluster has a CPU: check RAY_ADDRESS")
    # Without GPUs there is one actor for each machine, with as many cores as the smallest one has.
    wanted = num_actors or len(cpus)
    return Pool(num_actors=wanted, num_cpus=max(1, int(min(*cpus, sum(cpus) // wanted))), num_gpus=0)


def _portable(error: Exception) -> Exception:
    """Return an error in a form that can be pickled, with its traceback as a note if it was unexpected."""
    if not isinstance(error, SharpError):
        error.add_note(trace(error))
    try:
        # Both ways: many exceptions can be pickled but not unpickled, since their class does not accept `args`.
        pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled here
    except Exception:  # noqa: BLE001 - the text still names its type
        return RuntimeError(redact(f"{type(error).__name__}: {error}"))
    # A traceback keeps its frames alive, and with them images and tensors in the actor's memory.
    error.__traceback__ = None
    return error


@contextmanager
def _connection(address: str) -> Iterator[None]:
    """Connect to Ray, or start it, for the duration of the block; leave an existing connection as it is.

    Raises:
        ClusterError: Ray cannot be reached or started.
        SettingError: The address is that of a Ray client.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address}
    if address.startswith("ray://"):
        # A Ray client is no machine of the cluster and has no object store.
        raise SettingError(
            f"RAY_ADDRESS is {address!r}: run the command on a machine of the cluster, with host:port or auto"
        )
    if address not in ("", "auto", "local"):
        _probe(address)
    if not address:
        set_usage_stats_enabled_via_env_var(False)
        # The address "local" starts a new cluster even if another one runs on this machine.
        options = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    # Ray installs its own handler of SIGTERM, which the run needs for itself.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.WARNING)
    except (ray.exceptions.RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address} cannot be reached" if address else "Ray cannot be started"
        raise ClusterError(f"{where}: {_reason(error)}: check RAY_ADDRESS, or use --engine local") from error
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Check that something listens at an address; Ray itself would wait for minutes.

    Raises:
        ClusterError: Nothing does.
    """
    try:
        parts = urlsplit(f"//{address}")
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"the Ray cluster at {address} cannot be reached: {_reason(error)}: check RAY_ADDRESS, host:port"
        ) from error


def _reason(error: BaseException) -> str:
    return first_line(error) or "no reason given"
