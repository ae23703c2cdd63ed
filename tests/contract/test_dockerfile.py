"""deploy/runpod/Dockerfile without Docker: its instructions and, in the slow suite, the effect of its layers."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sharp_cog.serving import runpod

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "runpod" / "Dockerfile"

READ_ONLY = [
    *("unshare", "--map-root-user", "--mount", "sh", "-euc"),
    'mount --bind "$TMPDIR" "$TMPDIR"; mount -o remount,bind,ro /\n'
    'if touch "$HOME/written" 2>/dev/null; then exit 9; fi; exec "$@"',
    "sh",
]
"""Command that runs another one where only TMPDIR can be written."""


def instructions() -> list[tuple[str, str]]:
    """Return all instructions in order, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for name, rest in last_stage() if name == "ENV" for pair in shlex.split(rest))


def test_bases_are_pinned_and_slim() -> None:
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert len(bases) == 2
    for base in bases:
        assert re.fullmatch(r"(node|python):\d+\.\d+(\.\d+)?-(slim-bookworm|bookworm-slim)", base)
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert requires.startswith(">=3.11")
    assert bases[-1].startswith("python:3.11")


def test_triton_has_a_compiler_and_a_cache_for_its_launchers() -> None:
    installs = next(rest for name, rest in last_stage() if name == "RUN" and "apt-get install" in rest)
    assert {"gcc", "libc6-dev"} <= set(installs.split())
    assert environment()["TRITON_CACHE_DIR"].startswith("/tmp/")


def test_the_container_does_not_run_as_root() -> None:
    users = [rest for name, rest in last_stage() if name == "USER"]
    assert users[-1] == "1000"
    created = next(rest for name, rest in last_stage() if name == "RUN" and "useradd" in rest)
    assert "--uid 1000" in created


def test_packages_are_installed_by_their_hashes() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and ("pip install" in rest or "npm" in rest)]
    lock, requirements, package = installs
    assert lock.startswith("npm ci ")
    assert "--require-hashes --requirement requirements.txt" in requirements
    assert package.endswith("--no-deps --no-build-isolation .")


def test_copied_files_exist_and_are_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name, rest in instructions():
        if name != "COPY" or "--from=" in rest:
            continue
        *sources, _ = rest.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source not in ignored


def test_the_viewer_is_the_locked_one_in_the_folder_of_the_setting() -> None:
    copied = next(rest for name, rest in last_stage() if name == "COPY" and "--from=viewer" in rest)
    _, source, target = copied.split()
    assert source == "/viewer/node_modules/@playcanvas/supersplat-viewer/public"
    assert environment()["SHARP_VIEWER_DIR"] == target


def test_the_health_check_looks_for_the_file_of_the_worker() -> None:
    check = next(rest for name, rest in last_stage() if name == "HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["test", "-e", "/tmp/sharp_cog.ready"]
    assert runpod.READY.name == "sharp_cog.ready"


def test_weights_are_included_only_on_request_and_with_their_licence() -> None:
    bake = next(rest for name, rest in last_stage() if name == "RUN" and "BAKE_WEIGHTS" in rest)
    assert bake == 'if [ "$BAKE_WEIGHTS" = 1 ]; then sharp-cog download; fi'
    assert ("ARG", "BAKE_WEIGHTS=0") in last_stage()
    assert "Apple Machine Learning Research Model License Agreement" in DOCKERFILE.read_text().replace("\n# ", " ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_layers_make_a_worker_that_answers_a_job(tmp_path: Path) -> None:
    """Runs every COPY and RUN of the last stage in a new folder and virtual environment, then a job by its CMD.

    The installed torch replaces the image's, and `useradd` does nothing. The job runs once as it is and once as with
    `docker run --read-only --tmpfs /tmp`.
    """
    app, tools = tmp_path / "app", tmp_path / "tools"
    app.mkdir()
    tools.mkdir()
    (tools / "useradd").write_text("#!/bin/sh\n")
    (tools / "useradd").chmod(0o755)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    # Installed packages count as installed, except this one, which must come from the layers.
    here = next(path for path in sys.path if path.endswith("site-packages"))
    site = next((tmp_path / "venv" / "lib").iterdir()) / "site-packages"
    (site / "here.pth").write_text(f"{here}\n")
    paths = f"{tmp_path / 'venv' / 'bin'}:{tools}:{os.environ['PATH']}"
    values = {**environment(), "PATH": paths, "HOME": str(tmp_path), "BAKE_WEIGHTS": "0"}
    for name, rest in last_stage():
        if name == "COPY" and "--from=" not in rest:
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, app / target, is_folder=target.endswith("/"))
            if "requirements" in rest:
                requirements = (app / "requirements.txt").read_text()
                (app / "requirements.txt").write_text(without_torch(requirements))
        elif name == "RUN":
            command = rest.replace("/models", str(tmp_path / "models")).replace("chown sharp", "true")
            subprocess.run(["sh", "-euc", command], check=True, cwd=app, env=values, timeout=600)
    assert (site / "sharp_cog" / "serving" / "page.html").is_file()
    shutil.rmtree(app / "sharp_cog")  # The job must run the installed package.
    start = json.loads(next(rest for name, rest in last_stage() if name == "CMD"))
    job = json.dumps({"id": "job", "input": {"image": "aGFsbG8="}})
    for number, prefix in enumerate(([], READ_ONLY)):
        temporary = tmp_path / f"tmp{number}"
        temporary.mkdir()
        result = subprocess.run(
            [*prefix, *start, "--test_input", job],
            cwd=app,
            env={**values, "TMPDIR": str(temporary), "NUMBA_CACHE_DIR": str(temporary), "SHARP_MODEL": "lift"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "the bytes are not an image" in result.stdout + result.stderr, result.stdout + result.stderr
        assert (temporary / "sharp_cog.ready").exists()


def without_torch(requirements: str) -> str:
    """Remove torch and its own dependencies, since the installed torch is used."""
    large = r"^(torch|triton|nvidia-[a-z0-9-]+) == .*\n(?: +--hash=.*\n)*"
    return re.sub(large, "", requirements, flags=re.MULTILINE)


def copy(source: Path, target: Path, *, is_folder: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name if is_folder or target.is_dir() else target)
