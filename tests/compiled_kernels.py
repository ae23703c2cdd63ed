"""Compile the fused kernels for GPUs that need not exist here: `python -m tests.compiled_kernels 75 90`.

This is a process of its own, because triton cannot return from its interpreter to its compiler. It prints a line of
JSON for each kernel.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sharp_cog.runtime.kernels import fused

_FLOATS = ("stretch_x", "stretch_y", "stretch_z")


def compiled(kernel: Any, capability: int, *, has_unit_rows: bool) -> Any:
    """Return a kernel as a launch compiles it.

    Args:
        kernel: A kernel of `fused`.
        capability: Compute capability of the GPU, such as 75 for 7.5.
        has_unit_rows: Whether neighbouring Gaussians are neighbours in memory. Triton compiles a variant for strides
            of 1.
    """
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], int] = {}
    for position, name in enumerate(kernel.arg_names):
        if name == "BLOCK":
            signature[name], constants[position,] = "constexpr", fused._BLOCK
        elif name.endswith("_row") and has_unit_rows:
            signature[name], constants[position,] = "constexpr", 1
        elif name.endswith(("_row", "_column")) or name == "num":
            signature[name] = "i32"
        else:
            signature[name] = "fp32" if name in _FLOATS else "*fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def main() -> None:
    """Compile for the capabilities that the arguments name."""
    for capability in map(int, sys.argv[1:]):
        for kernel in (fused._unproject, fused._vertex_rows):
            for has_unit_rows in (False, True):
                made = compiled(kernel, capability, has_unit_rows=has_unit_rows)
                # PTX keeps arrays and spilled registers in local memory, which is slow.
                has_local_memory = ".local" in made.asm["ptx"]
                about = {"capability": capability, "kernel": kernel.__name__, "has_unit_rows": has_unit_rows}
                print(json.dumps({**about, "num_bytes": len(made.asm["cubin"]), "has_local_memory": has_local_memory}))


if __name__ == "__main__":
    main()
