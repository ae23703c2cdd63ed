"""`sharp-cog dataset` as people start and stop it: in its own process, with the model that needs no weights."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData

from sharp_cog.dataset.journal import Journal

NUM_VISIBLE = 768 * 768


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three photographs in two folders, each with its depth map beside it."""
    for number in range(3):
        folder = tmp_path / "in" / f"day{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{number}.jpg")
        np.save(folder / f"photo{number}.depth.npy", np.full((48, 64), 2.0 + number, np.float32))
    return tmp_path / "in"


def start(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SHARP_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "sharp_cog", "dataset", *arguments],
        cwd=tmp_path,
        env={**kept, "SHARP_MODEL": "lift", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process and return its exit code and output."""
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def counts(tmp_path: Path, run_id: str = "main") -> dict[str, int]:
    journal = Journal(tmp_path / "runs" / run_id / "journal.sqlite")
    found = journal.counts()
    journal.close()
    return found


ARGUMENTS = ("run", "--input-dir", "in", "--formats", "ply,sog")


def wait_until_one_is_in_progress(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    """Wait for the first .ply. Its .sog, which takes longer, is being written at that moment."""
    deadline = time.monotonic() + 60
    while not list((tmp_path / "runs/main/gaussians").glob("*.ply")):
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_folder_becomes_splats(tmp_path: Path, photos: Path) -> None:
    (photos / "broken.png").write_text("not an image")
    (tmp_path / ".env").write_text("SHARP_INPUT_DIR=in\nRUN_ID=from-file\nFORMATS=ply\nLOG_GPU_MEM=1\n")
    code, output = ended(start(tmp_path, "run", RUN_ID="named", ML_SHARP_DIR="/old", CONDA_ENV_NAME="sharp"))
    assert code == 0, output
    assert "ML_SHARP_DIR is set, but not needed" in output
    assert "CONDA_ENV_NAME is set, but not needed" in output
    assert "done: 3; failed: 1" in output
    run = tmp_path / "runs/named"
    splats = sorted((run / "gaussians").iterdir())
    assert len(splats) == 3
    assert len(list((run / "images").iterdir())) == 3
    assert PlyData.read(splats[0])["vertex"].count > NUM_VISIBLE
    assert (run / "gpu_mem_log.csv").read_text().count("\n") == 4

    code, output = ended(start(tmp_path, "status", "--run-id", "named"))
    assert code == 0, output
    figures = {name.rsplit(None, 1)[0]: name.rsplit(None, 1)[1] for name in output.splitlines()[:7]}
    assert (figures["done"], figures["given up"], figures["to be fetched"]) == ("3", "1", "0")
    assert "invalid_image: " in output
    before = [path.stat().st_mtime_ns for path in splats]
    assert ended(start(tmp_path, "run", "--run-id", "named"))[0] == 0
    assert [path.stat().st_mtime_ns for path in splats] == before


def test_ctrl_c_finishes_the_work_in_progress_and_the_next_run_continues(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "PAUSE").touch()
    process = start(tmp_path, *ARGUMENTS, CONTROL_DIR="control")
    while not (tmp_path / "runs/main/journal.sqlite").exists():
        assert process.poll() is None, ended(process)
        time.sleep(0.02)
    (tmp_path / "control" / "PAUSE").unlink()
    wait_until_one_is_in_progress(tmp_path, process)
    process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert code == 130, output
    assert "stopping: work in progress is being finished" in output
    left = counts(tmp_path)
    assert left.keys() <= {"done", "fetched", "seen"}, "photographs in progress were finished"
    assert left["done"] >= 1
    assert ended(start(tmp_path, *ARGUMENTS))[0] == 0
    assert counts(tmp_path) == {"done": 3}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["second Ctrl-C", "SIGKILL"])
def test_a_run_that_is_stopped_at_once_loses_nothing(tmp_path: Path, photos: Path, how: str) -> None:
    process = start(tmp_path, *ARGUMENTS)
    wait_until_one_is_in_progress(tmp_path, process)
    if how == "SIGKILL":
        process.kill()
    else:
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    code, output = ended(process)
    assert code == (-9 if how == "SIGKILL" else 130), output
    assert counts(tmp_path).get("done", 0) < 3
    code, output = ended(start(tmp_path, *ARGUMENTS))
    assert code == 0, output
    assert counts(tmp_path) == {"done": 3}
    assert (
        sorted(path.suffix for path in (tmp_path / "runs/main/gaussians").iterdir()) == [".ply"] * 3 + [".sog"] * 3
    ), "no incomplete file is left"


def test_a_terminal_shows_a_live_view(tmp_path: Path, photos: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sharp_cog", "dataset", "run", "--input-dir", "in", "--max-images", "1"],
        cwd=tmp_path,
        env={**os.environ, "SHARP_MODEL": "lift", "TERM": "xterm-256color", "COLUMNS": "100"},
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 1.0)[0]:
            continue
        try:
            shown += os.read(master, 1 << 16)
        except OSError:  # The process has closed the terminal.
            break
    os.close(master)
    assert process.wait(10) == 0, shown
    text = shown.decode()
    for name in ("done", "failed", "an hour", "waiting", "time left"):
        assert name in text
    assert text.rstrip().endswith("\x1b[?25h"), "the cursor is visible again"
