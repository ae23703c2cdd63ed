"""The depth alignment, whose numbers `test_sharp` compares with Apple's."""

from __future__ import annotations

import torch

from sharp_cog.model.alignment import DepthAlignment
from tests import parity


@torch.inference_mode()
def test_only_the_front_layer_counts_and_depths_of_zero_do_no_harm() -> None:
    alignment: DepthAlignment = parity.small_network().depth_alignment
    monodepth_m = 1.0 + torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    depth_m = monodepth_m[:, :1] * 1.3
    scales = alignment(monodepth_m, depth_m)
    assert scales.shape == (1, 1, 32, 32)
    assert (scales > 0).all()
    monodepth_m[:, 1] = 50.0
    assert torch.equal(alignment(monodepth_m, depth_m), scales)
    depth_m[..., 0, 0] = monodepth_m[0, 0, 0, 0] = 0.0
    assert alignment(monodepth_m, depth_m).isfinite().all()
