"""Types, shapes and memory of the network at its released size, on torch's meta device.

Meta tensors have no values, so an operation that would make the CPU wait for a value of the GPU raises here.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sharp_cog.model import vit
from sharp_cog.model.config import IMAGE_SIZE, SharpConfig
from sharp_cog.model.external_depth import DEFAULT_USE
from sharp_cog.model.monodepth import depth_from_disparity
from sharp_cog.model.sharp import Sharp
from sharp_cog.runtime.prepare import convert, fold

META = torch.device("meta")
GB = 10**9


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that were created under it and are still in use.

    Attributes:
        peak: Largest count so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._live -= self._known.pop(key)


def prepared(dtype: torch.dtype) -> Sharp:
    with META:
        model = Sharp(SharpConfig.released()).eval().requires_grad_(False)
    fold(model, device=META)
    convert(model, device=META, dtype=dtype)
    return model


def weight_bytes(model: Sharp) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("dtype", "weights_gb", "activations_gb"), [(torch.float16, 1.4, 1.8), (torch.float32, 2.7, 3.5)]
)
def test_a_prediction_never_waits_and_leaves_most_of_a_small_gpu_free(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, weights_gb: float, activations_gb: float
) -> None:
    """The promise is 6 GB in half precision and 12 GB in float32, cuDNN's own memory included."""
    # The attention kernels of a GPU keep no scores in memory.
    monkeypatch.setattr(vit, "attend", lambda query, key, value: torch.empty_like(query))
    model = prepared(dtype)
    assert model.monodepth_model.monodepth_predictor.encoder.num_tiles_at_once == 35
    with torch.inference_mode(), LiveBytes() as used:
        image = torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=META)
        encoding = model.encode(image)
        monodepth_m = depth_from_disparity(encoding.disparity, torch.empty(1, device=META))
        depth_m = model.depth_layers(monodepth_m, None, DEFAULT_USE)
        gaussians = model.compose(image, encoding.decoded, depth_m)
    assert gaussians.means.shape == (1, 1_179_648, 3)
    assert encoding.decoded.dtype == dtype
    # The unprojection kernel takes float32, and `fused.try_out` compiles it for this layout.
    for field in ("means", "scales", "quaternions_wxyz", "colors_linear"):
        value = getattr(gaussians, field)
        assert value.dtype == torch.float32
        assert value.stride()[1:] == (1, 1_179_648)
    assert weight_bytes(model) <= weights_gb * GB
    assert used.peak <= activations_gb * GB
    assert used.peak > 0.5 * activations_gb * GB, "nothing was counted"
