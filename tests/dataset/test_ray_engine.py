"""The engine on Ray, with real clusters on this machine whose actors and nodes are killed."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from PIL import Image
from plyfile import PlyData
from ray.cluster_utils import Cluster

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.settings import Settings
from sharp_cog.dataset.build import build
from sharp_cog.dataset.engine import Job, Outcome
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.ray_engine import MAX_ATTEMPTS, ClusterError, Pool, RayEngine, plan_pool
from sharp_cog.errors import (
    CheckpointMissingError,
    DeviceError,
    ImageError,
    OutputError,
    PredictionError,
    SettingError,
)
from tests.dataset import ray_models
from tests.dataset.client import wait_until

LIFT_GAUSSIANS = 2 * 768 * 768


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for several tests, which the engine finds and leaves running."""
    # Ray believes the number of GPUs that it is told.
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
    )
    yield
    ray.shutdown()


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def engine_of(
    tmp_path: Path, load: Callable[[], Any], *, num_actors: int = 2, formats: tuple[str, ...] = ("ply",), **more: str
) -> RayEngine:
    folder = tmp_path / "splats"
    folder.mkdir(exist_ok=True)
    return RayEngine(load, folder, formats, num_actors=num_actors, **{"device": "cpu", **more})


def small(tmp_path: Path, seconds: float = 0.0) -> Callable[[], Any]:
    return functools.partial(ray_models.load_small, tmp_path / "marks", seconds)


def job_of(tmp_path: Path, name: str, width: int = 64) -> Job:
    path = tmp_path / f"{name}.png"
    Image.fromarray(np.full((48, width, 3), 77, np.uint8)).save(path)
    return Job(photo=Photo(id=name, where=str(path)), image=path)


def outcomes_of(engine: RayEngine, jobs: Iterable[Job]) -> dict[str, Outcome]:
    return {job.photo.id: outcome for job, outcome in engine.run(jobs)}


@pytest.mark.slow
def test_a_killed_actor_neither_loses_nor_doubles_a_photograph(tmp_path: Path, marks: Path) -> None:
    """A whole run with Lift on two actors, one of which is killed while it predicts."""
    settings = settings_of(tmp_path, count=6)
    load = functools.partial(ray_models.load_lift, marks, 0.3)
    engine = Counted(RayEngine(load, settings.gaussians_dir, settings.formats, device="cpu", num_actors=2))
    run = build(settings, Journal(settings.run_dir / "journal.sqlite"), Settings(model="lift"), engine=engine)
    handler = signal.getsignal(signal.SIGTERM)
    victims: list[int] = []
    killer = threading.Thread(target=kill_busy, args=(marks, victims), daemon=True)
    killer.start()
    run.work()
    killer.join(1)
    assert len(victims) == 1, "one actor was killed while it predicted"
    assert (marks / f"busy-{victims[0]}").exists(), "it did not finish its prediction"
    assert len(list(marks.glob("loaded-*"))) == 3, "the two actors, and the replacement"
    assert num_begun(marks) >= 7, "the job of the dead actor was repeated"
    assert_done_once(settings, engine, count=6)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not ray.is_initialized(), "the engine stopped the cluster that it had started"


class Counted:
    """An engine whose outcomes are counted by photograph."""

    def __init__(self, engine: RayEngine) -> None:
        self.num_outcomes: Counter[str] = Counter()
        self._engine = engine

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        for job, outcome in self._engine.run(jobs):
            self.num_outcomes[job.photo.id] += 1
            yield job, outcome


def settings_of(tmp_path: Path, count: int) -> DatasetSettings:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.full((48, 64, 3), 20 * number, np.uint8)).save(folder / f"photo{number}.png")
        np.save(folder / f"photo{number}.depth.npy", np.full((48, 64), 2.0 + number, np.float32))
    settings = DatasetSettings(input_dir=str(folder), runs_dir=str(tmp_path / "runs"))
    settings.run_dir.mkdir(parents=True)
    return settings


def kill_busy(marks: Path, victims: list[int]) -> None:
    """Kill an actor that has just begun an image, but not the first one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for mark in marks.glob("busy-*") if num_begun(marks) >= 3 else ():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - mark.stat().st_mtime < 0.1:
                    victims.append(int(mark.name.removeprefix("busy-")))
                    os.kill(victims[0], signal.SIGKILL)
                    return
        time.sleep(0.01)


def num_begun(marks: Path) -> int:
    return len(list(marks.glob("began-*")))


def assert_done_once(settings: DatasetSettings, engine: Counted, *, count: int) -> None:
    journal = Journal(settings.run_dir / "journal.sqlite")
    assert journal.counts() == {"done": count}
    entries = list(journal.entries("done"))
    assert engine.num_outcomes == Counter({entry.photo.id: 1 for entry in entries})
    assert all(entry.tries == 0 for entry in entries)
    assert {path.name for path in settings.gaussians_dir.iterdir()} == {f"{entry.photo.id}.ply" for entry in entries}
    for entry in entries:
        vertices = PlyData.read(str(settings.gaussians_dir / f"{entry.photo.id}.ply"))["vertex"]
        # Each photograph has another depth, so that exchanged splats would be noticed.
        number = int(entry.photo.row["description"].removeprefix("photo").removesuffix(".png"))
        assert len(vertices.data) == LIFT_GAUSSIANS
        np.testing.assert_allclose(vertices["z"], 2.0 + number, rtol=2e-3)


def test_a_cluster_that_cannot_be_reached_is_named(tmp_path: Path, marks: Path) -> None:
    engine = engine_of(tmp_path, small(tmp_path), address="127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9 cannot be reached"):
        outcomes_of(engine, [job_of(tmp_path, "a")])


def test_the_address_of_a_ray_client_is_refused(tmp_path: Path, marks: Path) -> None:
    engine = engine_of(tmp_path, small(tmp_path), address="ray://127.0.0.1:10001")
    with pytest.raises(SettingError, match="RAY_ADDRESS"):
        outcomes_of(engine, [job_of(tmp_path, "a")])


@pytest.mark.slow
def test_a_killed_node_neither_loses_nor_doubles_a_photograph(tmp_path: Path, marks: Path) -> None:
    """A cluster of three nodes, given by its address, whose head has no processors. One of the others is killed."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 500 << 20})
    try:
        added = [nodes.add_node(num_cpus=1, object_store_memory=300 << 20) for _ in range(2)]
        settings = settings_of(tmp_path, count=6)
        load = functools.partial(ray_models.load_lift, marks, 0.3)
        ray_engine = RayEngine(load, settings.gaussians_dir, settings.formats, address=nodes.address, device="cpu")
        engine = Counted(ray_engine)
        run = build(settings, Journal(settings.run_dir / "journal.sqlite"), Settings(model="lift"), engine=engine)

        def kill_node() -> None:
            deadline = time.monotonic() + 120
            while num_begun(marks) < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            # The run itself belongs to one of them, since all share an address.
            here = ray.get_runtime_context().get_node_id()
            nodes.remove_node(next(node for node in added if node.node_id != here), allow_graceful=False)

        killer = threading.Thread(target=kill_node, daemon=True)
        killer.start()
        run.work()
        killer.join(30)
        assert len(nodes.worker_nodes) == 1
        assert len(list(marks.glob("loaded-*"))) == 2
        assert_done_once(settings, engine, count=6)
    finally:
        nodes.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.slow
@pytest.mark.parametrize("num_signals", [1, 2])
def test_ctrl_c_finishes_the_jobs_under_way_and_a_second_one_stops_at_once(tmp_path: Path, num_signals: int) -> None:
    """The command itself; like in a terminal, all processes of its group get the signal. Then the run is continued."""
    settings = settings_of(tmp_path, count=9)
    arguments = [
        "dataset",
        "run",
        "--engine=ray",
        f"--input-dir={settings.input_dir}",
        f"--runs-dir={settings.runs_dir}",
    ]
    command = [sys.executable, "-m", "sharp_cog", *arguments]
    environment = {**os.environ, "SHARP_MODEL": "lift", "SHARP_DEVICE": "cpu"}
    before = ray_processes()
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE)
    journal = Journal(settings.run_dir / "journal.sqlite")
    wait_until(lambda: journal.counts().get("done", 0) >= 1, 120)
    for _ in range(num_signals):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    start = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr.decode()
    if num_signals == 2:
        assert time.monotonic() - start < 20
    assert "Traceback" not in stderr.decode()
    counts = journal.counts()
    assert 1 <= counts["done"] < 9
    assert "made" not in counts
    done = {entry.photo.id for entry in journal.entries("done")}
    splats = {path.name for path in settings.gaussians_dir.glob("*.ply")}
    assert num_signals == 2 or splats == {f"{photo_id}.ply" for photo_id in done}
    wait_until(lambda: ray_processes() <= before, 20)
    again = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr.decode()
    assert journal.counts() == {"done": 9}
    assert len(list(settings.gaussians_dir.iterdir())) == 9


def ray_processes() -> set[int]:
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if "raylet" in words or "gcs_server" in words or words.startswith("ray::"):
            found.add(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_outcomes_come_at_once_and_few_jobs_are_taken_in_advance(tmp_path: Path, marks: Path) -> None:
    """Two actors, each of which has its own GPU and loads the model once."""
    engine = engine_of(tmp_path, small(tmp_path, 0.05), num_actors=0, device="auto", formats=("ply", "spz"))
    made: list[str] = []
    in_advance: list[int] = []

    def jobs() -> Iterator[Job]:
        # Like a source that has no more until the jobs under way are done.
        for number in range(3):
            wait_until(lambda number=number: len(made) >= number, 60)  # type: ignore[misc]
            yield job_of(tmp_path, f"slow{number}")
        for number in range(30):
            in_advance.append(3 + number - len(made))
            yield job_of(tmp_path, f"fast{number}")

    for job, outcome in engine.run(jobs()):
        assert isinstance(outcome, dict)
        assert outcome["splats"] == {"ply": f"{job.photo.id}.ply", "spz": f"{job.photo.id}.spz"}
        made.append(job.photo.id)
    assert sorted(made) == sorted([f"slow{number}" for number in range(3)] + [f"fast{number}" for number in range(30)])
    assert max(in_advance) <= 3 * 2
    files = {path.name for path in (tmp_path / "splats").iterdir()}
    assert files == {f"{name}{suffix}" for name in made for suffix in (".ply", ".spz")}
    assert sorted(mark.read_text() for mark in marks.glob("loaded-*")) == ["0", "1"]


@pytest.mark.usefixtures("cluster")
def test_errors_of_one_job_are_its_outcome(tmp_path: Path, marks: Path) -> None:
    broken = job_of(tmp_path, "broken")
    broken.image.write_bytes(b"text")
    gone = job_of(tmp_path, "gone")
    gone.image.unlink()
    jobs = [broken, gone, job_of(tmp_path, "unexpected", ray_models.UNEXPECTED), job_of(tmp_path, "good")]
    jobs += [job_of(tmp_path, "unpicklable", ray_models.UNPICKLABLE), job_of(tmp_path, "blocked")]
    engine = engine_of(tmp_path, small(tmp_path), num_actors=1)
    (tmp_path / "splats" / "blocked.ply").mkdir()
    outcomes = outcomes_of(engine, jobs)
    assert outcomes.keys() == {job.photo.id for job in jobs}
    assert isinstance(outcomes["broken"], ImageError)
    assert isinstance(outcomes["gone"], ImageError)
    assert str(gone.image) in str(outcomes["gone"])
    assert isinstance(outcomes["unexpected"], ZeroDivisionError)
    assert "ray_models.py" in outcomes["unexpected"].__notes__[0], "the note shows where it was raised"
    assert isinstance(outcomes["unpicklable"], RuntimeError)
    assert "_UnpicklableError: cannot travel" in str(outcomes["unpicklable"])
    assert isinstance(outcomes["blocked"], OutputError)
    assert isinstance(outcomes["good"], dict)
    assert {path.name for path in (tmp_path / "splats").iterdir()} == {"good.ply", "blocked.ply"}
    assert len(list(marks.glob("loaded-*"))) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_actor_whose_device_fails_is_replaced(tmp_path: Path, marks: Path) -> None:
    jobs = [job_of(tmp_path, "device", ray_models.DEVICE_ONCE), job_of(tmp_path, "good")]
    outcomes = outcomes_of(engine_of(tmp_path, small(tmp_path), num_actors=1), jobs)
    assert all(isinstance(outcome, dict) for outcome in outcomes.values())
    assert len(list(marks.glob("loaded-*"))) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "marks")
def test_a_model_that_cannot_be_loaded_is_the_outcome_of_every_job(tmp_path: Path) -> None:
    jobs = [job_of(tmp_path, name) for name in ("a", "b")]
    outcomes = outcomes_of(engine_of(tmp_path, ray_models.load_nothing, num_actors=1), jobs)
    assert [str(outcome) for outcome in outcomes.values()] == ["there is no checkpoint"] * 2
    assert isinstance(outcomes["a"], CheckpointMissingError)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "marks")
def test_actors_that_die_while_they_load_the_model_end_the_run(tmp_path: Path) -> None:
    jobs = [job_of(tmp_path, name) for name in ("a", "b")]
    with pytest.raises(ClusterError, match="an actor died 3 times while it loaded the model"):
        outcomes_of(engine_of(tmp_path, ray_models.load_deadly, num_actors=1), jobs)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "marks")
def test_an_error_of_the_jobs_iterator_is_raised(tmp_path: Path) -> None:
    def jobs() -> Iterator[Job]:
        yield job_of(tmp_path, "a")
        raise OutputError("the journal cannot be read")

    with pytest.raises(OutputError, match="the journal"):
        outcomes_of(engine_of(tmp_path, small(tmp_path), num_actors=1), jobs())


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("width", "error"), [(ray_models.DEADLY, PredictionError), (ray_models.DEVICE_ALWAYS, DeviceError)]
)
def test_an_image_that_kills_every_actor_is_given_up(
    tmp_path: Path, marks: Path, width: int, error: type[Exception]
) -> None:
    jobs = [job_of(tmp_path, "deadly", width), *(job_of(tmp_path, f"good{number}") for number in range(3))]
    outcomes = outcomes_of(engine_of(tmp_path, small(tmp_path)), jobs)
    assert type(outcomes.pop("deadly")) is error
    assert len(outcomes) == 3
    assert all(isinstance(outcome, dict) for outcome in outcomes.values())
    assert len(list(marks.glob("loaded-*"))) <= 2 + MAX_ATTEMPTS


def test_the_pool_fits_the_machines_of_the_cluster() -> None:
    def node(cpus: float, gpus: float = 0.0, *, is_alive: bool = True) -> dict[str, Any]:
        return {"Alive": is_alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}

    def pool(*nodes: dict[str, Any], device: str = "auto", num_actors: int = 0) -> Pool:
        return plan_pool(nodes, device=device, num_actors=num_actors)

    assert pool(node(2)) == Pool(num_actors=1, num_cpus=2, num_gpus=0)
    assert pool(node(2), num_actors=2) == Pool(num_actors=2, num_cpus=1, num_gpus=0)
    assert pool(node(2), num_actors=5) == Pool(num_actors=5, num_cpus=1, num_gpus=0)
    assert pool(node(8), node(16), node(4, is_alive=False)) == Pool(num_actors=2, num_cpus=8, num_gpus=0)
    assert pool({"Alive": True, "Resources": {}}, node(4)) == Pool(num_actors=1, num_cpus=4, num_gpus=0)
    assert pool(node(96, 8), node(16, 1)) == Pool(num_actors=9, num_cpus=8, num_gpus=1)
    assert pool(node(16), node(8, 4)) == Pool(num_actors=4, num_cpus=2, num_gpus=1)
    assert pool(node(2, 4)) == Pool(num_actors=4, num_cpus=1, num_gpus=1)
    assert pool(node(8, 2), device="cuda", num_actors=1).num_actors == 1
    assert pool(node(8, 2), device="cpu") == Pool(num_actors=1, num_cpus=8, num_gpus=0)
    with pytest.raises(SettingError, match="no machine of the Ray cluster has a GPU"):
        pool(node(8), device="cuda")
    with pytest.raises(SettingError, match="has a CPU"):
        pool(node(8, is_alive=False))
