"""`sharp-cog verify` around the comparison; `tests/runtime/test_verify.py` has the comparison itself."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sharp_cog.cli import verify
from sharp_cog.config.settings import Settings
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.runtime.preprocess import ModelInput
from sharp_cog.runtime.verify import Difference
from tests.cli.commands import run, write_image


@pytest.mark.parametrize(("relative", "exit_code"), [(1e-4, 0), (0.02, 1), (float("nan"), 1)])
def test_the_worst_stage_decides(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    relative: float,
    exit_code: int,
) -> None:
    loaded: list[Settings] = []

    def load(settings: Settings) -> SimpleNamespace:
        loaded.append(settings)
        predictor = SimpleNamespace(image_size=64, network=None, model=None)
        return SimpleNamespace(predictor=predictor, device=torch.device("cpu"))

    inputs: list[ModelInput] = []

    def compare(*arguments: Any) -> list[Difference]:
        inputs.append(arguments[-1])
        stages = {"patches": 1e-6, "encoder": relative}
        return [Difference(stage=stage, relative=value, maximum=value) for stage, value in stages.items()]

    monkeypatch.setattr(SharpPipeline, "load", load)
    monkeypatch.setattr(verify, "compare", compare)
    monkeypatch.setenv("SHARP_PRECISION", "float16")
    photo = write_image(tmp_path / "a.jpg", width=96)
    assert run("verify", photo, "--focal-length-px", 48) == exit_code
    assert inputs[0].disparity_factor.item() == 0.5
    candidate = loaded[1]
    assert (candidate.model, candidate.precision, candidate.cuda_graphs) == ("sharp", "float32", False)
    printed = capsys.readouterr().out
    assert ("over the tolerance" in printed) == (exit_code == 1)
    assert printed.splitlines()[-1].startswith("the same within 0.001" if exit_code == 0 else "NOT the same")
    assert run("verify", photo, "--tolerance", 0.1) == (1 if math.isnan(relative) else 0)


def test_a_missing_checkpoint_or_image_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = write_image(tmp_path / "a.jpg")
    assert run("verify", photo, "--checkpoint", tmp_path / "no.pt") == 1
    assert "[checkpoint_missing]" in capsys.readouterr().err
    assert run("verify", tmp_path / "no.jpg") == 2
    assert "[invalid_image]" in capsys.readouterr().err
