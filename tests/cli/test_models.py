"""`sharp-cog models`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sharp_cog.cli import main


def test_every_network_is_listed_with_its_licence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models", "--cache-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    after = {
        line.split(":")[0].strip(): lines[index + 1] for index, line in enumerate(lines[:-1]) if line.startswith("  ")
    }
    assert "2.81 GB, Apple Machine Learning Research Model licence, no commercial use; not downloaded" in after["sharp"]
    assert "1.30 GB, MIT, commercial use allowed; not downloaded" in after["moge-2"]
    assert "no weights" in next(line for line in lines if line.startswith("  lift"))


def test_weights_that_are_on_the_disk_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    assert main(["models", "--json", "--checkpoint", str(weights)]) == 0
    states = {network["name"]: network["state"] for network in json.loads(capsys.readouterr().out)}
    assert states["sharp"] == f"on this disk, {weights}"
    assert states["lift"] == "nothing to download"
    assert main(["models", "--json", "--checkpoint", str(tmp_path / "gone.pt")]) == 0
    states = {network["name"]: network["state"] for network in json.loads(capsys.readouterr().out)}
    assert states["sharp"] == f"missing: {tmp_path / 'gone.pt'}"


def test_commercial_refuses_sharp_in_the_words_of_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["predict", str(tmp_path), "--commercial"]) != 0
    assert (
        "the use is commercial (--commercial or SHARP_COMMERCIAL), and the licence of sharp" in capsys.readouterr().err
    )
