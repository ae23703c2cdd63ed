"""Check of everything that only a CUDA device can show, on a machine with nothing installed but PyTorch.

    scripts/gpu-check                              results in gpu-check/
    scripts/gpu-check --python .venv/bin/python    with another interpreter than the first one that has PyTorch
    scripts/gpu-check --download wheels            on a machine with network: fetch the packages for ...
    scripts/gpu-check --wheels wheels              ... a machine without

The steps are processes of their own, most important first. A step that fails or takes too long does not stop the next
one, and a step whose packages are missing is reported as not run. The weights are synthetic, of the released sizes, and
are made once. The results are one JSON file, one table in Markdown, and the output of each step.

Exit code: 0 if every step passed or could not run for want of a package, 1 if one failed, 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Only the standard library: this module runs before anything is installed.

ROOT = Path(__file__).resolve().parent.parent

LIMIT_S = 480.0
"""Seconds for the whole check, installation included."""

PACKAGES = {
    "numpy": "numpy",
    "PIL": "pillow",
    "pillow_heif": "pillow-heif",
    "requests": "requests",
    "certifi": "certifi",
    "filelock": "filelock",
    "tqdm": "tqdm",
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
    "hypothesis": "hypothesis",
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "orjson": "orjson",
    "prometheus_client": "prometheus-client",
    "numba": "numba",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "psutil": "psutil",
}
"""Names of the packages that the steps need, by the module to import. Versions are those of pyproject.toml."""

CORE = ("numpy", "PIL", "pillow_heif", "requests", "certifi", "filelock", "tqdm")
"""Modules without which no step runs."""

FACTS = """
import json, platform, torch
device = torch.device("cuda")
properties = torch.cuda.get_device_properties(device)
print(json.dumps({
    "device": torch.cuda.get_device_name(device),
    "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
    "memory_gb": round(properties.total_memory / 1e9, 1),
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "python": platform.python_version(),
}))
"""

WEIGHTS = """
import sys
from concurrent.futures import ThreadPoolExecutor
import torch
from tests.data.parity import synthetic
from tests.parity import shapes
named = shapes("full")
with ThreadPoolExecutor() as pool:
    arrays = pool.map(lambda name: synthetic.parameter(name, named[name]), named)
    torch.save({name: torch.from_numpy(array) for name, array in zip(named, arrays)}, sys.argv[1])
"""

FILM = """
import dataclasses, json, sys, time
import numpy as np
from benchmarks.stages import synthetic_depth, synthetic_image
from sharp_cog import PredictOptions, Settings, SharpPipeline
from sharp_cog.preview.render import render
from sharp_cog.preview.view import View

film, device = sys.argv[1:]
pipeline = SharpPipeline.load(Settings(model="lift", device=device))
options = PredictOptions(output_format="mp4", depth_format="metric")
prediction = pipeline(synthetic_image(), options, depth=synthetic_depth())
start = time.perf_counter()
prediction.write(film)
film_s = time.perf_counter() - start
view, gaussians = View.of_photograph(prediction.camera, width=1280), prediction.gaussians
fields = {field.name: getattr(gaussians, field.name) for field in dataclasses.fields(gaussians)}
on_cpu = dataclasses.replace(gaussians, **{name: value.cpu() for name, value in fields.items() if value is not None})
ours, exact = (render(scene, view)[0].astype(np.float64) for scene in (gaussians, on_cpu))
mean_square = float(np.square(ours - exact).mean())
psnr_db = 10 * np.log10(255.0**2 / mean_square) if mean_square else 100.0
print(json.dumps({"film_s": film_s, "psnr_to_cpu_db": psnr_db}))
sys.exit(0 if psnr_db >= 40 else 1)
"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process of the check.

    Attributes:
        name: Name in the table, and of the file with its output.
        arguments: Arguments of the interpreter.
        limit_s: Seconds after which it is killed.
        needs: Modules that it imports beyond the core.
        figures: Reader of its figures from its output and the folder of the results; it may return an empty mapping.
    """

    name: str
    arguments: Sequence[str]
    limit_s: float
    needs: Sequence[str] = ()
    figures: Callable[[str, Path], dict[str, Any]] = lambda output, folder: {}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a step: `passed`, `failed`, `timed out` or `not run`, with the reason if it did not pass."""

    name: str
    result: str
    seconds: float = 0.0
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def steps(folder: Path) -> list[Step]:
    """Return the steps, most important first; their files go to `folder`."""
    weights = str(folder / "synthetic.pt")
    return [
        Step(name="weights", arguments=["-c", WEIGHTS, weights], limit_s=90),
        _tests("device", "tests/gpu/test_cuda.py", folder, limit_s=180),
        Step(
            name="compare",
            arguments=[
                *("-m", "benchmarks.compare", "--device", "cuda", "--repeat", "3"),
                *("--checkpoint", weights, "--json", str(folder / "compare.json")),
            ],
            limit_s=180,
            figures=_compared,
        ),
        Step(
            name="stream",
            arguments=[
                *("-m", "benchmarks.stream", "--model", "random", "--device", "cuda", "--num", "40"),
                *("--json", str(folder / "stream.json")),
            ],
            limit_s=90,
            figures=_json_file("stream.json"),
        ),
        _tests(
            "faults",
            "tests/gpu/test_faults.py",
            folder,
            limit_s=180,
            needs=("fastapi", "uvicorn", "python_multipart", "orjson", "prometheus_client"),
        ),
        Step(
            name="film",
            arguments=["-c", FILM, str(folder / "film.mp4"), "cuda"],
            limit_s=120,
            needs=("gsplat", "numba", "imageio_ffmpeg"),
            figures=lambda output, folder: _last_json(output),
        ),
    ]


def _tests(name: str, path: str, folder: Path, *, limit_s: float, needs: Sequence[str] = ()) -> Step:
    """Return a step that runs a file of tests, whose figures are the result of each test and what it printed."""
    report = folder / f"{name}.xml"
    return Step(
        name=name,
        arguments=[
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "junit_logging=all",
            path,
            f"--junitxml={report}",
        ],
        limit_s=limit_s,
        needs=("pytest", "pytest_timeout", "hypothesis", *needs),
        figures=lambda output, folder: _junit(report),
    )


def _junit(report: Path) -> dict[str, Any]:
    if not report.exists():  # pytest was killed, or could not collect.
        return {}
    found: dict[str, Any] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next(
            (case.find(kind) for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None
        )
        printed = (case.findtext("system-out") or "").strip().splitlines()
        found[case.get("name", "")] = {
            "result": "passed" if problem is None else problem.tag,
            "seconds": float(case.get("time", 0)),
            "message": "" if problem is None else (problem.get("message") or "")[:500],
            "printed": [line for line in printed if line and not line.startswith("-----")],
        }
    return found


def _compared(output: str, folder: Path) -> dict[str, Any]:
    report = _json_file("compare.json")(output, folder)
    return {key: report[key] for key in ("rows", "digits", "notes") if key in report}


def _json_file(name: str) -> Callable[[str, Path], dict[str, Any]]:
    def read(output: str, folder: Path) -> dict[str, Any]:
        path = folder / name
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

    return read


def _last_json(output: str) -> dict[str, Any]:
    """Return the last line of an output that is a JSON object; an empty mapping if there is none."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return {}


def run_step(step: Step, python: str, environment: dict[str, str], folder: Path, *, left_s: float) -> Outcome:
    """Run a step, write its output to `<name>.log`, and return its outcome.

    Args:
        step: The step.
        python: Interpreter.
        environment: Variables of the process.
        folder: Folder of the results.
        left_s: Seconds that the whole check has left.
    """
    missing = [module for module in step.needs if not can_import(module, python, environment)]
    if missing:
        return Outcome(name=step.name, result="not run", reason=f"not installed: {', '.join(missing)}")
    if left_s < 5:
        return Outcome(name=step.name, result="not run", reason="no time was left")
    start = time.monotonic()
    log = folder / f"{step.name}.log"
    limit_s = min(step.limit_s, left_s)
    with log.open("wb") as file:
        # A process group of its own, so that the children of a step that takes too long end with it.
        process = subprocess.Popen(
            [python, *step.arguments],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
            result, reason = ("passed", "") if code == 0 else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            result, reason = "timed out", f"took more than {limit_s:.0f} s"
    output = log.read_text(encoding="utf-8", errors="replace")
    if result == "failed":
        last = [line for line in output.splitlines() if line.strip()][-1:]
        reason = f"{reason}: {last[0].strip()[:200]}" if last else reason
    try:
        figures = step.figures(output, folder)
    except (ValueError, KeyError, ElementTree.ParseError) as error:  # The step wrote half of its report.
        figures = {"unreadable": str(error)}
    return Outcome(name=step.name, result=result, seconds=time.monotonic() - start, reason=reason, figures=figures)


def can_import(module: str, python: str, environment: dict[str, str]) -> bool:
    """Report whether an interpreter finds a module."""
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", program], env=environment, cwd=ROOT, check=False).returncode == 0


def find_python(wanted: str | None) -> str | None:
    """Return the interpreter to use: the one that was asked for, else the first one that has PyTorch; None if none."""
    candidates = [wanted] if wanted else [str(ROOT / ".venv" / "bin" / "python"), sys.executable, "python3"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found and can_import("torch", found, dict(os.environ)):
            return found
    return None


def requirements() -> dict[str, str]:
    """Return the pinned requirement of each package of `PACKAGES`, by the module to import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pins = {line.split("==")[0].strip().lower(): line for line in lines if "==" in line and ";" not in line}
    return {module: pins[package] for module, package in PACKAGES.items()}


def install(python: str, environment: dict[str, str], target: Path, wheels: Path | None) -> str:
    """Install the packages that the interpreter lacks into a folder, and leave its own environment as it is.

    Args:
        python: Interpreter.
        environment: Variables of its processes, which see the folder.
        target: Folder to install into.
        wheels: Folder of wheels; None uses the package index.

    Returns:
        The last line of pip's error; empty if nothing is missing any more.
    """
    missing = [line for module, line in requirements().items() if not can_import(module, python, environment)]
    if not missing:
        return ""
    source = ["--no-index", "--find-links", str(wheels)] if wheels else ["--timeout", "10", "--retries", "1"]
    # An interpreter without pip belongs to uv, which brings its own.
    result = subprocess.run(
        [
            *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--target", str(target), *source, *missing),
        ],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if result.returncode == 0 else (result.stderr.strip().splitlines() or ["pip failed"])[-1]


def download(folder: Path, python_version: str) -> int:
    """Fetch the wheels of all packages for Linux on x86-64, with what they need; return pip's exit code."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)] + ["manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--python-version", python_version]
    command += ["--dest", str(folder), *(part for name in platforms for part in ("--platform", name))]
    return subprocess.run([*command, *requirements().values()], check=False).returncode


def table(report: dict[str, Any]) -> str:
    """Format the report as Markdown."""
    facts = report["facts"]
    lines = [
        f"{facts['device']} (sm {facts['capability']}, {facts['memory_gb']} GB), torch {facts['torch']}, CUDA "
        f"{facts['cuda']}, Python {facts['python']}, sharp_cog {report['revision']}, {report['date']}, "
        f"{report['seconds']:.0f} s",
        "",
        "| step | result | seconds | |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {outcome['name']} | {outcome['result']} | {outcome['seconds']:.0f} | {outcome['reason']} |"
        for outcome in report["outcomes"]
    ]
    figures = {outcome["name"]: outcome["figures"] for outcome in report["outcomes"]}
    for name in ("device", "faults"):
        if figures.get(name):
            lines += ["", f"| {name} | result | seconds | |", "| --- | --- | --- | --- |"]
            for test, found in figures[name].items():
                said = "; ".join(found["printed"] or found["message"].splitlines()[:1]).replace("|", "/")
                lines.append(f"| {test} | {found['result']} | {found['seconds']:.1f} | {said} |")
    rows = figures.get("compare", {}).get("rows", [])
    if rows:
        lines += ["", "| | network s | total s | network to floor | peak GB |", "| --- | --- | --- | --- | --- |"]
        for row in rows:
            network_s = row["seconds"].get("network", float("nan"))
            lines.append(
                f"| {row['name']} | {network_s:.3f} | {row['total_s']:.3f} | {network_s / row['floor_s']:.1f} x | "
                f"{row['peak_bytes'] / 1e9:.1f} |"
            )
    stream = figures.get("stream")
    if stream:
        lines += ["", f"Stream: {stream['pictures_per_s']:.2f} images a second, idle {stream['idle_share']:.1%}."]
    film = figures.get("film")
    if film:
        lines += ["", f"Film: {film['film_s']:.1f} s, {film['psnr_to_cpu_db']:.1f} dB to the CPU's image."]
    return "\n".join(lines) + "\n"


def revision() -> str:
    """Return the short name of the commit; `unknown` outside of a repository."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"


def check(python: str, folder: Path, *, wheels: Path | None, limit_s: float, only: Sequence[str]) -> int:
    """Install what is missing, run the steps, and write `gpu-check.json` and `gpu-check.md`; return the exit code."""
    start = time.monotonic()
    target = folder / "packages"
    paths = [str(ROOT), str(target)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "SHARP_TEST_WEIGHTS": str(folder / "synthetic.pt"),
    }
    facts = subprocess.run([python, "-c", FACTS], env=environment, capture_output=True, text=True, check=False)
    if facts.returncode:
        last = (facts.stderr.strip().splitlines() or ["no output"])[-1]
        print(
            f"gpu-check: {python} has no CUDA device ({last}): run it on a machine with an NVIDIA GPU", file=sys.stderr
        )
        return 2
    print(facts.stdout.strip(), flush=True)
    problem = install(python, environment, target, wheels)
    if problem:
        print(f"gpu-check: some packages are missing: {problem}", file=sys.stderr)
    lacking = [module for module in CORE if not can_import(module, python, environment)]
    outcomes = []
    for step in steps(folder):
        if only and step.name not in (*only, "weights"):
            continue
        if lacking:
            outcome = Outcome(name=step.name, result="not run", reason=f"not installed: {', '.join(lacking)}")
        else:
            left_s = limit_s - (time.monotonic() - start)
            outcome = run_step(step, python, environment, folder, left_s=left_s)
        outcomes.append(outcome)
        print(f"{outcome.name}: {outcome.result} in {outcome.seconds:.0f} s {outcome.reason}".rstrip(), flush=True)
        report = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "revision": revision(),
            "seconds": time.monotonic() - start,
            "facts": json.loads(facts.stdout),
            "outcomes": [asdict(found) for found in outcomes],
        }
        # After each step, so that a check that is interrupted leaves what it found.
        (folder / "gpu-check.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (folder / "gpu-check.md").write_text(table(report), encoding="utf-8")
    (folder / "synthetic.pt").unlink(missing_ok=True)
    print(f"\n{(folder / 'gpu-check.md').read_text(encoding='utf-8')}")
    return 1 if any(outcome.result in ("failed", "timed out") for outcome in outcomes) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check, or fetch its packages."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", metavar="PATH", help="interpreter with PyTorch (default: .venv, else this one)")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="FOLDER", help="default: gpu-check")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="install missing packages from these wheels")
    parser.add_argument("--download", type=Path, metavar="FOLDER", help="only fetch the wheels, for --wheels")
    parser.add_argument("--python-version", default="3.12", help="version that --download fetches for (default: 3.12)")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, metavar="S", help="default: 480")
    parser.add_argument("--only", nargs="+", default=(), metavar="STEP", help="run only these steps")
    arguments = parser.parse_args(argv)
    if arguments.download:
        return download(arguments.download, arguments.python_version)
    python = find_python(arguments.python)
    if python is None:
        print("gpu-check: no interpreter with PyTorch was found: install torch, or give --python PATH", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    return check(
        python,
        arguments.out.resolve(),
        wheels=arguments.wheels and arguments.wheels.resolve(),
        limit_s=arguments.limit_s,
        only=arguments.only,
    )
