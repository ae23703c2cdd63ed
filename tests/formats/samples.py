"""Files that other programs have written, in tests/data/splats, and the splat that they were made of.

`truth.ply` has 40 random Gaussians with spherical harmonics of degree 3. GaussianSplats3D 0.4.7 made the .ksplat of it,
and splat-transform 3.7.0 the .sog and the .glb; `palette.ply` is what splat-transform reads from that .sog.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData

from tests import decoders
from tests.decoders import Decoded, Floats

FOLDER = Path(__file__).parents[1] / "data" / "splats"


def sample(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


@dataclass(frozen=True, kw_only=True)
class Sample(Decoded):
    """A .ply of tests/data/splats; harmonics are (N, 15, 3)."""

    harmonics: Floats

    def order_of(self, means: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the indices of this sample's Gaussians in another order, matched by the nearest position."""
        order = np.array([np.abs(self.means - mean).sum(axis=1).argmin() for mean in means], dtype=np.intp)
        assert sorted(order) == list(range(len(self.means)))
        return order


def ply_sample(name: str) -> Sample:
    decoded = decoders.ply(sample(name))
    vertex = PlyData.read(str(FOLDER / name))["vertex"]
    rest = np.stack([np.asarray(vertex[f"f_rest_{index}"], dtype=float) for index in range(45)], axis=-1)
    # In a .ply, the harmonics of a channel follow one another.
    return Sample(**vars(decoded), harmonics=rest.reshape(-1, 3, 15).transpose(0, 2, 1))


TRUTH = ply_sample("truth.ply")


def glb_of(document: dict[str, Any], binary: bytes) -> bytes:
    """Return the .glb of a document and its buffer."""
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def glb_with_spz(content: bytes, name: str) -> bytes:
    """Return a .glb with a .spz inside, by one of the names of the extension."""
    splatting = {"extensions": {name: {"bufferView": 0}}}
    extensions = {"KHR_gaussian_splatting": splatting} if "splatting" in name else {name: {"bufferView": 0}}
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {}, "mode": 0, "extensions": extensions}]}],
        "bufferViews": [{"buffer": 0, "byteLength": len(content)}],
        "buffers": [{"byteLength": len(content)}],
    }
    return glb_of(document, content)
