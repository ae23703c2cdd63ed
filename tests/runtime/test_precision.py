"""The choice of a floating-point type for a device."""

from __future__ import annotations

import pytest
import torch

from sharp_cog.errors import SettingError
from sharp_cog.runtime import precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_chooses_the_fastest_exact_enough_precision_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda has_it=has_it: has_it)
        assert precision.choose("auto", CPU) == expected
        assert precision.choose("float32", CPU) == torch.float32
    assert precision.choose("auto", torch.device("cuda")) == torch.float16
    assert precision.choose("auto", torch.device("mps")) == torch.float32
    with pytest.raises(SettingError, match="SHARP_PRECISION is 'bfloat16', for which this CPU"):
        precision.choose("bfloat16", CPU)
    with pytest.raises(SettingError, match="SHARP_PRECISION is 'float16', for which this CPU"):
        precision.choose("float16", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(SettingError, match="'bfloat16', which Tesla T4 does not have: choose float16"):
        precision.choose("bfloat16", torch.device("cuda"))


def test_cudnn_does_not_tune_for_shapes_that_occur_once() -> None:
    # Trying all of cuDNN's algorithms takes longer than running any of them.
    before = torch.backends.cudnn.benchmark
    for device, is_lasting, expected in ((CUDA, True, True), (CUDA, False, False), (CPU, True, False)):
        with precision.exact_sums(CUDA), precision.exact_sums(device, is_lasting=is_lasting):
            assert torch.backends.cudnn.benchmark == expected
            assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark == before
