"""The engine on Ray: real clusters of this machine, whose actors and nodes die."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
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
from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.ray_engine import MAX_ATTEMPTS, Pool, RayEngine, pool_of
from sharp_cog.dataset.ray_feed import ClusterError, one_row
from sharp_cog.dataset.ray_write import Made, Written, drop, put_in_place, write
from sharp_cog.dataset.run import Run
from sharp_cog.errors import (
    CheckpointMissingError,
    DeviceError,
    ImageError,
    OutputError,
    PredictionError,
    SettingError,
)
from tests.dataset import ray_models

LIFT_GAUSSIANS = 2 * 768 * 768

Results = list[tuple[str, dict[str, Any] | Exception]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for several tests, which the engine finds and leaves as it is."""
    # As many GPUs as one says: Ray counts them, and does not look.
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


def results_of(engine: RayEngine, jobs: Iterable[Job]) -> Results:
    return [(job.photo.id, result) for job, result in engine.run(jobs)]


@pytest.mark.slow
def test_an_actor_that_is_killed_costs_no_photograph_and_doubles_none(tmp_path: Path, marks: Path) -> None:
    """A whole run with Lift on two actors, of which one is killed while it predicts."""
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
    assert len(victims) == 1, "one was killed, at work"
    assert (marks / f"busy-{victims[0]}").exists(), "it never came to the end of what it was at"
    assert len(list(marks.glob("loaded-*"))) == 3, "two loaded the model, and the one in place of the dead one"
    assert num_begun(marks) >= 7, "what the dead one was at was begun again"
    assert_done_once(settings, engine, count=6)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not ray.is_initialized(), "what it started, it ended"


class Counted:
    """An engine whose results are counted by photograph."""

    def __init__(self, engine: RayEngine) -> None:
        self.given: Counter[str] = Counter()
        self._engine = engine

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
        for job, result in self._engine.run(jobs):
            self.given[job.photo.id] += 1
            yield job, result


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
    """Kills an actor that has just begun a picture, not the first one."""
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
    assert engine.given == Counter({entry.photo.id: 1 for entry in entries})
    assert all(entry.tries == 0 for entry in entries)
    assert {path.name for path in settings.gaussians_dir.iterdir()} == {f"{entry.photo.id}.ply" for entry in entries}
    for entry in entries:
        vertices = PlyData.read(str(settings.gaussians_dir / f"{entry.photo.id}.ply"))["vertex"]
        # Each has its own depth: none has another one's splat.
        number = int(entry.photo.row["description"].removeprefix("photo").removesuffix(".png"))
        assert len(vertices.data) == LIFT_GAUSSIANS
        np.testing.assert_allclose(vertices["z"], 2.0 + number, rtol=2e-3)


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path, marks: Path) -> None:
    engine = engine_of(tmp_path, small(tmp_path), address="127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:9 cannot be reached"):
        results_of(engine, [job_of(tmp_path, "a")])


def test_an_address_of_a_ray_client_is_refused(tmp_path: Path, marks: Path) -> None:
    engine = engine_of(tmp_path, small(tmp_path), address="ray://127.0.0.1:10001")
    with pytest.raises(SettingError, match="RAY_ADDRESS"):
        results_of(engine, [job_of(tmp_path, "a")])


@pytest.mark.slow
def test_a_node_that_dies_costs_no_photograph_and_doubles_none(tmp_path: Path, marks: Path) -> None:
    """A cluster of three nodes by its address; the driver's has no processors. One of the others is killed for good."""
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
            # The run itself is at one of them, as it finds them all at one address.
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
def test_ctrl_c_finishes_what_is_under_way_and_a_second_one_ends_it(tmp_path: Path, num_signals: int) -> None:
    """The command itself, in a terminal's group of processes, which all get the signal; then it goes on."""
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
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told.decode()
    if num_signals == 2:
        assert time.monotonic() - start < 20
    assert "Traceback" not in told.decode()
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


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_results_come_as_soon_as_they_are_there_and_few_jobs_are_taken_ahead(tmp_path: Path, marks: Path) -> None:
    """On two actors, each of which has a GPU of its own and loads the model once."""
    engine = engine_of(tmp_path, small(tmp_path, 0.05), num_actors=0, device="auto", formats=("ply", "spz"))
    given: list[str] = []
    ahead: list[int] = []

    def jobs() -> Iterator[Job]:
        # As a source does that has no more until what is under way is done.
        for number in range(3):
            deadline = time.monotonic() + 60
            while len(given) < number and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(given) == number, "the last one did not come before the next was there"
            yield job_of(tmp_path, f"slow{number}")
        for number in range(30):
            ahead.append(3 + number - len(given))
            yield job_of(tmp_path, f"fast{number}")

    for job, result in engine.run(jobs()):
        assert isinstance(result, dict)
        assert result["splats"] == {"ply": f"{job.photo.id}.ply", "spz": f"{job.photo.id}.spz"}
        given.append(job.photo.id)
    assert sorted(given) == sorted([f"slow{number}" for number in range(3)] + [f"fast{number}" for number in range(30)])
    assert max(ahead) <= 3 * 2
    files = {path.name for path in (tmp_path / "splats").iterdir()}
    assert files == {f"{name}{suffix}" for name in given for suffix in (".ply", ".spz")}
    assert sorted(mark.read_text() for mark in marks.glob("loaded-*")) == ["0", "1"]


@pytest.mark.usefixtures("cluster")
def test_what_fails_is_told_by_its_code_and_stops_nobody(tmp_path: Path, marks: Path) -> None:
    """And an actor whose device fails is replaced: the picture is done by another process."""
    broken = job_of(tmp_path, "broken")
    broken.image.write_bytes(b"text")
    gone = job_of(tmp_path, "gone")
    gone.image.unlink()
    jobs = [broken, gone, job_of(tmp_path, "foreign", ray_models.FOREIGN), job_of(tmp_path, "good")]
    jobs += [job_of(tmp_path, "locked", ray_models.LOCKED), job_of(tmp_path, "device", ray_models.DEVICE_ONCE)]
    engine = engine_of(tmp_path, small(tmp_path), num_actors=1)
    results = dict(results_of(engine, jobs))
    assert results.keys() == {"broken", "gone", "foreign", "good", "locked", "device"}
    assert isinstance(results["broken"], ImageError)
    assert isinstance(results["gone"], ImageError)
    assert str(gone.image) in str(results["gone"])
    assert isinstance(results["foreign"], ZeroDivisionError)
    assert "ray_models.py" in results["foreign"].__notes__[0], "where it was raised is told"
    assert isinstance(results["locked"], RuntimeError)
    assert "_LockedError: cannot travel" in str(results["locked"])
    assert isinstance(results["good"], dict)
    assert isinstance(results["device"], dict), "another process did it"
    assert {path.name for path in (tmp_path / "splats").iterdir()} == {"good.ply", "device.ply"}
    assert len(list(marks.glob("loaded-*"))) == 2


@pytest.mark.usefixtures("cluster", "marks")
def test_a_model_that_cannot_be_loaded_is_told_as_what_it_is(tmp_path: Path) -> None:
    results = results_of(engine_of(tmp_path, ray_models.load_nothing, num_actors=1), [job_of(tmp_path, "a")])
    assert isinstance(results[0][1], CheckpointMissingError)
    assert str(results[0][1]) == "there is no checkpoint"


def test_files_get_their_names_by_the_first_result(tmp_path: Path) -> None:
    made = ({"num_gaussians": 1}, {"a.ply": b"first", "a.spz": b"splat"})
    late = ({"num_gaussians": 1}, {"a.ply": b"second"})
    first, second = (written_of(outcome, tmp_path) for outcome in (made, late))
    assert not list(tmp_path.glob("[!.]*")), "nothing has its name yet"
    assert put_in_place(first, tmp_path) == {"num_gaussians": 1}
    drop(second, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.ply": b"first", "a.spz": b"splat"}
    error = ImageError("broken")
    told = put_in_place(written_of(error, tmp_path), tmp_path)
    assert isinstance(told, ImageError)
    drop(written_of(error, tmp_path), tmp_path)
    (tmp_path / "a.ply").unlink()
    (tmp_path / "a.ply").mkdir()
    (tmp_path / "a.ply" / "in-the-way").touch()
    assert isinstance(put_in_place(written_of(made, tmp_path), tmp_path), OutputError)
    assert not list(tmp_path.glob(".*.part"))


def written_of(made: Made, folder: Path) -> Written:
    (row,) = write(one_row(7, pickle.dumps(made)), str(folder))
    assert row["number"].to_pylist() == [7]
    written: Written = pickle.loads(row["content"][0].as_buffer())
    return written


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "marks")
def test_files_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, small(tmp_path), num_actors=1)
    (tmp_path / "splats").rmdir()
    results = results_of(engine, [job_of(tmp_path, "a")])
    assert isinstance(results[0][1], OutputError)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "marks")
def test_a_source_that_fails_is_not_swallowed_and_its_jobs_are_done(tmp_path: Path) -> None:
    def jobs() -> Iterator[Job]:
        yield job_of(tmp_path, "a")
        raise OutputError("the journal cannot be read")

    given = []
    with pytest.raises(OutputError, match="the journal"):  # noqa: PT012
        for job, _ in engine_of(tmp_path, small(tmp_path), num_actors=1).run(jobs()):
            given.append(job.photo.id)
    assert given == ["a"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("width", "error"), [(ray_models.DEADLY, PredictionError), (ray_models.DEVICE_ALWAYS, DeviceError)]
)
def test_a_picture_that_kills_every_process_is_given_up(
    tmp_path: Path, marks: Path, width: int, error: type[Exception]
) -> None:
    jobs = [job_of(tmp_path, "deadly", width), *(job_of(tmp_path, f"good{number}") for number in range(3))]
    results = dict(results_of(engine_of(tmp_path, small(tmp_path)), jobs))
    assert type(results.pop("deadly")) is error
    assert len(results) == 3
    assert all(isinstance(result, dict) for result in results.values())
    assert len(list(marks.glob("loaded-*"))) <= 2 + MAX_ATTEMPTS


def test_actors_are_as_many_as_the_cluster_has_room_for() -> None:
    def node(cpus: float, gpus: float = 0.0, *, is_alive: bool = True) -> dict[str, Any]:
        return {"Alive": is_alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}

    def pool(*nodes: dict[str, Any], device: str = "auto", num_actors: int = 0) -> Pool:
        return pool_of(nodes, device=device, num_actors=num_actors)

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


def test_the_engine_of_a_run_is_the_one_of_its_settings(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    settings = DatasetSettings(input_dir=str(tmp_path / "in"), runs_dir=str(tmp_path / "runs"), engine="ray")
    settings.run_dir.mkdir(parents=True)
    run = build(settings, Journal(settings.run_dir / "journal.sqlite"), Settings(model="lift"))
    assert isinstance(run, Run)
    assert isinstance(run._engine, RayEngine)
