"""The fused kernels on a CUDA device, or without one in triton's interpreter on the CPU."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Read when a kernel is defined.

from sharp_cog.runtime.kernels import fused

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    fused._BLOCK = 1 << 15  # The interpreter's time depends on the number of programs, not of Gaussians.

__all__ = ["DEVICE", "fused"]
