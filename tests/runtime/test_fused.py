"""Compilation of the fused kernels for every GPU, and the choice between them and their twins.

Their results are tested in `test_decompose.py` and `tests/formats/test_ply.py`, in triton's interpreter without a GPU.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sharp_cog.runtime.kernels import choose
from tests.fused_kernels import DEVICE, fused

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    "capability", [75, *(pytest.param(other, marks=pytest.mark.slow) for other in (80, 86, 89, 90))]
)
def test_the_kernels_compile_for_every_gpu(capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "tests.compiled_kernels", str(capability)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    made = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(one["kernel"], one["has_unit_rows"]) for one in made] == [
        (kernel, has_unit_rows) for kernel in ("_unproject", "_vertex_rows") for has_unit_rows in (False, True)
    ]
    for one in made:
        assert one["num_bytes"] > 1000
        assert not one["has_local_memory"], "the kernel spills registers"


@pytest.fixture
def _untried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(choose, "synchronize", lambda device: None)
    choose._fused.cache_clear()
    yield
    choose._fused.cache_clear()


def test_the_kernels_are_tried_before_they_are_used() -> None:
    fused.try_out(DEVICE)


@pytest.mark.usefixtures("_untried")
def test_a_device_that_runs_the_kernels_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.device] = []
    monkeypatch.setattr(fused, "try_out", tried.append)
    assert choose.fused_for(torch.device("cpu")) is None
    assert [choose.fused_for(CUDA) for _ in range(3)] == [fused] * 3
    assert tried == [CUDA]


@pytest.mark.usefixtures("_untried")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        subprocess.CalledProcessError(1, ["gcc", "main.c"]),
        PermissionError(13, "Permission denied", "/home/sharp/.triton"),
        AssertionError("libcuda.so cannot found!"),
    ],
)
def test_the_twins_are_used_if_the_kernels_cannot_be_built(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def refuse(device: torch.device) -> None:
        raise error

    monkeypatch.setattr(fused, "try_out", refuse)
    with caplog.at_level(logging.WARNING):
        assert [choose.fused_for(CUDA) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1, "the warning appears once"
    assert "gcc" in caplog.text


@pytest.mark.usefixtures("_untried")
def test_a_device_that_fails_during_the_trial_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fused, "try_out", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        choose.fused_for(CUDA)

    def failing(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(fused, "try_out", failing)
    monkeypatch.setattr(choose, "synchronize", failing)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        choose.fused_for(CUDA)
