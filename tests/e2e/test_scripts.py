"""Scripts and commands as a person starts them, with real processes and real signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import plyfile
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
NUM_VISIBLE = 768 * 768

STUB_PYTHON = """\
#!{bash}
# A stub of Python, which logs its arguments, creates an empty environment, and installs nothing.
echo "$*" >>"{log}"
case "$1 ${{2:-}}" in
  "-m venv")
    [[ ! -e "{folder}/no-venv" ]] || exit 1
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cp "$0" "$3/bin/pip"
    ;;
  "-m pip")
    [[ ! -e "{folder}/no-network" && -e "$(dirname "$0")/pip" ]] || exit 1
    sleep 0.2
    printf '#!{bash}\\necho "$PWD: $*"\\n' >"$(dirname "$0")/sharp-cog"
    chmod +x "$(dirname "$0")/sharp-cog"
    ;;
  *) exec "{python}" "$@" ;;
esac
"""


class Checkout:
    """A copy of the scripts in another folder, with only a few tools and a stub of Python on PATH."""

    def __init__(self, folder: Path) -> None:
        # People's folders have spaces in their names.
        self.root = folder / "a check out"
        self.log = folder / "log"
        self.tools = folder / "tools"
        self.folder = folder
        self.tools.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for tool in ("bash", "cat", "chmod", "cksum", "cp", "dirname", "env", "flock", "mkdir", "rm", "sleep"):
            found = shutil.which(tool)
            assert found is not None, f"the test needs {tool}"
            (self.tools / tool).symlink_to(found)

    def add_python(self) -> None:
        stub = self.tools / "python3.11"
        bash = self.tools / "bash"
        stub.write_text(STUB_PYTHON.format(bash=bash, log=self.log, folder=self.folder, python=sys.executable))
        stub.chmod(0o755)

    def start(self, *arguments: str, script: str = "predict") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "scripts" / script), *arguments],
            cwd=self.folder,
            env={"PATH": str(self.tools)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def predict(self, *arguments: str, script: str = "predict") -> tuple[int, str, str]:
        """Run a script and return its exit code, stdout and stderr."""
        process = self.start(*arguments, script=script)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def installed(self) -> list[str]:
        """Return the arguments of each call of pip."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith("-m pip install")]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_run_installs_and_the_second_starts_at_once(checkout: Checkout) -> None:
    checkout.add_python()
    code, out, err = checkout.predict("my photo.jpg", "-o", "b.ply")
    assert code == 0
    # The command runs in the caller's folder, with the caller's arguments.
    assert out == f"{checkout.folder}: predict my photo.jpg -o b.ply\n"
    assert "installing" in err
    installed = " ".join(checkout.installed())
    assert "torch==2." in installed
    assert installed.endswith(f"--editable {checkout.root}[hub,preview]")
    assert "index-url" not in installed

    checkout.log.unlink()
    code, out, err = checkout.predict("c.jpg")
    assert (code, out, err) == (0, f"{checkout.folder}: predict c.jpg\n", "")
    assert not checkout.log.exists(), "Python was started though nothing had changed"


def test_the_http_service_installs_only_what_it_needs(checkout: Checkout) -> None:
    checkout.add_python()
    code, out, err = checkout.predict("--http", "--port", "8123", "--model", "lift", script="serve")
    assert code == 0, err
    assert out == f"{checkout.folder}: serve --http --host 127.0.0.1 --port 8123\n"
    assert " ".join(checkout.installed()).endswith(f"--editable {checkout.root}[http,preview,spz,usd]")
    assert "without the viewer, the page only offers downloads: install npm" in err
    code, _, err = checkout.predict("--http", "--upload-url", "http://localhost/", script="serve")
    assert code == 2
    assert "--upload-url is for Cog's server, not for --http" in err
    assert checkout.predict("--http", "--port", "http", script="serve")[0] == 2


def test_changed_dependencies_are_installed(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.predict()
    checkout.log.unlink()
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert checkout.predict()[0] == 0
    assert checkout.installed()


def test_a_failed_installation_is_reported_and_tried_again(checkout: Checkout) -> None:
    checkout.add_python()
    (checkout.folder / "no-network").touch()
    code, out, err = checkout.predict("a.jpg")
    assert code == 1
    assert out == ""
    assert "the installation failed" in err
    (checkout.folder / "no-network").unlink()
    assert checkout.predict("a.jpg")[0] == 0


def test_an_environment_that_was_interrupted_is_completed(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.predict("a.jpg")[0] == 0
    # Ctrl-C leaves an environment with Python, but without pip and the stamp.
    for name in ("bin/pip", "bin/sharp-cog", ".sharp-cog-hub-preview"):
        (checkout.root / ".venv" / name).unlink()
    assert checkout.predict("a.jpg")[0] == 0


def test_scripts_that_start_together_install_once(checkout: Checkout) -> None:
    checkout.add_python()
    processes = [checkout.start(f"{number}.jpg") for number in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert outputs == [f"{checkout.folder}: predict {number}.jpg\n" for number in range(3)]
    requests = checkout.installed()
    assert len(requests) == len(set(requests)), "one package was installed twice"


def test_without_python_the_message_names_the_versions(checkout: Checkout) -> None:
    code, _, err = checkout.predict("a.jpg")
    assert code == 1
    assert "3.11" in err
    assert not (checkout.root / ".venv").exists()


def test_without_the_venv_module_the_message_names_the_package(checkout: Checkout) -> None:
    checkout.add_python()
    (checkout.folder / "no-venv").touch()
    code, _, err = checkout.predict("a.jpg")
    assert code == 1
    assert "sudo apt install python3" in err
    assert "-venv" in err
    assert not (checkout.root / ".venv").exists()


def write_image(path: Path, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two images with one depth map for both."""
    (tmp_path / "photos").mkdir()
    for number in range(2):
        write_image(tmp_path / "photos" / f"{number}.jpg", seed=number)
    depth_mm = (1000 / np.linspace(0.25, 1, 48)).astype(np.uint16).repeat(64).reshape(48, 64)  # A floor.
    Image.fromarray(depth_mm).save(tmp_path / "depth.png")
    return tmp_path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sharp_cog", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return the environment without the caller's settings, and with the package under test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHARP_")}
    return {**kept, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def check_splat(path: Path) -> None:
    vertices = plyfile.PlyData.read(path)["vertex"]
    assert NUM_VISIBLE < vertices.count < 2 * NUM_VISIBLE
    for name in ("x", "z", "opacity", "scale_0", "rot_0"):
        assert np.isfinite(vertices[name]).all()


def test_a_folder_with_a_broken_image_is_predicted_without_it(folder: Path) -> None:
    whole = (folder / "photos" / "1.jpg").read_bytes()
    (folder / "photos" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    result = subprocess.run(
        command("predict", "photos", "--model", "lift", "--depth", "depth.png", "-o", "splats"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "1.jpg" in result.stderr
    assert "[invalid_image]" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in (folder / "splats").iterdir()] == ["0.ply"]
    check_splat(folder / "splats" / "0.ply")


def test_ctrl_c_leaves_complete_splats_and_nothing_else(folder: Path) -> None:
    for number in range(2, 30):
        shutil.copy(folder / "photos" / "0.jpg", folder / "photos" / f"{number}.jpg")
    splats = folder / "splats"
    process = subprocess.Popen(
        command("predict", "photos", "--model", "lift", "--depth", "depth.png", "-o", "splats"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell ignores Ctrl-C for its background processes, and the children of the tests would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list(splats.glob("*.ply")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 30 splats" in err
    assert "Traceback" not in err
    written = sorted(splats.iterdir())
    assert 1 <= len(written) < 30
    for path in written:
        assert path.suffix == ".ply"
        check_splat(path)


def test_a_closed_pipe_is_no_error_message(folder: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        result = subprocess.run(
            command("info", folder / "photos" / "0.jpg"),
            env=environment(),
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write_end)
    assert result.stderr == ""
    assert result.returncode == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fresh_checkout_installs_and_predicts(folder: Path) -> None:
    ignored = shutil.ignore_patterns(".venv*", ".git", ".*_cache", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    # Without the environment of the tests, in which everything is installed already.
    kept = {name: value for name, value in environment().items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    own = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if part != own)
    script = folder / "checkout" / "scripts" / "predict"
    arguments = ["photos/0.jpg", "--model", "lift", "--depth", "depth.png", "-o", "room.ply"]
    for run in ("first", "second"):
        result = subprocess.run([script, *arguments], cwd=folder, env=kept, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert ("installing" in result.stderr) == (run == "first")
        check_splat(folder / "room.ply")
