"""Every writer on Gaussians that are hard to write.

The result is a file of finite numbers and unit quaternions, as close to the Gaussians as the format's bits allow, or an
error that names the fault.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sharp_cog import formats
from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import OutputError, PredictionError
from sharp_cog.formats.limits import MAX_LENGTH_M, require_writable
from sharp_cog.formats.splat import read_splat
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.serving import answers
from tests.adversarial import gaussians
from tests.bounds import SPZ_POSITION_LIMIT, WRITERS, assert_holds, decoded
from tests.formats.cases import FIELDS, READABLE, SORTING, written
from tests.splats import CAMERA, extreme_gaussians, random_gaussians

FEW = settings(max_examples=15)
MANY = settings(max_examples=20_000, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("means", float("nan"), "1 of 7 Gaussians are not finite, in means: nothing was written"),
        ("opacities", float("-inf"), "1 of 7 Gaussians are not finite, in opacities"),
        ("means", -1.01 * MAX_LENGTH_M, r"1 of 7 Gaussians are up to 1.01e\+38 m away, the limit is 1e\+38 m"),
        ("quaternions_wxyz", 2.0, "not unit, the first has the length .*, lengths must be within 0.0001 of 1"),
    ],
)
def test_gaussians_that_cannot_be_written_are_refused(field: str, value: float, message: str) -> None:
    splat = random_gaussians(7)
    require_writable(splat)
    getattr(splat, field)[3] = value
    with pytest.raises(PredictionError, match=message):
        require_writable(splat)


def test_a_sum_that_overflows_is_no_fault() -> None:
    splat = random_gaussians(7)
    splat.scales.fill_(3e38)
    require_writable(splat)
    require_writable(random_gaussians(0))


def check(case: str, splat: Gaussians) -> None:
    is_too_far = case.startswith("spz") and splat.means.abs().max().item() > SPZ_POSITION_LIMIT
    if is_too_far:
        with pytest.raises(OutputError, match=r"m from the origin, a \.spz ends at 8388607"):
            written(case, splat)
        return
    assert_holds(case, decoded(case, written(case, splat)), splat)


@pytest.mark.parametrize("case", WRITERS)
@FEW
@given(splat=gaussians())
@example(splat=extreme_gaussians())
def test_every_writer_keeps_adversarial_gaussians(case: str, splat: Gaussians) -> None:
    check(case, splat)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", WRITERS)
@MANY
@given(splat=gaussians())
def test_every_writer_keeps_many_adversarial_gaussians(case: str, splat: Gaussians) -> None:
    check(case, splat)


@pytest.mark.parametrize("case", ["ply", "compressed_ply", "splat", "spz", "sog"])
@pytest.mark.parametrize("num", [65_535, 65_537])
def test_counts_about_a_power_of_two_lose_nothing(case: str, num: int) -> None:
    """Rows are converted in parts of a power of two, and chunks and images have a last part that is not full."""
    splat = random_gaussians(num)
    seen = decoded(case, written(case, splat))
    assert len(seen.means) == num
    means = splat.means.double().numpy()
    step = {"compressed_ply": np.ptp(means, axis=0).max() / 1023, "spz": 1 / 4096, "sog": 0.01}.get(case, 0.0)
    np.testing.assert_allclose(np.sort(seen.means, axis=0), np.sort(means, axis=0), rtol=0, atol=step)


@pytest.mark.parametrize(
    "case",
    # A .usdz is read in a process of its own, which takes most of a second each time.
    [pytest.param(case, marks=pytest.mark.slow) if case == "usdz" else case for case in READABLE],
)
@FEW
@given(splat=gaussians())
def test_a_splat_that_was_read_can_be_written_again_without_loss(case: str, splat: Gaussians) -> None:
    splat.means.clamp_(-8e6, 8e6)  # The limit of .spz.
    splat.colors_linear.clamp_(-1e30, 1e30)  # Rounding takes the largest float32 beyond its range.
    again = read(case, written(case, splat))
    assert all(values.isfinite().all() for values in again.tensors().values())
    assert (again.quaternions_wxyz.norm(dim=1) - 1).abs().max() <= 1e-6
    assert again.opacities.min() >= 0
    assert again.opacities.max() <= 1
    content = written(case, again)
    assert_holds(case, decoded(case, content), again)
    if case not in SORTING:  # Half a step is lost once, not every time.
        last = read(case, content)
        for name in FIELDS[:2] + FIELDS[3:]:
            torch.testing.assert_close(getattr(last, name), getattr(again, name), rtol=5e-5, atol=1e-6)


def read(case: str, content: bytes) -> Gaussians:
    """Read a splat; a .splat cannot be detected by its content."""
    if case == "splat":
        return read_splat(content).gaussians
    return formats.read(content).gaussians


BROKEN = {
    "not finite": (float("nan"), float("inf"), float("-inf")),
    "m away, the limit is": (1.01 * MAX_LENGTH_M, -3.4028235e38),
    "not unit": (0.0, 1.5, -1e30, 3.4028235e38, 1e-45),
}


@pytest.mark.parametrize("case", [*WRITERS, "arrays"])
@FEW
@given(data=st.data())
def test_a_bad_value_anywhere_is_named_and_nothing_is_written(case: str, data: st.DataObject) -> None:
    """A NaN or an infinity, a position out of range, a quaternion that is not unit."""
    splat = data.draw(gaussians((1, 3, 257)))
    fault = data.draw(st.sampled_from(list(BROKEN)))
    named = {"m away, the limit is": "means", "not unit": "quaternions_wxyz"}
    field = named.get(fault) or data.draw(st.sampled_from(FIELDS))
    values = getattr(splat, field).clone()
    row = data.draw(st.integers(0, len(values) - 1))
    if fault == "not unit":
        values[row] = torch.tensor([0.5, 0.5, -0.5, 0.5])
    values[row].view(-1)[-1:] = torch.from_numpy(np.array([data.draw(st.sampled_from(BROKEN[fault]))], np.float32))
    splat = replace(splat, **{field: values})
    message = rf"1 of {len(splat)} Gaussians .*{fault}" + (f", in {field}:" if fault == "not finite" else "")
    with pytest.raises(PredictionError, match=message):
        answers.arrays(prediction(splat)) if case == "arrays" else written(case, splat)


def prediction(splat: Gaussians) -> Prediction:
    return Prediction(predicted=splat, camera=CAMERA, options=PredictOptions(), timings={})


@FEW
@given(splat=gaussians())
def test_arrays_in_json_are_finite_and_in_range(splat: Gaussians, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "arrays.json"
    answers.write_json(path, prediction(splat))
    found = {name: np.array(values) for name, values in orjson.loads(path.read_bytes()).items() if name != "metadata"}
    assert list(found) == ["positions", "scales", "rotations", "opacities", "colors"]
    for values in found.values():
        assert values.dtype == float, "values that are not finite would be null"
    np.testing.assert_array_equal(found["positions"].astype(np.float32), splat.means)
    np.testing.assert_array_equal(found["scales"].astype(np.float32), splat.scales.clamp(0, MAX_LENGTH_M))
    np.testing.assert_array_equal(found["rotations"].astype(np.float32), splat.quaternions_wxyz)
    np.testing.assert_array_equal(found["opacities"][:, 0].astype(np.float32), splat.opacities.clamp(0, 1))
    colors = srgb_to_linear(torch.from_numpy(found["colors"]))
    np.testing.assert_allclose(colors, splat.colors_linear.clamp(0, 1), atol=1e-6)
