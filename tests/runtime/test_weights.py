"""Weights from a file and in memory."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from sharp_cog import Settings, SharpPipeline
from sharp_cog.errors import CheckpointError
from sharp_cog.runtime import weights
from sharp_cog.runtime.runner import SharpRunner
from tests.images import png
from tests.parity import small_input, small_state

BIAS = "monodepth_model.monodepth_predictor.encoder.patch_encoder.blocks.0.mlp.fc1.bias"
CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(small_state(), tmp_path / "sharp.pt")
    return tmp_path / "sharp.pt"


def settings(path: Path, *, precision: str = "float32", cache_weights: bool = False) -> Settings:
    return Settings(
        checkpoint=path, checkpoint_sha256=None, device="cpu", precision=precision, cache_weights=cache_weights
    )


def replace(path: Path) -> None:
    """Give another checkpoint the name of the first one, as a download does."""
    changed = {name: tensor + 1 if name == BIAS else tensor for name, tensor in small_state().items()}
    torch.save(changed, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    os.utime(path, ns=(1, 1))


def test_a_checkpoint_that_is_replaced_before_it_is_loaded_is_refused(path: Path) -> None:
    found = weights.find(settings(path))
    replace(path)
    with pytest.raises(CheckpointError, match=r"sharp\.pt was replaced since this process found it: restart"):
        found.network(CPU)
    assert weights.find(settings(path)).network(CPU) is not None


def test_a_checkpoint_that_is_removed_before_it_is_loaded_is_reported(path: Path) -> None:
    found = weights.find(settings(path))
    path.unlink()
    with pytest.raises(CheckpointError, match=r"sharp\.pt cannot be read: No such file"):
        found.open()


def test_no_prediction_is_repeated_in_float32_with_other_weights(path: Path) -> None:
    runner = SharpRunner(weights.find(settings(path)), device=CPU, dtype=torch.bfloat16)
    with torch.no_grad():
        runner.model.get_parameter("prediction_head.texture_prediction_head.bias").fill_(
            torch.inf
        )  # Forces the repeat.
    replace(path)
    with pytest.raises(CheckpointError, match="was replaced"), torch.inference_mode():
        runner.predict(small_input())


def test_weights_in_memory_do_not_need_the_file(path: Path) -> None:
    """A snapshot of a process is taken before there is a GPU, and restored where the file may not exist."""
    expected = SharpPipeline.load(settings(path))(png())
    held = weights.in_memory(settings(path))
    path.unlink()
    found = SharpPipeline.load(settings(path), source=held)(png())
    assert torch.equal(found.gaussians.means, expected.gaussians.means)
    with pytest.raises(CheckpointError):
        SharpPipeline.load(settings(path))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
def test_weights_in_memory_have_the_precision_of_the_settings(path: Path, precision: str, dtype: torch.dtype) -> None:
    held = weights.in_memory(settings(path, precision=precision))
    matrices = {name for name in held.state if ".blocks." in name and name.endswith("weight") and "norm" not in name}
    assert {held.state[name].dtype for name in matrices} == {dtype}
    assert held.state["depth_alignment.scale_map_estimator.conv_out.weight"].dtype == torch.float32


def test_the_setting_for_copies_warns_once_and_makes_no_copy(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights._warn_of_cache_weights.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            weights.find(settings(path, cache_weights=True))
    assert [message.partition(" ")[0] for message in caplog.messages] == ["SHARP_CACHE_WEIGHTS"]
    assert [file.name for file in path.parent.iterdir()] == ["sharp.pt"]


def test_weights_that_are_not_numbers_are_refused_at_the_start(path: Path) -> None:
    broken = small_state()
    broken["monodepth_model.monodepth_predictor.decoder.convs.1.weight"].view(-1)[0] = float("nan")
    torch.save(broken, path)
    for dtype in (torch.bfloat16, torch.float32):
        with pytest.raises(CheckpointError, match=r"decoder\.convs\.1\.weight hold NaN"):
            SharpRunner(weights.find(settings(path)), device=CPU, dtype=dtype)
