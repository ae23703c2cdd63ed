"""requirements.txt, which Cog installs in the image, against pyproject.toml."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if not line.startswith("#")]
    return {requirement.name: requirement for requirement in parsed}


def pinned_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


def run_script(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts" / "requirements"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_requirements_are_what_the_script_writes() -> None:
    assert run_script(ROOT, "--check").returncode == 0


def test_requirements_pin_every_dependency_within_what_pyproject_allows() -> None:
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["preview"]]
    declared = {requirement.name: requirement for requirement in map(Requirement, wanted)}
    assert requirements().keys() == declared.keys()
    for name, requirement in requirements().items():
        assert pinned_version(requirement) in declared[name].specifier, name


def test_image_takes_its_own_torch_and_leaves_the_cog_sdk_to_cog() -> None:
    torch = PROJECT["tool"]["sharp-cog"]["torch"]
    assert pinned_version(requirements()["torch"]) == torch["image"]
    (declared,) = (r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == "torch")
    assert torch["local"] in declared.specifier
    assert not {"cog", "coglet"} & requirements().keys()


def test_check_notices_a_changed_dependency_and_writing_mends_it(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "requirements", tmp_path / "scripts")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    numpy = next(line for line in PROJECT["project"]["dependencies"] if line.startswith("numpy=="))
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8").replace(numpy, "numpy==2.0.1")
    (tmp_path / "pyproject.toml").write_text(pyproject, encoding="utf-8")

    refusal = run_script(tmp_path, "--check")
    assert refusal.returncode == 1
    assert "scripts/requirements" in refusal.stderr
    assert run_script(tmp_path).returncode == 0
    assert "\nnumpy==2.0.1\n" in (tmp_path / "requirements.txt").read_text(encoding="utf-8")
    assert run_script(tmp_path, "--check").returncode == 0


def test_an_unpinned_dependency_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "requirements", tmp_path / "scripts")
    numpy = next(line for line in PROJECT["project"]["dependencies"] if line.startswith("numpy=="))
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8").replace(numpy, "numpy>=2")
    (tmp_path / "pyproject.toml").write_text(pyproject, encoding="utf-8")

    refusal = run_script(tmp_path)
    assert refusal.returncode != 0
    assert "'numpy>=2' is not pinned" in refusal.stderr
    assert not (tmp_path / "requirements.txt").exists()
