"""Measures a dataset run of many photographs without the network: its time should be linear and its memory constant.

    python -m benchmarks.dataset
    python -m benchmarks.dataset --photos 8000 --clients 4
    python -m benchmarks.dataset --photos 2000 --engine ray

Everything is as in `sharp-cog dataset run` except the network, whose splat is a hundred Gaussians. The output has a row
for each tenth of the photographs, with its seconds and the memory of the process. Several clients share one folder of
leases, each in a process of its own. The engine ray has two actors on this machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.settings import Settings
from sharp_cog.dataset.build import build
from sharp_cog.dataset.engine import Engine, Job, Outcome
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.local import LocalEngine
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging.images import SourceImage
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.runtime.lift import LiftPredictor

NUM_GAUSSIANS = 100
NUM_PARTS = 10


class Stub(SharpPipeline):
    """Predicts the same hundred Gaussians for every image."""

    def predict(self, request: Request) -> Prediction:
        """Return a prediction for a decoded image."""
        request = self.decode(request)
        assert isinstance(request.image, SourceImage)
        gaussians = Gaussians(
            means=torch.ones(NUM_GAUSSIANS, 3),
            scales=torch.full((NUM_GAUSSIANS, 3), 0.01),
            quaternions_wxyz=torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(NUM_GAUSSIANS, 4),
            colors_linear=torch.full((NUM_GAUSSIANS, 3), 0.5),
            opacities=torch.full((NUM_GAUSSIANS,), 0.5),
        )
        return Prediction(predicted=gaussians, camera=request.image.camera, options=request.options, key=request.key)


@dataclass
class Watched:
    """An engine that records time and memory now and then.

    Attributes:
        engine: The engine.
        every: Number of splats between two records.
        looks: The records: splats, seconds, seconds of CPU, and bytes of memory of this process so far.
    """

    engine: Engine
    every: int
    looks: list[tuple[int, float, float, int]] = field(default_factory=list)

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Run the engine; see `sharp_cog.dataset.engine.Engine.run`."""
        process, start = psutil.Process(), time.perf_counter()
        used = process.cpu_times()
        self.looks.append((0, 0.0, used.user + used.system, process.memory_info().rss))
        for num_made, (job, outcome) in enumerate(self.engine.run(jobs), start=1):
            if isinstance(outcome, Exception):
                raise outcome
            yield job, outcome
            if num_made % self.every == 0:
                now, used = time.perf_counter() - start, process.cpu_times()
                self.looks.append((num_made, now, used.user + used.system, process.memory_info().rss))


def load() -> SharpPipeline:
    """Return a pipeline with the stub."""
    device = torch.device("cpu")
    return Stub(LiftPredictor(device=device), device=device, settings=Settings(model="lift", device="cpu"))


def engine_of(settings: DatasetSettings) -> Engine:
    """Return the engine that the settings name, with the stub."""
    if settings.engine == "local":
        return LocalEngine(load, settings.gaussians_dir, settings.formats)
    from sharp_cog.dataset.ray_engine import RayEngine

    return RayEngine(load, settings.gaussians_dir, settings.formats, device="cpu", num_actors=2)


def work(settings: DatasetSettings, every: int) -> tuple[Watched, float, dict[str, int]]:
    """Do a run, and return the records, the total seconds, and the counts of the journal."""
    settings.run_dir.mkdir(parents=True)
    journal = Journal(settings.run_dir / "journal.sqlite")
    engine = Watched(engine_of(settings), every)
    start = time.perf_counter()
    build(settings, journal, Settings(model="lift", device="cpu"), engine=engine).work()
    seconds = time.perf_counter() - start
    counts = journal.counts()
    journal.close()
    return engine, seconds, counts


def one_client(folder: Path, photos: int, engine_name: str) -> None:
    """Print the table of a single client."""
    every = max(1, photos // NUM_PARTS)
    settings = DatasetSettings(input_dir=str(folder / "in"), runs_dir=str(folder / "runs"), engine=engine_name)
    engine, seconds, counts = work(settings, every)
    assert counts == {"done": photos}, counts
    print(f"{'photographs':>12}{'s / 1000':>12}{'CPU s / 1000':>14}{'s in all':>12}{'memory MB':>12}")
    for (_, before, used_before, _), (num_made, now, used, rss) in itertools.pairwise(engine.looks):
        part, used_part = (1000 * seconds / every for seconds in (now - before, used - used_before))
        print(f"{num_made:>12,}{part:>12.1f}{used_part:>14.1f}{now:>12.1f}{rss / 1e6:>12.0f}")
    journal = settings.run_dir / "journal.sqlite"
    print(f"{photos:,} photographs in {seconds:.1f} s; journal of {journal.stat().st_size / 1e6:.1f} MB")


def many_clients(folder: Path, photos: int, num_clients: int) -> None:
    """Print the work of each of several clients, and their total time."""
    arguments = [sys.executable, "-m", "benchmarks.dataset", "--folder", str(folder), "--photos", str(photos)]
    start = time.perf_counter()
    clients = [
        subprocess.Popen([*arguments, "--run-id", f"client{number}"], stdout=subprocess.PIPE, text=True)
        for number in range(num_clients)
    ]
    results = [json.loads(client.communicate()[0]) for client in clients]
    seconds = time.perf_counter() - start
    splats = [path.name for path in (folder / "runs").glob("*/gaussians/*.ply")]
    assert len(splats) == len(set(splats)) == photos, f"{len(splats)} splats, {len(set(splats))} different ones"
    print(f"{'client':>8}{'done':>8}{'others':>8}{'seconds':>10}{'memory MB, first':>18}{'last':>8}")
    for number, each in enumerate(results):
        others = sum(each["counts"].get(state, 0) for state in ("others", "taken"))
        first, last = (f"{rss / 1e6:.0f}" if rss else "-" for rss in (each["first_rss"], each["last_rss"]))
        print(f"{number:>8}{each['counts']['done']:>8,}{others:>8,}{each['seconds']:>10.1f}{first:>18}{last:>8}")
    print(f"{photos:,} photographs by {num_clients} clients in {seconds:.1f} s, each done once")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="engine of a single client")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run-id", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.run_id:
        every = max(1, arguments.photos // NUM_PARTS // 4)
        settings = DatasetSettings(
            run_id=arguments.run_id,
            input_dir=str(arguments.folder / "in"),
            runs_dir=str(arguments.folder / "runs"),
            claims_dir=str(arguments.folder / "leases"),
        )
        engine, seconds, counts = work(settings, every)
        memory = [rss for *_, rss in engine.looks[1:]] or [0]
        print(json.dumps({"seconds": seconds, "counts": counts, "first_rss": memory[0], "last_rss": memory[-1]}))
        return
    with tempfile.TemporaryDirectory(prefix="sharp-cog-") as name:
        folder = Path(name)
        draw(folder / "in", arguments.photos)
        if arguments.clients == 1:
            one_client(folder, arguments.photos, arguments.engine)
        else:
            many_clients(folder, arguments.photos, arguments.clients)


def draw(folder: Path, count: int) -> None:
    """Write small images, a thousand in each folder."""
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((48, 64, 3), number % 256, np.uint8)).save(path)


if __name__ == "__main__":
    main()
