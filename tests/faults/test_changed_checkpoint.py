"""Checkpoints that change under our feet: between two looks at them, while they are mapped, and afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sharp_cog import Settings, SharpPipeline
from sharp_cog.errors import CheckpointError
from sharp_cog.runtime import checkpoint, weights
from sharp_cog.runtime.runner import SharpRunner
from tests.parity import state

ROOT = Path(__file__).parents[2]
BIAS = "monodepth_model.monodepth_predictor.encoder.patch_encoder.blocks.0.mlp.fc1.bias"

# As a process of its own: what is wrong here ends it.
CUT_WHILE_RUNNING = """
import hashlib, os, sys
from pathlib import Path
import torch
from sharp_cog import Settings, SharpPipeline
from sharp_cog.runtime.kernels.packed_linear import PackedLinear
from tests.parity import state

def digest(model):
    # Every number that a prediction is made of.
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, PackedLinear):
            tensors += [module._weight.to_dense(), module._bias]
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(tensor.detach().float().numpy().tobytes())
    return hashed.hexdigest()

folder, precision, cache_weights = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
torch.save(state("tiny"), folder / "sharp.pt")
settings = Settings(
    checkpoint=folder / "sharp.pt", checkpoint_sha256=None, device="cpu", precision=precision,
    cache_weights=cache_weights,
)
model = SharpPipeline.load(settings).predictor.model
before = digest(model)
files = list(folder.iterdir())
assert len(files) == 1 + cache_weights, files
for path in files:
    with path.open("r+b") as file:  # Where it lies: whoever has it mapped sees this.
        file.write(b"\\xff" * path.stat().st_size)
assert digest(model) == before, (precision, cache_weights, "overwritten")
for path in files:
    os.truncate(path, 10)  # Whoever has it mapped and reads it is ended by the system.
assert digest(model) == before, (precision, cache_weights, "cut")
print(precision, cache_weights, "works on")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(state("tiny"), tmp_path / "sharp.pt")
    return tmp_path / "sharp.pt"


def settings(path: Path) -> Settings:
    return Settings(checkpoint=path, checkpoint_sha256=None, device="cpu", precision="float32")


def replace_by_another(path: Path) -> None:
    """As whoever downloads another one does: the new file gets the old one's name."""
    changed = {name: tensor + 1 if name == BIAS else tensor for name, tensor in state("tiny").items()}
    torch.save(changed, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("precision", "cache_weights"),
    [
        ("float32", False),
        pytest.param("bfloat16", False, marks=pytest.mark.slow),
        pytest.param("bfloat16", True, marks=pytest.mark.slow),
    ],
)
def test_what_runs_does_not_mind_that_the_files_are_overwritten_and_cut_short(
    precision: str, cache_weights: bool, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CUT_WHILE_RUNNING, str(tmp_path), precision, str(cache_weights)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == f"{precision} {cache_weights} works on\n"


def test_a_file_that_is_replaced_stays_what_it_was_for_who_has_mapped_it(path: Path) -> None:
    mapped = checkpoint.load_state(path)
    replace_by_another(path)
    assert torch.equal(mapped[BIAS], state("tiny")[BIAS])
    assert torch.equal(checkpoint.load_state(path)[BIAS], state("tiny")[BIAS] + 1)


def test_a_checkpoint_that_is_replaced_between_finding_and_loading_is_refused(path: Path) -> None:
    found = weights.find(settings(path), torch.float32)
    replace_by_another(path)
    with pytest.raises(CheckpointError, match=r"sharp\.pt was replaced since this process has found it: start"):
        found.network(torch.device("cpu"))
    assert weights.find(settings(path), torch.float32).network(torch.device("cpu")) is not None


def test_a_checkpoint_that_is_gone_between_finding_and_loading_is_told(path: Path) -> None:
    found = weights.find(settings(path), torch.float32)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"sharp\.pt cannot be read: No such file"):
        found.open()


def test_no_prediction_is_repeated_in_float32_by_another_network(path: Path) -> None:
    runner = SharpPipeline.load(settings(path)).predictor
    assert isinstance(runner, SharpRunner)
    replace_by_another(path)
    with pytest.raises(CheckpointError, match="was replaced"):
        runner.in_float32(torch.zeros(1, 3, 1536, 1536), torch.ones(1))


def test_a_copy_that_is_cut_between_finding_and_loading_is_told_and_made_anew(path: Path) -> None:
    chosen = Settings(checkpoint=path, checkpoint_sha256=None, device="cpu", cache_weights=True)
    found = weights.find(chosen, torch.bfloat16)
    os.truncate(found.path, 1000)
    with pytest.raises(CheckpointError, match="truncated or broken"):
        found.open()
    again = weights.find(chosen, torch.bfloat16)
    assert again.open().state.keys()
    assert sorted(file.name for file in path.parent.iterdir()) == ["sharp.bfloat16.safetensors", "sharp.pt"]
