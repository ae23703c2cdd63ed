"""Clients that people have: command lines of curl, and the programs of docs/http.md."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from plyfile import PlyData

from tests.gated import Gated
from tests.service import Service, serving
from tests.website import Site, says

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
PHOTO = bytes(500)
"""Photograph for the pipeline under test, which takes any bytes, and makes as many Gaussians."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(Gated) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a photograph, as a person's working folder."""
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    return tmp_path


def shell(line: str, folder: Path) -> str:
    command = ["bash", "-c", f"set -euo pipefail; {line}"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=120).stdout


def count(path: Path) -> int:
    return int(PlyData.read(path)["vertex"].count)


def test_the_command_lines_of_other_services_of_sharp_work(service: Service, folder: Path) -> None:
    """The lines that the READMEs of earlier services give: multipart `file`, form `f_px`, JSON, and health."""
    assert json.loads(shell(f"curl -s {service.url}/health", folder))["status"] == "healthy"
    shell(
        f'curl -s -X POST "{service.url}/predict/ply" -F "file=@photo.jpg" -F "f_px=1200" --output output.ply', folder
    )
    assert count(folder / "output.ply") == len(PHOTO)
    told = json.loads(shell(f'curl -s -X POST {service.url}/predict -F "file=@photo.jpg" -F max_gaussians=10', folder))
    assert told["metadata"]["num_gaussians"] == len(told["positions"]) == 10
    shell(f'curl -s -X POST "{service.url}/predict/ply?f_px=1200" -F "image=@photo.jpg" -OJ', folder)
    assert (folder / "photo.ply").read_bytes() == (folder / "output.ply").read_bytes()


def documented_lines() -> list[str]:
    """Return the command lines of the page that make a splat without a key."""
    blocks = [block.partition("```")[0] for block in PAGE.split("```sh\n")[1:]]
    lines = "\n".join(blocks).replace("\\\n", " ").replace("|\n", "|").splitlines()
    return [line for line in lines if "curl" in line and ADDRESS in line]


def test_the_documented_command_lines_work(service: Service, folder: Path, site: Site) -> None:
    lines = documented_lines()
    assert len(lines) >= 6
    image_url = site.url("/photo.jpg", says(PHOTO))
    for line in lines:
        line = line.replace(ADDRESS, service.url).replace("https://example.com/photo.jpg", image_url)
        line = line.replace("curl ", "curl -sf ")
        output = folder / line.rpartition("-o ")[2].strip()
        shell(line, folder)
        if output.suffix == ".ply":
            assert count(output) == len(PHOTO), line
        else:
            assert output.read_bytes()[:1] in (b"{", b"P"), line
        output.unlink()


def test_the_documented_program_works(service: Service, folder: Path) -> None:
    program = PAGE.partition("<!-- http client -->\n```python\n")[2].partition("```")[0]
    assert ADDRESS in program
    program = program.replace(ADDRESS, service.url)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=folder, timeout=120)
    assert count(folder / "photo.ply") == len(PHOTO)


def test_gradios_own_protocol_is_refused_as_unknown(service: Service) -> None:
    """`gradio_client.Client(url)` asks for these first, and gets a clear 404 rather than a page."""
    for path in ("/config", "/info", "/gradio_api/info"):
        answer = requests.get(f"{service.url}{path}", timeout=10)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
