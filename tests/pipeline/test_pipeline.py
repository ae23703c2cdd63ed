"""The pipeline as Python users call it, with Lift and with the tiny network."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from plyfile import PlyData

from sharp_cog import Gaussians, PredictOptions, Settings, SharpPipeline, formats
from sharp_cog.errors import CheckpointError, DepthError, ImageError, PredictionError, SettingError
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.runtime.device import find_device
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.unproject import unproject
from sharp_cog.runtime.weights import Weights
from tests.contract.stand_in import seen
from tests.data.parity import synthetic
from tests.parity import Reference, state


def picture(width: int = 120, height: int = 80, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(synthetic.photograph(width, height, seed)).save(file, "PNG")
    return file.getvalue()


def depth_map(metres: float = 2.0) -> bytes:
    file = io.BytesIO()
    np.save(file, np.full((80, 120), metres, np.float32))
    return file.getvalue()


@pytest.fixture(scope="module")
def lift() -> SharpPipeline:
    return SharpPipeline.load(Settings(model="lift", device="cpu"))


def test_lift_puts_a_flat_map_on_a_plane_in_front_of_the_camera(lift: SharpPipeline, tmp_path: Path) -> None:
    prediction = lift(picture(), PredictOptions(focal_length_px=100), depth_bytes=depth_map(2.0))
    means = prediction.gaussians.means
    torch.testing.assert_close(means[:, 2], torch.full_like(means[:, 2], 2.0), rtol=2e-3, atol=0)
    # At 2 m, 120 px of width at a focal length of 100 px are 2.4 m, less half a cell on each side.
    assert means[:, 0].max().item() == pytest.approx(1.2, rel=0.01)
    assert means[:, 1].max().item() == pytest.approx(0.8, rel=0.01)
    assert prediction.camera.focal_length_source == "caller"
    assert list(prediction.timings) == ["decode", "preprocess", "network", "unproject"]
    path = prediction.write(str(tmp_path / "splat.ply"))
    assert PlyData.read(path)["vertex"].count == 2 * 768 * 768
    assert prediction.timings["write"] > 0


def test_scaling_the_depth_scales_the_scene(lift: SharpPipeline) -> None:
    near, far = (lift(picture(), depth_bytes=depth_map(metres)).gaussians for metres in (2.0, 6.0))
    torch.testing.assert_close(3 * near.means, far.means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(3 * near.scales, far.scales, rtol=1e-4, atol=1e-7)


def test_colours_are_the_pictures(lift: SharpPipeline) -> None:
    file = io.BytesIO()
    Image.new("RGB", (120, 80), (200, 100, 50)).save(file, "PNG")
    colors = lift(file.getvalue(), depth_bytes=depth_map()).gaussians.colors_linear
    linear = ((np.array([200, 100, 50]) / 255 + 0.055) / 1.055) ** 2.4
    np.testing.assert_allclose(colors, np.broadcast_to(linear, colors.shape), rtol=1e-4)


def test_same_input_same_bytes_one_after_another_and_at_once(lift: SharpPipeline, tmp_path: Path) -> None:
    inputs = [picture(seed=seed) for seed in (0, 1, 0, 1)]

    def splat(number: int) -> bytes:
        path = lift(inputs[number], depth_bytes=depth_map()).write(tmp_path / f"{number}.ply")
        return path.read_bytes()

    alone = [splat(number) for number in range(2)]
    with ThreadPoolExecutor(2) as executor:
        together = list(executor.map(splat, range(4)))
    assert together == [alone[0], alone[1], alone[0], alone[1]]
    assert alone[0] != alone[1]


def test_the_device_takes_one_prediction_at_a_time_however_many_threads_ask(lift: SharpPipeline) -> None:
    """SHARP keeps the last picture's encoding, which another thread could otherwise take for its own picture's."""
    at_once, most = 0, 0

    def predictor(*arguments: Any) -> NDCGaussians:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1
        return seen(*arguments)

    pipeline = SharpPipeline(predictor, device=lift.device, settings=lift.settings)
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda _: pipeline(picture()), range(4)))
    assert most == 1


def test_on_cuda_a_prediction_has_a_stream_of_its_own(lift: SharpPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here by torch's calls alone. Whoever writes the last splat must not wait for the next one's network."""
    streams, kept = ["others'"], []

    @contextmanager
    def entered(stream: str) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    def predictor(*arguments: Any) -> NDCGaussians:
        assert streams == ["others'", "its own"]
        return seen(*arguments)

    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append((tensor, stream)))
    pipeline = SharpPipeline(predictor, device=lift.device, settings=lift.settings)
    assert pipeline._stream is None, "of a CPU"
    pipeline._stream = "its own"  # type: ignore[assignment]
    gaussians = pipeline(picture()).gaussians
    for value in (gaussians.means, gaussians.scales, gaussians.quaternions_wxyz, gaussians.opacities):
        assert any(tensor is value and stream == "others'" for tensor, stream in kept)
    assert len(kept) == 5


def test_one_prediction_is_written_in_many_ways(lift: SharpPipeline, tmp_path: Path) -> None:
    """The same bytes as from a prediction of its own, without the network's work."""
    whole = lift.predict(lift.decode(picture(), depth_bytes=depth_map()))
    for options in (PredictOptions(max_gaussians=1000), PredictOptions(output_format="splat", min_opacity=0.2)):
        apart = lift(picture(), options, depth_bytes=depth_map()).write(tmp_path / "apart")
        assert whole.with_output(options).write(tmp_path / "again").read_bytes() == apart.read_bytes()
    assert len(whole.gaussians) == 2 * 768 * 768
    assert "write" not in whole.timings, "what is written of it leaves it as it is"


def test_bad_inputs_are_the_callers_fault(lift: SharpPipeline) -> None:
    with pytest.raises(DepthError, match="needs a depth map"):
        lift(picture())
    with pytest.raises(ImageError, match="not a picture"):
        lift(b"text", depth_bytes=depth_map())
    with pytest.raises(DepthError, match="aspects differ"):
        lift(picture(80, 120), depth_bytes=depth_map())
    small = SharpPipeline.load(Settings(model="lift", device="cpu", max_megapixels=0.005))
    with pytest.raises(ImageError, match=r"the limit is 0\.005 MP"):
        small(picture(), depth_bytes=depth_map())


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    torch.save(state("tiny"), path)
    return path


def test_a_checkpoint_gives_the_networks_own_gaussians(tiny_checkpoint: Path) -> None:
    """From an encoded picture and a file of weights to the Gaussians that Apple's arrays vouch for."""
    pipeline = SharpPipeline.load(Settings(checkpoint=tiny_checkpoint, device="cpu", precision="float32"))
    reference = Reference.load("tiny")
    prediction = pipeline(picture(1200, 800), PredictOptions(focal_length_px=1150.0))
    index = torch.from_numpy(reference.arrays["gaussian_index"])
    means = prediction.gaussians.means[index].double().numpy()
    expected = reference.arrays["mean_vectors"].astype(np.float64)
    assert np.linalg.norm(means - expected) <= 1e-4 * np.linalg.norm(expected)


def test_a_value_that_half_precision_does_not_hold_is_repeated_in_float32(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights that float16 holds, and products that it does not."""
    settings = Settings(checkpoint=tiny_checkpoint, device="cpu", precision="float32")
    expected = SharpPipeline.load(settings)(picture())
    source = Weights(state=state("tiny"), is_folded=False)
    runner = SharpRunner(source, device=torch.device("cpu"), dtype=torch.float16)
    with torch.no_grad():
        for parameter in runner.model.feature_model.fusion.parameters():
            parameter.fill_(6e4)
    prediction = SharpPipeline(runner, device=torch.device("cpu"), settings=settings)(picture())
    assert prediction.precision == "float32"
    assert runner.counters.float32_repeats == 1
    assert "a value does not fit in float16: this prediction is repeated in float32" in caplog.text
    assert torch.equal(prediction.gaussians.means, expected.gaussians.means)
    assert torch.equal(prediction.gaussians.colors_linear, expected.gaussians.colors_linear)


def test_a_depth_map_goes_through_the_checkpoints_alignment(tiny_checkpoint: Path) -> None:
    pipeline = SharpPipeline.load(Settings(checkpoint=tiny_checkpoint, device="cpu", precision="float32"))
    camera_options = PredictOptions(focal_length_px=1150.0)
    prediction = pipeline(picture(1200, 800), camera_options, depth_bytes=depth_map(2.0))
    reference = Reference.load("tiny")
    with torch.inference_mode():
        depth_m = torch.full((1, 1, 1536, 1536), 2.0)
        assert isinstance(pipeline.predictor, SharpRunner)
        placed = pipeline.predictor.model(reference.image, reference.disparity_factor, depth_m)
    assert torch.equal(prediction.gaussians.means, unproject(placed, reference.camera).means)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"is not SHARP's: .* is missing.* and \d+ more"):
        SharpPipeline.load(Settings(checkpoint=tmp_path / "other.pt"))


def test_out_of_memory_is_told_and_the_next_one_works(lift: SharpPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(lift, "predictor", fails)
        with pytest.raises(PredictionError, match="ran out of memory"):
            lift(picture(), depth_bytes=depth_map())
    assert len(lift(picture(), depth_bytes=depth_map()).gaussians) == 2 * 768 * 768


def test_warm_up_runs_everything(lift: SharpPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    vertex_block = formats.vertex_block

    def counted(gaussians: Gaussians) -> NDArray[np.float32]:
        counts.append(len(gaussians))
        return vertex_block(gaussians)

    monkeypatch.setattr(formats, "vertex_block", counted)
    assert lift.warm_up() > 0
    assert counts == [2 * 768 * 768]


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "meta", "nonsense"])
def test_a_device_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(SettingError, match=rf"SHARP_DEVICE is '{name}'"):
        find_device(name)


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_fastest_device(
    has_cuda: bool, has_mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(has_cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert find_device("auto").type == expected
