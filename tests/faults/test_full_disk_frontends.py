"""A full disk behind every frontend, and in a dataset run: it is reported, and work resumes when there is room."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from benchmarks.attack.sockets import Address, attacking, stalling_upload
from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.services import ServiceSettings
from sharp_cog.dataset.folder_store import FolderStore, FolderView
from sharp_cog.dataset.gpu_log import GpuLog
from sharp_cog.dataset.index import Index
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.store import Change, Put
from sharp_cog.errors import OutputError
from sharp_cog.serving import runpod
from tests.dataset.client import run_of
from tests.dataset.photographs import photographs
from tests.faults.disks import KINDS, disk, tree, unchanged
from tests.faults.failing_device import small_pipeline
from tests.faults.frontends import FRONTENDS, OPTIONS
from tests.gated import Gated
from tests.images import npy as depth_map
from tests.images import png as picture
from tests.service import serving

SMALL_DISK = ServiceSettings(min_free_megabytes=0)
"""Settings of a service that may fill its disk, since those of these tests are smaller than what stays free."""


@pytest.mark.parametrize("kind", KINDS[-1:])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_frontend_reports_a_full_disk_and_works_when_there_is_room(
    kind: str, frontend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod, "READY", tmp_path / "ready")
    (tmp_path / "temporary").mkdir()
    (tmp_path / "inputs").mkdir()
    with disk(kind, tmp_path / "temporary") as full:
        monkeypatch.setattr("tempfile.tempdir", str(full.path))
        with FRONTENDS[frontend](small_pipeline(), tmp_path / "inputs") as opened:
            with unchanged(full.path):
                expected = opened.ask()
            assert isinstance(expected, bytes)
            with unchanged(full.path):
                for room in (0, len(expected) // 2):
                    with full.full_after(room):
                        assert opened.ask() == "cannot_write", room
                assert opened.ask() == expected
            assert opened.is_healthy()
        assert tree(full.path) == {}


@pytest.mark.parametrize("kind", KINDS[-1:])
def test_a_request_body_that_finds_no_room_is_an_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype=np.uint8)).save(noise, "PNG")
    depth = io.BytesIO()
    np.save(depth, np.full((1000, 1000), 2.0, np.float32))
    files = {"file": noise.getvalue(), "depth": depth.getvalue()}
    with disk(kind, tmp_path) as full:
        monkeypatch.setattr("tempfile.tempdir", str(full.path))
        with serving(small_pipeline, SMALL_DISK) as service, unchanged(full.path):
            where = f"{service.url}/predict/ply"
            with full.full_after(1_000_000):
                answer = requests.post(where, files=files, data=OPTIONS, timeout=60)
            # The free space of a disk is known before the body is read, and a limit on files is not.
            expected = {"file system": (507, "no_space"), "limit on files": (500, "cannot_write")}
            assert (answer.status_code, answer.json()["code"]) == expected[kind]
            assert requests.post(where, files=files, data=OPTIONS, timeout=60).status_code == 200


@pytest.mark.skipif("file system" not in KINDS, reason="a limit on files leaves the disk its free space")
def test_uploads_that_stall_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them declares a third of the disk and sends most of it; a good request is answered all the same."""
    settings = ServiceSettings(min_free_megabytes=10, stall_seconds=3)
    with disk("file system", tmp_path) as full, contextlib.ExitStack() as stack:
        monkeypatch.setattr("tempfile.tempdir", str(full.path))
        with serving(Gated, settings) as service, unchanged(full.path):
            attack = stalling_upload(
                Address(host="127.0.0.1", port=service.port), "/predict/splat", declared=20_000_000, sent=18_000_000
            )
            outcomes = stack.enter_context(attacking([attack] * 8))
            deadline = time.monotonic() + 20
            while shutil.disk_usage(full.path).free > 32_000_000:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            files = {"file": bytes(1000), "depth": bytes(20_000_000)}
            answer = requests.post(f"{service.url}/predict/splat", files=files, timeout=60)
            assert answer.status_code == 200, answer.text
            assert shutil.disk_usage(full.path).free > 10_000_000
            while sum(outcomes.counts.values()) < 8:
                assert time.monotonic() < deadline + 20
                time.sleep(0.01)
            assert outcomes.counts.keys() <= {"408 too_slow", "503 busy"}


@pytest.mark.parametrize("kind", KINDS[-1:])
def test_a_compressed_answer_that_finds_no_room_is_an_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"file": picture(), "depth": depth_map()}
    with disk(kind, tmp_path) as full:
        monkeypatch.setattr("tempfile.tempdir", str(full.path))
        with serving(small_pipeline, SMALL_DISK) as service, unchanged(full.path):
            with unchanged(full.path):
                headers = {"Accept-Encoding": ""}
                plain = requests.post(f"{service.url}/predict", files=files, headers=headers, timeout=60)
            assert plain.status_code == 200
            with full.full_after(len(plain.content) // 8):
                answer = requests.post(f"{service.url}/predict", files=files, timeout=60)
            assert (answer.status_code, answer.json()["code"]) == (500, "cannot_write")
            assert requests.post(f"{service.url}/predict", files=files, timeout=60).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_journal_keeps_its_entries_when_the_disk_is_full(kind: str, tmp_path: Path) -> None:
    with disk(kind, tmp_path) as full:
        path = full.path / "journal.sqlite"
        journal = Journal(path)
        num_added = 0
        failure: OutputError | None = None
        with full.full_after(200_000):
            while failure is None:
                try:
                    journal.add([Photo(id=f"photo{num_added}", where="x" * 500)])
                    num_added += 1
                except OutputError as error:
                    failure = error
        assert re.search("disk I/O error|disk is full", str(failure))
        assert isinstance(failure.__cause__, sqlite3.Error)
        assert num_added > 10
        assert journal.counts() == {"seen": num_added}
        journal.add([Photo(id="next", where="")])
        journal.close()
        again = Journal(path)
        assert again.counts() == {"seen": num_added + 1}
        again.close()
        assert {file.name for file in full.path.iterdir()} == {"journal.sqlite"}


def check_run(kind: str, tmp_path: Path, rooms: list[int]) -> None:
    """Repeat a run on a disk with a little more room each time, and at last with enough."""
    pictures = photographs(tmp_path / "in", 4)
    (tmp_path / "runs").mkdir()
    with disk(kind, tmp_path / "runs") as full:
        settings = DatasetSettings(input_dir=str(pictures), runs_dir=str(full.path), formats=("ply", "splat"))
        settings = replace(settings, log_gpu_mem=True)
        num_failed = 0
        for room in rooms:
            with full.full_after(room):
                try:
                    run = run_of(settings)
                except OutputError:
                    num_failed += 1
                    continue
                try:
                    run.work()
                except OutputError:
                    num_failed += 1
                run.journal.close()
            for path in full.path.rglob("*.ply"):
                assert path.read_bytes().startswith(b"ply\n")
                assert not path.name.startswith(".")
        assert num_failed >= 2
        run = run_of(settings)
        run.work()
        assert run.journal.counts() == {"done": 4}
        run.journal.close()
        folder = settings.run_dir
        assert {path.name for path in folder.iterdir()} == {"gaussians", "gpu_mem_log.csv", "images", "journal.sqlite"}
        made = sorted(path.suffix for path in (folder / "gaussians").iterdir())
        assert made == [".ply"] * 4 + [".splat"] * 4
        assert len(list((folder / "images").iterdir())) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_when_the_disk_is_full_and_resumes_when_there_is_room(kind: str, tmp_path: Path) -> None:
    check_run(kind, tmp_path, [0, 10_000, 60_000, 130_000])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_may_meet_a_full_disk_anywhere(kind: str, tmp_path: Path) -> None:
    check_run(kind, tmp_path, list(range(0, 400_000, 5_000)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_lease_in_a_shared_folder_leaves_no_draft(kind: str, tmp_path: Path) -> None:
    def decide(view: FolderView) -> tuple[Change, None]:
        return Change(operations=[Put(path="locks/photo", content=bytes(10_000))], message=""), None

    with disk(kind, tmp_path) as full:
        store = FolderStore(full.path / "shared")
        (full.path / "shared" / "locks").mkdir()
        (full.path / "shared" / ".mutex").touch()
        with unchanged(full.path), full.full_after(5000), pytest.raises(OutputError, match="cannot be used"):
            store.change(decide)
        store.change(decide)
        assert (full.path / "shared" / "locks" / "photo").read_bytes() == bytes(10_000)
        assert {path.name for path in (full.path / "shared" / "locks").iterdir()} == {"photo"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_finds_no_room_leaves_nothing(kind: str, tmp_path: Path) -> None:
    with disk(kind, tmp_path) as full:
        index = Index("data/train.jsonl", full.path / "index.jsonl")
        rows = [{"image_id": f"photo{number}" * 20} for number in range(1000)]
        with unchanged(full.path), full.full_after(20_000), pytest.raises(OutputError, match="cannot write"):
            index.draft(rows)
        assert index.draft(rows).stat().st_size > 20_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_of_gpu_memory_that_finds_no_room_is_an_error(kind: str, tmp_path: Path) -> None:
    with disk(kind, tmp_path) as full:
        log = GpuLog(full.path / "gpu.csv")
        with full.full_after(0), pytest.raises(OutputError, match=r"cannot write .*gpu\.csv"):
            log.write("photo")
        log.write("photo")
        assert (full.path / "gpu.csv").read_text().count("photo") >= 1
