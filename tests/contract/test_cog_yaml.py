"""cog.yaml against the rules of Cog 0.23.1, pyproject.toml and the files that it names."""

import ast
import base64
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from sharp_cog.runtime.ml_sharp import COMMIT

ROOT = Path(__file__).resolve().parents[2]
COG: dict[str, Any] = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# replicate/cog, pkg/config/data/config_schema_v1.0.json, without the deprecated python_packages and pre_install.
TOP_LEVEL_KEYS = {"build", "image", "model", "run", "predict", "train", "concurrency", "environment", "weights"}
BUILD_KEYS = {
    "cuda",
    "cudnn",
    "gpu",
    "python_version",
    "python_requirements",
    "system_packages",
    "sdk_version",
    "run",
}
CUDA_OF_TORCH = {"2.8.0": "12.8"}
"""CUDA of each torch in Cog's own matrix of compatible versions; these builds include sm_75, the T4."""


def test_only_keys_that_cog_knows() -> None:
    assert COG.keys() <= TOP_LEVEL_KEYS
    assert COG["build"].keys() <= BUILD_KEYS
    assert not {"run", "predict"} <= COG.keys()


def test_versions_are_quoted_strings() -> None:
    for key in ("cuda", "python_version", "sdk_version"):
        assert isinstance(COG["build"][key], str), key


def test_run_names_a_class_in_a_file_with_the_method_that_this_cog_wants() -> None:
    file, name = COG["run"].split(":")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    (predictor,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    assert [ast.unparse(base) for base in predictor.bases] == ["BaseRunner"]
    methods = {node.name for node in predictor.body if isinstance(node, ast.FunctionDef)}
    assert {"setup", "run"} <= methods
    assert "predict" not in methods


def test_versions_agree_with_pyproject() -> None:
    build = COG["build"]
    assert (ROOT / build["python_requirements"]).is_file()
    assert build["cuda"] == CUDA_OF_TORCH[PROJECT["tool"]["sharp-cog"]["torch"]["image"]]
    assert [f"cog=={build['sdk_version']}"] == PROJECT["project"]["optional-dependencies"]["cog"]
    requires_python = Requirement(f"python {PROJECT['project']['requires-python']}")
    assert build["python_version"] in requires_python.specifier


def test_build_commands_are_single_lines_that_install_only_pinned_content() -> None:
    for command in COG["build"]["run"]:
        assert "\n" not in command.strip()  # Cog refuses it
        if "pip install" not in command:
            assert "sha512sum -c" in command
            continue
        assert re.search(r"git fetch .* [0-9a-f]{40} ", command)
        _, arguments = command.split("pip install", 1)
        assert arguments.split("&&")[0].split() == ["--no-cache-dir", "--no-deps", "."], "packages: requirements.txt"


def test_the_viewer_is_the_one_that_the_lock_file_pins() -> None:
    (command,) = (command for command in COG["build"]["run"] if "supersplat-viewer" in command)
    lock = json.loads((ROOT / "viewer" / "package-lock.json").read_text(encoding="utf-8"))
    package = lock["packages"]["node_modules/@playcanvas/supersplat-viewer"]
    algorithm, _, digest = package["integrity"].partition("-")
    assert algorithm == "sha512"
    assert f"/supersplat-viewer-{package['version']}.tgz" in command
    assert f'echo "{base64.b64decode(digest).hex()}  /tmp/viewer.tgz"' in command
    (folder,) = re.findall(r"tar -xzf \S+ -C (\S+)", command)
    assert f"SHARP_VIEWER_DIR={folder}" in COG["environment"]
    wanted = json.loads((ROOT / "viewer" / "package.json").read_text(encoding="utf-8"))["dependencies"]
    assert wanted == {"@playcanvas/supersplat-viewer": package["version"]}


def test_apple_package_is_pinned_to_the_commit_that_the_adapter_was_written_for() -> None:
    (command,) = (command for command in COG["build"]["run"] if "apple/ml-sharp" in command)
    steps = [step.strip() for step in command.split("&&")]
    fetch = next(index for index, step in enumerate(steps) if step.startswith("git fetch"))
    remove = steps.index("rm .python-version")
    install = next(index for index, step in enumerate(steps) if "pip install" in step)
    assert steps[fetch].endswith(COMMIT)
    assert fetch < remove < install
    assert "git" in COG["build"]["system_packages"]


def test_triton_has_a_compiler_for_its_launchers() -> None:
    assert {"gcc", "libc6-dev"} <= set(COG["build"]["system_packages"])


def test_the_packages_of_apples_code_fit_the_torch_of_the_image() -> None:
    torch_minor = int(PROJECT["tool"]["sharp-cog"]["torch"]["image"].split(".")[1])
    installed = dict(line.split("==") for line in PROJECT["tool"]["sharp-cog"]["image"]["ml-sharp"])
    assert {"timm", "torchvision", "plyfile", "scipy"} <= installed.keys()
    # torchvision 0.(m + 15) is built for torch 2.m.
    assert installed["torchvision"].startswith(f"0.{torch_minor + 15}.")
    tested = {r.name: str(r.specifier) for r in map(Requirement, PROJECT["project"]["optional-dependencies"]["test"])}
    for name in ("plyfile", "scipy"):
        assert tested[name] == f"=={installed[name]}"


def test_image_and_serve_script_set_the_same_environment() -> None:
    serve = (ROOT / "scripts" / "serve").read_text(encoding="utf-8")
    for assignment in COG["environment"]:
        name, value = assignment.split("=")
        if name == "SHARP_VIEWER_DIR":
            continue  # scripts/viewer installs into the repository, which is the default place.
        assert f'export {name}="${{{name}:-{value}}}"' in serve
    assert f"COG_PREDICT_TYPE_STUB={COG['run']}\n" in serve


def test_the_docker_context_keeps_the_files_of_the_image() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip("/") for line in lines if line and not line.startswith("#")]
    needed = [".cog", "predict.py", "requirements.txt", "sharp_cog", "cog.yaml"]
    assert not [(name, pattern) for name in needed for pattern in patterns if Path(name).match(pattern)]
