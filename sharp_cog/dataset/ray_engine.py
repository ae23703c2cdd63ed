"""The engine on a Ray cluster: read, predict in a pool of actors, write, by Ray Data.

Pictures go from this process to the actors and splats come back through Ray's object store, so the machines of the
cluster need no folder in common with this one; each needs sharp_cog with the same version, and finds or downloads the
checkpoint by itself. Files are written on this machine alone: see `sharp_cog.dataset.ray_write`. The run itself must be
at one of the cluster's machines, of which it is the only one that must not be lost.

One dataset lasts as long as the run, so that every actor loads the model once. Its source reads from a `Feed`. An actor
that dies is started again by Ray, with what it was at; where a whole machine is lost, what is under way is fed once
more, and whichever result comes first counts.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow
import ray
import ray.data
from ray._common.usage.usage_lib import set_usage_stats_enabled_via_env_var

from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.make import make
from sharp_cog.dataset.ray_feed import ClusterError, Feed, Feeder, FeedSource, one_row
from sharp_cog.dataset.ray_write import Made, Written, drop, put_in_place, write
from sharp_cog.errors import DeviceError, PredictionError, SettingError, SharpError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.text import first_line, redact, trace

_LOG = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""How often a picture is begun whose actors die: the third time it may well be the picture that kills them."""
OBJECT_STORE_BYTES = 2 << 30
"""Of a cluster that is started here; what is beyond goes to the disk."""
MAX_CPUS_OF_GPU_ACTOR = 8

_PROBE_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """What actors the model runs in.

    Attributes:
        num_actors: How many.
        num_cpus: Processors that Ray reserves for each.
        num_gpus: GPUs of each, 0 or 1.
    """

    num_actors: int
    num_cpus: int
    num_gpus: int


class RayEngine:
    """Makes splats in actors of a Ray cluster."""

    def __init__(
        self,
        load: Callable[[], SharpPipeline],
        gaussians: Path,
        formats: tuple[str, ...],
        *,
        address: str = "",
        device: str = "auto",
        num_actors: int = 0,
    ) -> None:
        """Makes it; Ray is started with the first call of `run`.

        Args:
            load: Loads the model, in every actor; must be picklable.
            gaussians: Folder of the splats.
            formats: Their formats.
            address: Of a cluster; empty starts one on this machine, for as long as the run lasts.
            device: As `SHARP_DEVICE`; `auto` is the GPUs of the cluster where it has any.
            num_actors: How many actors; 0 is one for each GPU, or one for each machine where there are none.
        """
        self._load, self._gaussians, self._formats = load, gaussians, formats
        self._address, self._device, self._num_actors = address, device, num_actors

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
        """As `sharp_cog.dataset.run.Engine.run`. For each actor, two jobs are taken ahead.

        Raises:
            ClusterError: Ray failed.
            SettingError: The cluster does not have what the settings ask for.
        """
        with _connected(self._address):
            pool = pool_of(
                ray.nodes(),  # type: ignore[no-untyped-call]
                device=self._device,
                num_actors=self._num_actors,
            )
            _LOG.info("Ray: %d actors, of %d CPUs and %d GPUs", pool.num_actors, pool.num_cpus, pool.num_gpus)
            here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
            feed = ray.remote(Feed).options(num_cpus=0, max_concurrency=1000, label_selector=here).remote()
            feeder = Feeder(jobs, feed, max_under_way=3 * pool.num_actors)
            try:
                yield from self._results(feed, feeder, pool, here)
            except ray.exceptions.RayError as error:
                raise ClusterError(f"Ray failed: {type(error).__name__}: {_reason(error)}") from error
            finally:
                feeder.stop()

    def _results(
        self, feed: Any, feeder: Feeder, pool: Pool, here: dict[str, str]
    ) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
        with _quiet_context():
            read = ray.data.read_datasource(FeedSource(feed), override_num_blocks=1, num_cpus=0, label_selector=here)
            made = read.map_batches(
                _Maker,
                fn_constructor_args=(feed, self._load, self._formats),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=pool.num_actors, max_tasks_in_flight_per_actor=2),
                num_cpus=pool.num_cpus,
                num_gpus=pool.num_gpus,
            )
            written = made.map_batches(
                write,
                fn_kwargs={"folder": str(self._gaussians.absolute())},
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=0,
                label_selector=here,
            )
            # Nothing is fetched ahead: the last result would be held back until there is another one.
            for table in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for number, content in zip(table["number"].to_pylist(), table["content"], strict=True):
                    outcome: Written = pickle.loads(content.as_buffer())  # noqa: S301 - from our own task
                    job = feeder.take_back(number)
                    if job is None:
                        drop(outcome, self._gaussians)
                        continue
                    yield job, put_in_place(outcome, self._gaussians)
                    feeder.is_done()
                # Ray's own end may never come: it waits for what was lost with a machine and has been done again.
                if feeder.is_over:
                    break
        feeder.check()


def pool_of(nodes: Iterable[Mapping[str, Any]], *, device: str, num_actors: int) -> Pool:
    """The actors that a cluster has room for.

    Args:
        nodes: As `ray.nodes` tells.
        device: As `RayEngine`.
        num_actors: As `RayEngine`.

    Raises:
        SettingError: There is no such device.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = [(int(each.get("GPU", 0)), each.get("CPU", 0.0)) for each in resources if each.get("GPU", 0) >= 1]
    cpus = [each["CPU"] for each in resources if each.get("CPU", 0) >= 1]
    if device.startswith("cuda") and not gpus:
        raise SettingError(f"SHARP_DEVICE is {device!r}, but no machine of the Ray cluster has a GPU: use auto or cpu")
    if gpus and not device.startswith(("cpu", "mps")):
        num_cpus = int(min(MAX_CPUS_OF_GPU_ACTOR, *(num_cpus // num_gpus for num_gpus, num_cpus in gpus)))
        return Pool(num_actors=num_actors or sum(number for number, _ in gpus), num_cpus=max(1, num_cpus), num_gpus=1)
    if not cpus:
        raise SettingError("no machine of the Ray cluster has a CPU: check RAY_ADDRESS")
    wanted = num_actors or len(cpus)
    return Pool(num_actors=wanted, num_cpus=max(1, int(min(*cpus, sum(cpus) // wanted))), num_gpus=0)


class _Maker:
    """An actor of the pool, with the model. What goes wrong with a picture is its result, never a failure of Ray's."""

    def __init__(self, feed: Any, load: Callable[[], SharpPipeline], formats: tuple[str, ...]) -> None:
        self._feed, self._formats = feed, formats
        self._pipeline: SharpPipeline | Exception
        try:
            self._pipeline = load()
        except Exception as error:  # noqa: BLE001 - told as the result of the first picture
            self._pipeline = _portable(error)

    def __call__(self, table: pyarrow.Table) -> Iterator[pyarrow.Table]:
        for number, content in zip(table["number"].to_pylist(), table["content"], strict=True):
            buffer = content.as_buffer()
            outcome = self._made(number, pickle.loads(buffer)) if buffer.size else None  # noqa: S301 - from the feed
            yield one_row(number, pickle.dumps(outcome, protocol=5))

    def _made(self, number: int, packed: tuple[Job, bytes, bytes] | Exception) -> Made:
        if isinstance(packed, Exception):
            return packed
        if isinstance(self._pipeline, Exception):
            return self._pipeline
        job, image, depth = packed
        attempt = ray.get(self._feed.begin.remote(number))
        if attempt > MAX_ATTEMPTS:
            return PredictionError(
                f"the process that predicted it died {MAX_ATTEMPTS} times: the picture may be too large for the memory"
            )
        try:
            with ScratchFolder() as folder:
                return self._made_in(folder, job, image, depth)
        except DeviceError as error:
            if attempt < MAX_ATTEMPTS:
                # Only a new process mends the device. Ray starts one, here or elsewhere, and does the picture again.
                _LOG.warning("%s: %s", job.photo.id, error)
                os._exit(1)
            return _portable(error)
        except Exception as error:  # noqa: BLE001 - one photograph that fails does not end the run
            return _portable(error)

    def _made_in(self, folder: Path, job: Job, image: bytes, depth: bytes) -> Made:
        assert isinstance(self._pipeline, SharpPipeline)
        image_path, splats = folder / job.image.name, folder / "splats"
        image_path.write_bytes(image)
        splats.mkdir()
        photo = replace(job.photo, depth="")
        if depth:
            depth_path = folder / f"depth-{Path(job.photo.depth).name}"
            depth_path.write_bytes(depth)
            photo = replace(photo, depth=str(depth_path))
        result = make(self._pipeline, photo, image_path, splats, self._formats)
        return result, {path.name: path.read_bytes() for path in splats.iterdir()}


def _portable(error: Exception) -> Exception:
    """An error as it can travel, with the place where it was raised as a note."""
    if not isinstance(error, SharpError):
        error.add_note(trace(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - of what kind it was, its text tells
        return RuntimeError(redact(f"{type(error).__name__}: {error}"))
    error.__traceback__ = None
    return error


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Ray, connected or started; ended with the block unless it was there before.

    Raises:
        ClusterError: It cannot be reached or started.
        SettingError: The address is of another kind.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address}
    if address.startswith("ray://"):
        # The tasks that read and write here would be on another machine than the pictures.
        raise SettingError(
            f"RAY_ADDRESS is {address!r}: run the command on a machine of the cluster, with host:port or auto"
        )
    if address not in ("", "auto", "local"):
        _probe(address)
    if not address:
        set_usage_stats_enabled_via_env_var(False)
        # The address "local" starts a cluster of our own even where another one runs on this machine.
        options = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    # Ray takes SIGTERM for itself, which belongs to the run.
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
    """Ray itself waits for minutes where nobody answers.

    Raises:
        ClusterError: Nobody does.
    """
    try:
        parts = urlsplit(f"//{address}")
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=_PROBE_S).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"the Ray cluster at {address} cannot be reached: {_reason(error)}: check RAY_ADDRESS, host:port"
        ) from error


@contextmanager
def _quiet_context() -> Iterator[None]:
    """Ray Data for a stream that may stand still for hours, and without its own progress bars."""
    context = ray.data.DataContext.get_current()
    wanted = {
        # Any row is larger, so that each goes on as soon as it is there, and never waits for others to fill a block.
        "target_max_block_size": 1,
        "target_min_block_size": 0,
        # The feed bounds what is under way. Ray Data would count what a lost machine held, and then begin nothing more.
        "override_object_store_memory_limit_fraction": 100.0,
        "execution_no_progress_timeout_s": -1,
        "issue_detectors_config": replace(context.issue_detectors_config, detectors=[]),
        "enable_progress_bars": False,
        "print_on_execution_start": False,
    }
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    return first_line(error) or "no reason given"
