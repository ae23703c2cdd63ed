"""The fuzzer finds faults of every kind, and keeps the input that shows them."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.conftest import ROOT
from tests.fuzz.harness import Report, registry

# Targets with one fault each.
SCRIPT = """
import os, signal, sys, tempfile, time
from pathlib import Path
from sharp_cog.errors import ImageError, SplatError
from tests.fuzz import campaign
from tests.fuzz.harness import Target

def spin():
    end = time.process_time() + 2.1
    while time.process_time() < end:
        pass

def hog(num_bytes):
    held = b"x" * num_bytes
    raise ImageError("too large")

def raises(error):
    raise error

WRONG = {
    "another-error": lambda: raises(KeyError("missing")),
    "another-of-ours": lambda: raises(SplatError("not a splat")),
    "no-message": lambda: raises(ImageError("")),
    "two-lines": lambda: raises(ImageError("one\\ntwo")),
    "long-message": lambda: raises(ImageError("word " * 1000)),
    "temporary-file": lambda: raises(ImageError(f"{tempfile.gettempdir()}/sharp_cog_x/depth.exr is broken")),
    "slow": lambda: (spin(), raises(ImageError("after long work"))),
    "large": lambda: hog(1_200_000_000),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(7),
    "hang": lambda: time.sleep(60),
    "endless-memory": lambda: [held for held in [bytearray(os.urandom(1)) * 1_800_000_000] if time.sleep(60)],
}

def target(name):
    def run(content):
        if not content.startswith(b"good"):
            return WRONG[name]()
        if content != b"good":
            raise ImageError("it is not good")
        return "a result"
    return Target(name, lambda: [b"good"], run, (ImageError,))

if __name__ == "__main__":
    campaign.KILL_BYTES = 1.5e9
    plan = campaign.Plan(num=300, seed=0, seconds=1, folder=Path(sys.argv[1]))
    campaign.run([target(name) for name in WRONG if name != "hang"], plan)
    campaign.HANG_S = 3.0
    campaign.run([target("hang")], plan)
"""

REASONS = {
    "another-error": "raised an improper error",
    "another-of-ours": "raised an improper error",
    "no-message": "the message ''",
    "two-lines": "not printable",
    "long-message": "more than 1000 characters",
    "temporary-file": "names a temporary file",
    "slow": "s of CPU",
    "large": "GB of memory",
    "crash": "exit status -11",
    "exit": "exit status 7",
    "hang": "had no answer after",
    "endless-memory": "GB of memory",
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    folder = tmp_path_factory.mktemp("campaign")
    subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, check=True, timeout=200)
    return {name: Report.read(folder / name / "report.json") for name in REASONS}


@pytest.mark.slow
@pytest.mark.parametrize("name", REASONS)
def test_a_fault_is_reported_and_its_input_is_kept(name: str, reports: dict[str, Report]) -> None:
    finding = reports[name].findings[0]
    assert REASONS[name] in finding.reason
    content = Path(finding.path).read_bytes()
    assert not content.startswith(b"good")
    assert hashlib.sha256(content).hexdigest()[:16] in finding.path
    assert finding.reason in Path(f"{finding.path}.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="atheris has no wheel")
def test_atheris_reaches_code_that_the_seeds_do_not_reach(tmp_path: Path) -> None:
    command: list[str | Path] = [
        ROOT / "scripts" / "fuzz",
        "depth-pfm",
        "--coverage",
        "--runs",
        "3000",
        "--folder",
        tmp_path,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    report = Report.read(tmp_path / "depth-pfm" / "report.json")
    assert (report.engine, report.inputs) == ("coverage", 3000)
    assert len(list((tmp_path / "depth-pfm" / "corpus").iterdir())) > len(registry()["depth-pfm"].seeds())
