"""Devices and the translation of their errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sharp_cog.errors import DeviceError, PredictionError, SettingError
from sharp_cog.runtime.device import find_device, is_shortage, synchronize, synchronize_stream, translate_errors
from tests.faults.failing_device import FAILURES, SHORTAGES

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_fastest_device(
    monkeypatch: pytest.MonkeyPatch, has_cuda: bool, has_mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert find_device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_a_missing_device_is_refused_with_those_that_exist(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingError, match=f"SHARP_DEVICE is '{name}', but torch .* finds only: cpu"):
        find_device(name)


def test_a_device_that_torch_does_not_know_is_refused_with_the_choices() -> None:
    with pytest.raises(SettingError, match="SHARP_DEVICE is 'abacus': choose auto, cpu, cuda"):
        find_device("abacus")


def test_a_cpu_needs_no_synchronization() -> None:
    synchronize(CPU)
    synchronize_stream(CPU)


@pytest.mark.parametrize("error", SHORTAGES.values(), ids=SHORTAGES)
def test_shortages_of_memory_are_prediction_errors(error: Callable[[], Exception]) -> None:
    assert is_shortage(error())
    with pytest.raises(PredictionError, match="ran out of memory") as caught, translate_errors(CPU):
        raise error()
    assert not isinstance(caught.value, DeviceError)
    with pytest.raises(PredictionError, match="or set SHARP_DEVICE=cpu"), translate_errors(torch.device("cuda")):
        raise error()


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
def test_failures_of_the_device_are_device_errors(error: Callable[[], Exception]) -> None:
    assert not is_shortage(error())
    with pytest.raises(DeviceError, match="restart the process"), translate_errors(torch.device("cuda")):
        raise error()


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shape is invalid"), translate_errors(CPU):
        raise RuntimeError("shape is invalid")
