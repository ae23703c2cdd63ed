"""Many client processes at one dataset, killed again and again: each photograph is done once, and nothing is left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from sharp_cog.dataset.index import read_rows
from sharp_cog.dataset.journal import Journal
from tests.dataset.client import REPO
from tests.dataset.hub_server import HubServer
from tests.dataset.photographs import photographs
from tests.dataset.unsplash_server import ACCESS_KEY, UnsplashServer

ROOT = Path(__file__).parents[2]


class Clients:
    """Client processes; each continues its own run when it is started again."""

    def __init__(self, tmp_path: Path, count: int, settings: dict[str, str], seconds: float) -> None:
        self.names = [f"client{number}" for number in range(count)]
        self.num_kills = 0
        self._tmp_path, self._settings, self._seconds = tmp_path, settings, seconds
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "RUNS_DIR": str(self._tmp_path / "runs"),
            "RUN_ID": name,
            "HF_HOME": str(self._tmp_path / "home" / name),
            "HF_LOCK_STALE_SECS": "1800",  # Less than the difference of the clocks.
            **self._settings,
        }
        # The clocks of two clients are an hour off.
        ahead = {"client1": "3600", "client2": "-3600"}.get(name, "0")
        command = [sys.executable, "-m", "tests.dataset.client", str(self._seconds), ahead]
        with (self._tmp_path / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def work_and_be_killed(self, chance: random.Random, *, kills: int, every_s: float, within_s: float) -> None:
        """Run all clients to the end, and now and then kill one of them and start it again."""
        deadline = time.monotonic() + within_s
        for name in self.names:
            self.start(name)
        next_kill = time.monotonic() + every_s
        while self._running:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)
            for name, process in list(self._running.items()):
                if process.poll() is not None:
                    assert process.returncode == 0, self.logs()
                    del self._running[name]
            # The first victim must be at work; later ones may also be starting.
            victims = sorted(name for name in self._running if self.num_kills or self._has_made(name))
            if victims and self.num_kills < kills and time.monotonic() > next_kill:
                name = chance.choice(victims)
                process = self._running.pop(name)
                process.send_signal(signal.SIGKILL)
                process.wait()
                self.num_kills += 1
                self.start(name)
                next_kill = time.monotonic() + every_s * chance.uniform(0.5, 1.5)

    def _has_made(self, name: str) -> bool:
        return any((self._tmp_path / "runs" / name / "gaussians").glob("*.ply"))

    def end(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self._tmp_path.glob("*.log")))

    def made(self) -> list[str]:
        """Return the ids of the photographs that each client made, by the names of its files."""
        return [path.stem for name in self.names for path in (self._tmp_path / "runs" / name / "gaussians").iterdir()]

    def done(self) -> Counter[str]:
        """Return how often each photograph is done, by the journals."""
        count: Counter[str] = Counter()
        for name in self.names:
            journal = Journal(self._tmp_path / "runs" / name / "journal.sqlite")
            count.update(entry.photo.id for entry in journal.entries("done"))
            journal.close()
        return count


def check_hub(hub: HubServer, clients: Clients, num_photos: int) -> None:
    files = hub.files(REPO)
    rows = read_rows(files["data/train.jsonl"])
    assert len(rows) == num_photos
    assert len({row["image_id"] for row in rows}) == num_photos
    for row in rows:
        assert files[row["image_path"]].startswith((b"\x89PNG", b"\xff\xd8"))
        assert files[json.loads(row["splat_paths"])["ply"]].startswith(b"ply")
    ids = {row["image_id"] for row in rows}
    assert {name.partition("/")[2] for name in files if name.startswith("done/")} == ids
    assert [name for name in files if name.startswith("locks/")] == []
    # Leases alone must prevent duplicates: the index would hide a photograph that was made twice.
    made = clients.made()
    assert len(made) == len(set(made)) == num_photos
    assert clients.done() == Counter(dict.fromkeys(ids, 1))


@pytest.mark.parametrize(
    ("num_clients", "num_photos", "kills", "every_s"),
    [(2, 30, 1, 0.0), pytest.param(4, 2000, 60, 1.5, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_clients_that_are_killed_do_each_photograph_once(
    tmp_path: Path, hub: HubServer, num_clients: int, num_photos: int, kills: int, every_s: float
) -> None:
    hub.lose_answers = 5
    settings = {
        **hub.environment,
        "SHARP_INPUT_DIR": str(photographs(tmp_path / "in", num_photos)),
        "HF_UPLOAD": "1",
        "HF_REPO_ID": REPO,
        "HF_USE_LOCKS": "1",
        "CLAIM_BATCH": "5",
        "HF_INDEX_FLUSH_EVERY": "10",
        "HF_INDEX_FLUSH_SECS": "5",
    }
    clients = Clients(tmp_path, num_clients, settings, seconds=0.1)
    try:
        clients.work_and_be_killed(random.Random(7), kills=kills, every_s=every_s, within_s=800)
    finally:
        clients.end()
    assert clients.num_kills >= max(1, kills / 2)
    check_hub(hub, clients, num_photos)
    num_commits = len(hub.commits(REPO)) - 1
    assert num_commits < num_photos / 2, "the hub allows 128 commits an hour"


@pytest.mark.slow
def test_clients_that_are_killed_finish_all_ranges_of_a_list(tmp_path: Path, hub: HubServer) -> None:
    unsplash = UnsplashServer(130)
    hub.lose_answers = 3
    settings = {
        **hub.environment,
        "SOURCE": "list",
        "ORDER_BY": "oldest",
        "UNSPLASH_ACCESS_KEY": ACCESS_KEY,
        "UNSPLASH_API_URL": unsplash.url,
        "PER_PAGE": "5",
        "RANGE_SIZE": "15",
        "DOWNLOAD_QUEUE_MAX": "2",
        "HF_UPLOAD": "1",
        "HF_REPO_ID": REPO,
        "HF_USE_LOCKS": "1",
        "CLAIM_BATCH": "5",
        "HF_INDEX_FLUSH_EVERY": "5",
    }
    clients = Clients(tmp_path, 3, settings, seconds=0.1)
    try:
        clients.work_and_be_killed(random.Random(3), kills=8, every_s=1.5, within_s=200)
    finally:
        clients.end()
        unsplash.close()
    assert clients.num_kills >= 4
    check_hub(hub, clients, 130)
    names = hub.files(REPO)
    assert [name for name in names if name.startswith("ranges/locks/")] == []
    done = {name.rpartition("/")[2] for name in names if name.startswith("ranges/done/")}
    assert done == {f"{start}-{start + 14}" for start in range(0, 120, 15)}, "the last one is not full"


@pytest.mark.slow
def test_four_clients_share_a_folder_without_a_hub(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    settings = {
        "SHARP_INPUT_DIR": str(photographs(tmp_path / "in", 60)),
        "CLAIMS_DIR": str(shared),
        "CLAIM_BATCH": "5",
    }
    clients = Clients(tmp_path, 4, settings, seconds=0.1)
    try:
        clients.work_and_be_killed(random.Random(7), kills=2, every_s=2.0, within_s=100)
    finally:
        clients.end()
    assert clients.num_kills >= 1
    made = clients.made()
    assert len(made) == len(set(made)) == 60
    assert sum(clients.done().values()) == 60
    assert sorted(os.listdir(shared / "locks")) == []
    assert len(os.listdir(shared / "done")) == 60
