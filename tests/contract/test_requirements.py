"""requirements.txt of Cog, RunPod and Modal against pyproject.toml and pip."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
OURS = PROJECT["tool"]["sharp-cog"]


def _lines_of(*extras: str) -> list[str]:
    return [line for name in extras for line in EXTRAS[name]]


FILES = {
    "requirements.txt": [*OURS["image"]["ml-sharp"], *_lines_of("preview", "usd", "http", "guard")],
    "deploy/runpod/requirements.txt": _lines_of("preview", "bucket", "runpod", "spz", "usd"),
    "deploy/modal/requirements.txt": _lines_of("preview", "modal", "http", "spz", "usd"),
}
NUMPY = next(line for line in PROJECT["project"]["dependencies"] if line.startswith("numpy=="))


def lines(path: Path) -> list[str]:
    """Return the requirements, each with its hashes in one line, as pip joins them."""
    joined = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [line for line in joined if line and not line.startswith("#")]


def pins(path: Path) -> dict[str, str]:
    """Return the versions by name."""
    found: dict[str, str] = {}
    for line in lines(path):
        requirement = Requirement(line.partition("--hash")[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "=="
        assert canonicalize_name(requirement.name) not in found, requirement.name
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def declared(name: str) -> Iterator[Requirement]:
    wanted = [*PROJECT["project"]["dependencies"], *FILES[name]]
    yield from map(Requirement, (line for line in wanted if not line.startswith("sharp-cog[")))


def run_script(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "requirements"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def copy_with(tmp_path: Path, numpy: str) -> Path:
    """Copy the script and its files, with another NumPy in pyproject.toml."""
    for name in ("scripts/requirements", *FILES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8").replace(NUMPY, numpy)
    (tmp_path / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    return tmp_path


def test_requirements_are_what_the_script_writes() -> None:
    assert run_script(ROOT, "--check").returncode == 0


@pytest.mark.parametrize("name", FILES)
def test_requirements_pin_every_dependency_within_what_pyproject_allows(name: str) -> None:
    found = pins(ROOT / name)
    for requirement in declared(name):
        assert found[canonicalize_name(requirement.name)] in requirement.specifier, requirement.name


@pytest.mark.parametrize("name", FILES)
def test_every_line_has_its_hashes(name: str) -> None:
    for line in lines(ROOT / name):
        assert re.fullmatch(r"[a-z0-9._-]+ == [0-9][0-9a-z.+]*(\s+--hash=sha256:[0-9a-f]{64})+", line), line[:80]


def test_cog_keeps_the_lines_as_they_are() -> None:
    """Cog rewrites lines like `name==version` without hashes, and keeps other lines (its pkg/requirements)."""
    for line in lines(ROOT / "requirements.txt"):
        assert not re.search(r"[a-zA-Z0-9\-_]+==[^ ]+|--find-links=|-f\s+|--extra-index-url=", line), line[:80]


@pytest.mark.parametrize("name", FILES)
def test_image_takes_its_own_torch_and_leaves_the_cog_sdk_to_cog(name: str) -> None:
    found = pins(ROOT / name)
    assert found["torch"] == OURS["torch"]["image"]
    (torch,) = (r for r in declared(name) if r.name == "torch")
    assert OURS["torch"]["local"] in torch.specifier
    assert not {"cog", "coglet"} & found.keys()


def test_check_notices_a_changed_dependency(tmp_path: Path) -> None:
    refusal = run_script(copy_with(tmp_path, "numpy==2.0.1"), "--check")
    assert refusal.returncode == 1
    assert all(name in refusal.stderr for name in FILES)
    assert "run scripts/requirements" in refusal.stderr


def test_an_unpinned_dependency_is_refused(tmp_path: Path) -> None:
    refusal = run_script(copy_with(tmp_path, "numpy>=2"))
    assert refusal.returncode != 0
    assert "'numpy>=2' is not pinned" in refusal.stderr


@pytest.mark.slow
def test_the_script_updates_one_dependency_and_moves_no_other(tmp_path: Path) -> None:
    copy = copy_with(tmp_path, "numpy==2.4.5")
    before = {name: pins(copy / name) for name in FILES}
    (copy / ".venv").symlink_to(ROOT / ".venv")
    done = run_script(copy)
    assert done.returncode == 0, done.stderr
    assert run_script(copy, "--check").returncode == 0
    for name in FILES:
        assert pins(copy / name) == {**before[name], "numpy": "2.4.5"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FILES)
def test_pip_accepts_the_hashes(tmp_path: Path, name: str) -> None:
    """torch and its own dependencies are left out, since they take gigabytes."""
    large = re.compile(r"(torch|torchvision|triton|nvidia-[a-z0-9-]+) ")
    path = tmp_path / "requirements.txt"
    path.write_text("\n".join(line for line in lines(ROOT / name) if not large.match(line)), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_17", "2014", "_2_12", "1")]
    target = ["--python-version", "3.11", *platforms, "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, *target, "--dest", str(tmp_path / "wheels"), "--requirement", str(path)],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "wheels").iterdir())) == len(path.read_text(encoding="utf-8").splitlines())
