"""Checkpoint files that change while a process has them mapped, and afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sharp_cog.runtime import checkpoint

ROOT = Path(__file__).parents[2]

# A process of its own, because a mapping that is read behind the end of its file kills the process.
OVERWRITE_AND_CUT = """
import hashlib, os, sys
from pathlib import Path
import torch
from sharp_cog import Settings
from sharp_cog.runtime import weights
from sharp_cog.runtime.kernels.packed_linear import PackedLinear
from sharp_cog.runtime.runner import SharpRunner
from tests.parity import small_state

def digest(model):
    # Hashes every number that a prediction depends on.
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, PackedLinear):
            tensors += [module._weight.to_dense(), module._bias]
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(tensor.detach().float().numpy().tobytes())
    return hashed.hexdigest()

path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
torch.save(small_state(), path)
found = weights.find(Settings(checkpoint=path, checkpoint_sha256=None))
model = SharpRunner(found, device=torch.device("cpu"), dtype=dtype).model
before = digest(model)
with path.open("r+b") as file:  # In place, so that every process that has the file mapped sees it.
    file.write(b"\\xff" * path.stat().st_size)
assert digest(model) == before, "overwritten"
os.truncate(path, 10)  # The system kills a process that reads a mapping behind the end of its file.
assert digest(model) == before, "cut"
print("unchanged")
"""


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_running_network_does_not_depend_on_its_file(dtype: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OVERWRITE_AND_CUT, str(tmp_path / "sharp.pt"), dtype]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "unchanged\n"


def test_a_file_that_is_replaced_stays_the_same_for_a_process_that_has_mapped_it(tmp_path: Path) -> None:
    path = tmp_path / "sharp.pt"
    torch.save({"bias": torch.zeros(3)}, path)
    mapped = checkpoint.load_state(path)
    torch.save({"bias": torch.ones(3)}, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    assert torch.equal(mapped["bias"], torch.zeros(3))
    assert torch.equal(checkpoint.load_state(path)["bias"], torch.ones(3))
