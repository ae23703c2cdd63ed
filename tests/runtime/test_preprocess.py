"""Large images, of which only the pixels that count are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sharp_cog.imaging.images import from_array
from sharp_cog.runtime import preprocess as module
from sharp_cog.runtime.preprocess import preprocess


@pytest.mark.parametrize(("width", "height"), [(400, 300), (97, 131), (64, 64), (33, 40)])
def test_a_large_image_is_sampled_as_it_would_be_resized(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = from_array(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    expected = preprocess(source, None, size=64, device=torch.device("cpu")).image
    monkeypatch.setattr(module, "LARGE_PX", 1)
    sampled = preprocess(source, None, size=64, device=torch.device("cpu")).image
    assert sampled.shape == expected.shape
    torch.testing.assert_close(sampled, expected, rtol=0, atol=2e-6)
