"""Every argument of every command changes something: what is written, said, asked for or refused.

The parser itself says what there is; an argument without a row fails. Models, estimators and servers are stood in for
at the seam where the command asks for them, and what they are asked for is part of what is compared.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import os
import re
import socket
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

import sharp_cog.dataset.build
import sharp_cog.serving.http
from sharp_cog import cli, formats
from sharp_cog.cli import compare_depth, main, verify
from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.options import OutputOptions
from sharp_cog.config.settings import Settings
from sharp_cog.depth import estimators
from sharp_cog.depth.estimators import Estimate
from sharp_cog.errors import CheckpointMissingError, SettingError
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.preview import movie
from sharp_cog.runtime import checkpoint
from sharp_cog.runtime.verify import Difference
from tests.contract.command_lines import TABLE
from tests.contract.stand_in import seen
from tests.data.parity import synthetic
from tests.splats import CAMERA, random_gaussians

NAMES_ITSELF = {("serve", "http")}
"""What a command line says for its reader: it names the one service that there is."""


def arguments_of(command: str) -> set[str]:
    (commands,) = (action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {action.dest for action in commands.choices[command]._actions} - {"help"}


def test_the_table_holds_every_argument_of_every_command() -> None:
    (commands,) = (action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    assert TABLE.keys() == commands.choices.keys()
    named = {command: {name for of, name in NAMES_ITSELF if of == command} for command in TABLE}
    for command, rows in TABLE.items():
        assert rows.keys() == arguments_of(command) - named[command], command


class StandIn:
    """A predictor with what the command verify takes apart."""

    predictor = model = None

    def __call__(self, *arguments: Any) -> NDCGaussians:
        return seen(*arguments)


class Seams:
    """Stands in for what is slow, and keeps what it is asked for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[object] = []
        patch.setattr(SharpPipeline, "load", self.load)
        patch.setattr(estimators, "load", self.estimator)
        patch.setattr(verify, "compare", self.compare)
        patch.setattr(checkpoint, "locate", lambda settings: None)
        patch.setattr(checkpoint, "ensure", self.ensure)
        patch.setattr(sharp_cog.serving.http, "create_app", lambda load, settings: load())
        patch.setattr(uvicorn.Server, "run", lambda server, sockets: self.serve(server, sockets))
        patch.setattr(compare_depth, "_WIDTH", 96)
        patch.setattr(sharp_cog.dataset.build, "build", self.build)
        patch.setattr(movie, "PREVIEW", movie.Shot(duration_s=0.1, fps=10, width=48, reach=0.02))

    def load(self, settings: Settings) -> SharpPipeline:
        self.asked.append(settings)
        return SharpPipeline(StandIn(), device=torch.device("cpu"), settings=settings)

    def estimator(self, name: str, *, checkpoint: str | None, device: torch.device) -> Callable[..., Estimate]:
        self.asked.append((name, checkpoint, device))
        return lambda source: Estimate(depth_m=np.linspace(2, 3, 96 * 64, dtype=np.float32).reshape(64, 96))

    def compare(self, *models: object, disparity_factor: torch.Tensor, **more: object) -> list[Difference]:
        self.asked.append(disparity_factor.item())
        return [Difference(stage="all", relative=0.01, maximum=0.01)]

    def ensure(self, settings: Settings) -> Path:
        raise CheckpointMissingError(f"there is none in {settings.cache_dir}")

    def serve(self, server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        (listener,) = sockets
        self.asked.append((listener.getsockname()[0], server.config.log_level))
        listener.close()

    def build(self, settings: DatasetSettings, journal: object, sharp: Settings) -> NoReturn:
        raise SettingError(f"{settings} on {sharp.device}")


def fill(folder: Path) -> None:
    """The files that command lines speak of."""
    for name, (width, height) in {"photo.png": (96, 64), "other.png": (96, 64), "wide.png": (96, 32)}.items():
        Image.fromarray(synthetic.photograph(width, height, len(name))).save(folder / name)
    for name in ("folder", "folder/below", "in"):
        (folder / name).mkdir()
    for name in ("folder/a.png", "folder/below/b.png"):
        (folder / name).write_bytes((folder / "photo.png").read_bytes())
    np.save(folder / "depth.npy", np.linspace(1.5, 3.0, 96 * 64, dtype=np.float32).reshape(64, 96))
    for seed, name in enumerate(("room.ply", "wall.ply")):
        gaussians = random_gaussians(60, seed)
        gaussians.means[:, 2].abs_().add_(1.0)
        gaussians.scales.fill_(0.1)
        formats.write(folder / name, gaussians, CAMERA, OutputOptions())


def observed(command: str, line: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """All that a command does: its exit code, its words, what it asks for, the files that are there afterwards."""
    folder = tmp_path_factory.mktemp("run")
    fill(folder)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in [name for name in os.environ if name.startswith("SHARP_")]:
            patch.delenv(name)
        patch.chdir(folder)
        patch.setenv("UNSPLASH_ACCESS_KEY", "key")
        seams = Seams(patch)
        try:
            exit_code = main([command, *line.split()])
        except SystemExit as stop:
            raise AssertionError(err.getvalue()) from stop
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".sqlite", ".lock", ".sqlite-wal", ".sqlite-shm")
    }
    said = re.sub(r"[0-9.]+ s: .*", "", out.getvalue())  # How long each stage took.
    return {
        "exit": exit_code,
        "out": said,
        "err": err.getvalue(),
        "files": files,
        "asked": list(map(repr, seams.asked)),
    }


Plain = Callable[[str, str], dict[str, object]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """What a command line without the argument does, once for all rows that share it."""
    return functools.cache(lambda command, line: observed(command, line, tmp_path_factory))


@pytest.mark.parametrize("command", TABLE)
def test_a_command_does_the_same_twice(command: str, plain: Plain, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Otherwise the next test would show nothing."""
    line = list(TABLE[command].values())[-1][0]
    assert plain(command, line) == observed(command, line, tmp_path_factory)


@pytest.mark.parametrize(("command", "name"), [(command, name) for command, rows in TABLE.items() for name in rows])
def test_every_argument_changes_something(
    command: str, name: str, plain: Plain, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base, more = TABLE[command][name]
    other = observed(command, f"{base} {more}" if more.startswith("-") else more, tmp_path_factory)
    assert plain(command, base) != other
    if name != "verbose" and command not in ("download", "verify", "dataset"):  # These end where they are stood in for.
        assert (plain(command, base)["exit"], other["exit"]) == (0, 0)


@pytest.mark.parametrize(("command", "name"), NAMES_ITSELF)
def test_what_names_the_only_choice_may_be_left_out(
    command: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert observed(command, "", tmp_path_factory) == observed(command, f"--{name}", tmp_path_factory)
