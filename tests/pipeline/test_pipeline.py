"""The pipeline as Python users call it, with Lift and with the small network."""

from __future__ import annotations

import gc
import io
import json
import signal
import subprocess
import sys
import threading
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

from sharp_cog import Gaussians, PredictOptions, Settings, SharpPipeline
from sharp_cog.errors import (
    CheckpointError,
    DepthError,
    DeviceError,
    ImageError,
    NotInstalledError,
    PredictionError,
)
from sharp_cog.estimators import Estimate
from sharp_cog.formats.ply import vertex_block
from sharp_cog.imaging.images import SourceImage
from sharp_cog.pipeline import pipeline as pipeline_module
from sharp_cog.pipeline.pipeline import MAX_UNDER_WAY
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.runtime.predictor import Predicted
from sharp_cog.runtime.preprocess import ModelInput
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.unproject import unproject
from sharp_cog.runtime.weights import Weights
from tests.depth.portraits import apple_jpeg, gdepth_jpeg
from tests.gated import Gated, write
from tests.images import npy, png
from tests.lift import CPU, NUM_VISIBLE, SmallLift, small_lift
from tests.parity import Reference, small_state, state

ROOT = Path(__file__).parents[2]
FLAT = npy(metres=2.0)


def npz(**arrays: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def pipeline_of(predictor: Any) -> SharpPipeline:
    return SharpPipeline(predictor, device=CPU, settings=Settings(model="lift", device="cpu"))


@pytest.fixture
def lift() -> SharpPipeline:
    return small_lift()


def test_lift_puts_a_flat_depth_map_on_a_plane_in_front_of_the_camera(lift: SharpPipeline, tmp_path: Path) -> None:
    prediction = lift(png(), PredictOptions(focal_length_px=80), depth=FLAT)
    means = prediction.gaussians.means
    torch.testing.assert_close(means[:, 2], torch.full_like(means[:, 2], 2.0), rtol=6e-3, atol=0)
    # At 2 m, 96 px of width at a focal length of 80 px are 2.4 m, less half of one of 32 cells on each side.
    visible, margin = means[:NUM_VISIBLE], means[NUM_VISIBLE:]
    assert visible[:, 0].max().item() == pytest.approx(1.2 * 31 / 32, rel=0.01)
    assert visible[:, 1].max().item() == pytest.approx(0.8 * 31 / 32, rel=0.01)
    # The camera may move by a quarter of the depth, and a margin of one cell of 8 pixels more.
    assert 1.2 + 0.25 * 2.0 < margin[:, 0].max().item() + 0.3 < 1.2 + 0.25 * 2.0 + 0.6
    assert prediction.camera.focal_length_source == "caller"
    assert list(prediction.timings) == ["decode", "preprocess", "network", "unproject"]
    path = prediction.write(str(tmp_path / "splat.ply"))
    assert PlyData.read(path)["vertex"].count == len(prediction.gaussians)


def test_scaling_the_depth_scales_the_scene(lift: SharpPipeline) -> None:
    near, far = (lift(png(), depth=npy(metres=metres)).gaussians for metres in (2.0, 6.0))
    torch.testing.assert_close(3 * near.means, far.means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(3 * near.scales, far.scales, rtol=1e-4, atol=1e-7)


def test_the_colours_are_those_of_the_image(lift: SharpPipeline) -> None:
    colors = lift(Image.new("RGB", (96, 64), (200, 100, 50)), depth=FLAT).gaussians.colors_linear
    linear = ((np.array([200, 100, 50]) / 255 + 0.055) / 1.055) ** 2.4
    np.testing.assert_allclose(colors, np.broadcast_to(linear, colors.shape), rtol=1e-4)


def test_all_forms_of_image_and_depth_give_the_same_splat(lift: SharpPipeline, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.npy").write_bytes(npy())
    image = Image.open(io.BytesIO(png()))
    options = PredictOptions(focal_length_px=80, depth_format="metric")
    expected = lift(png(), options, depth=npy()).gaussians.means
    array = np.load(io.BytesIO(npy()))
    for image_form, depth_form in (
        (str(tmp_path / "a.png"), tmp_path / "a.npy"),
        (image, array),
        (np.asarray(image), array.astype(np.float64)),
        (bytearray(png()), str(tmp_path / "a.npy")),
    ):
        assert torch.equal(lift(image_form, options, depth=depth_form).gaussians.means, expected)  # type: ignore[arg-type]
    assert torch.equal(lift(png(), options, depth_bytes=npy()).gaussians.means, expected)
    request = Request(image=tmp_path / "a.png", depth=array, options=options, key="mine")
    assert torch.equal(lift(request).gaussians.means, expected)
    assert lift(request).key == "mine"


def test_arguments_that_are_given_twice_are_type_errors(lift: SharpPipeline) -> None:
    with pytest.raises(TypeError, match="depth and depth_bytes are both given"):
        lift(png(), depth=FLAT, depth_bytes=FLAT)
    with pytest.raises(TypeError, match="image is a whole Request"):
        lift(Request(image=png()), depth=FLAT)
    with pytest.raises(TypeError, match="image is of type int"):
        lift(3)  # type: ignore[arg-type]


def test_the_same_input_gives_the_same_bytes_one_after_another_and_at_once(lift: SharpPipeline, tmp_path: Path) -> None:
    inputs = [png(seed=seed) for seed in (0, 1, 0, 1)]

    def splat(number: int) -> bytes:
        return lift(inputs[number], depth=FLAT).write(tmp_path / f"{number}.ply").read_bytes()

    alone = [splat(number) for number in range(2)]
    with ThreadPoolExecutor(2) as executor:
        together = list(executor.map(splat, range(4)))
    assert together == [alone[0], alone[1], alone[0], alone[1]]
    assert alone[0] != alone[1]


def test_the_device_takes_one_prediction_at_a_time_however_many_threads_ask() -> None:
    """SHARP keeps the last image's encoding, which another thread could otherwise take for its own image's."""
    at_once, most = 0, 0

    class Slow(SmallLift):
        def predict(self, model_input: ModelInput) -> Predicted:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            time.sleep(0.02)
            at_once -= 1
            return super().predict(model_input)

    pipeline = pipeline_of(Slow())
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda _: pipeline(png(), depth=FLAT), range(4)))
    assert most == 1


def test_on_cuda_a_prediction_has_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked here by torch's calls alone. Writing the last splat must not wait for the next image's network."""
    streams, kept = ["the caller's"], []

    @contextmanager
    def entered(stream: str) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    class Watched(SmallLift):
        def predict(self, model_input: ModelInput) -> Predicted:
            assert streams == ["the caller's", "its own"]
            return super().predict(model_input)

    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append((tensor, stream)))
    pipeline = pipeline_of(Watched())
    assert pipeline._stream is None, "there are no streams on a CPU"
    pipeline._stream = "its own"  # type: ignore[assignment]
    gaussians = pipeline(png(), depth=FLAT).predicted
    for value in (gaussians.means, gaussians.scales, gaussians.quaternions_wxyz, gaussians.opacities):
        assert any(tensor is value and stream == "the caller's" for tensor, stream in kept)
    assert len(kept) == 5


def test_a_prediction_is_written_in_many_ways(lift: SharpPipeline, tmp_path: Path) -> None:
    whole = lift(png(), depth=FLAT)
    for options in (PredictOptions(max_gaussians=100), PredictOptions(output_format="splat", min_opacity=0.2)):
        alone = lift(png(), options, depth=FLAT).write(tmp_path / "alone")
        assert whole.with_options(options).write(tmp_path / "again").read_bytes() == alone.read_bytes()
    assert len(whole.gaussians) > NUM_VISIBLE


def test_a_kept_prediction_answers_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = SmallLift()
    cpu_settings = Settings(model="lift", device="cpu")
    pipeline = SharpPipeline(predictor, device=CPU, settings=cpu_settings, num_kept_predictions=1)
    first = pipeline(png(), depth=FLAT)
    monkeypatch.setattr(pipeline_module, "decode_image", None)
    monkeypatch.setattr(predictor, "predict", None)
    request = Request(image=png(), depth=FLAT, options=PredictOptions(max_gaussians=7, output_format="spz"), key="b")
    decoded = pipeline.decode(request)
    assert decoded.is_decoded
    again = pipeline.predict(decoded)
    assert again.predicted is first.predicted
    assert (len(again.gaussians), again.options, again.key, again.timings) == (7, request.options, "b", {})
    assert (len(first.gaussians) > NUM_VISIBLE, first.key) == (True, "")


def test_nothing_is_kept_by_default(lift: SharpPipeline) -> None:
    assert lift(png(), depth=FLAT).predicted is not lift(png(), depth=FLAT).predicted


def test_an_estimator_gives_the_depth_and_the_focal_length_that_the_image_lacks(lift: SharpPipeline) -> None:
    def estimator(source: SourceImage) -> Estimate:
        depth_m = np.full((source.camera.height, source.camera.width), 2.0, np.float32)
        return Estimate(depth_m=depth_m, focal_length_px=80.0)

    estimated = lift(Request(image=png(), depth=estimator))
    camera = estimated.camera
    assert (camera.focal_length_px, camera.focal_length_source) == (80.0, "estimated")
    options = PredictOptions(focal_length_px=80.0)
    assert torch.equal(estimated.gaussians.means, lift(png(), options, depth=FLAT).gaussians.means)
    chosen = lift(Request(image=png(), depth=estimator, options=PredictOptions(focal_length_px=50.0))).camera
    assert (chosen.focal_length_px, chosen.focal_length_source) == (50.0, "caller")


def test_the_focal_length_of_a_depth_file_counts_unless_the_caller_gives_one(lift: SharpPipeline) -> None:
    depth = npz(depth=np.full((64, 96), 2.0, np.float32), focallength_px=np.array(70.0))
    camera = lift(png(), depth=depth).camera
    assert (camera.focal_length_px, camera.focal_length_source) == (70.0, "depth_file")
    camera = lift(png(), PredictOptions(focal_length_px=50.0), depth=depth).camera
    assert (camera.focal_length_px, camera.focal_length_source) == (50.0, "caller")


def test_a_prediction_says_what_was_assumed_and_how_to_say_otherwise(lift: SharpPipeline) -> None:
    with pytest.raises(DepthError, match="set depth_format"):
        lift(png(), depth=np.random.default_rng(0).uniform(1, 5, (64, 96)))
    depth = npz(depth=np.full((64, 96), 2.0, np.float32))
    taken, focal = lift(png(), depth=depth).assumptions
    assert taken == "depth map taken as metric, by the name of its array 'depth': if that is wrong, set depth_format"
    assert focal.startswith("focal length taken as 30 mm equivalent")
    assert focal.endswith("set focal_length_mm")
    assert lift(png(), PredictOptions(focal_length_px=50.0, depth_format="metric"), depth=depth).assumptions == ()


def test_a_kept_prediction_keeps_its_assumptions() -> None:
    pipeline = SharpPipeline(SmallLift(), device=CPU, settings=Settings(model="lift"), num_kept_predictions=1)
    first, again = (pipeline(png(), depth=FLAT) for _ in range(2))
    assert again.predicted is first.predicted
    assert again.assumptions == first.assumptions != ()


def test_bad_inputs_are_the_callers_fault(lift: SharpPipeline, tmp_path: Path) -> None:
    with pytest.raises(DepthError, match="needs a depth map"):
        lift(png())
    with pytest.raises(ImageError, match="not a"):
        lift(b"text", depth=FLAT)
    with pytest.raises(DepthError, match="aspects differ"):
        lift(png(64, 96), depth=FLAT)
    with pytest.raises(DepthError, match="save_internal_depth is given, but the model 'lift'"):
        lift(png(), PredictOptions(save_internal_depth=True), depth=FLAT)
    limited = SharpPipeline.load(Settings(model="lift", device="cpu", max_megapixels=0.005))
    with pytest.raises(ImageError, match=r"the limit is 0\.005 MP"):
        limited(png(), depth=FLAT)
    without_viewer = SharpPipeline(SmallLift(), device=CPU, settings=Settings(model="lift", viewer_dir=tmp_path))
    with pytest.raises(NotInstalledError):
        without_viewer(b"never decoded", PredictOptions(output_format="html"))


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    torch.save(small_state(), path)
    return path


def loaded(checkpoint: Path) -> SharpPipeline:
    return SharpPipeline.load(Settings(checkpoint=checkpoint, device="cpu", precision="float32"))


def test_image_and_depth_go_through_the_network_of_the_checkpoint(small_checkpoint: Path) -> None:
    pipeline, inputs = loaded(small_checkpoint), []
    assert isinstance(pipeline.predictor, SharpRunner)
    predict = pipeline.predictor.predict

    def watched(model_input: ModelInput) -> Predicted:
        inputs.append(model_input)
        return predict(model_input)

    pipeline.predictor.predict = watched  # type: ignore[method-assign]
    options = PredictOptions(focal_length_px=80, save_internal_depth=True)
    without_depth, prediction = pipeline(png(), options), pipeline(png(), options, depth=FLAT)
    assert inputs[0].depth_m is None
    assert inputs[0].image_hash == inputs[1].image_hash
    assert inputs[1].depth_m is not None
    torch.testing.assert_close(inputs[1].depth_m, torch.full((1, 1, 512, 512), 2.0))
    with torch.inference_mode():
        expected = pipeline.predictor.model(inputs[1].image, inputs[1].disparity_factor, inputs[1].depth_m)
    assert torch.equal(prediction.predicted.means, unproject(expected, prediction.camera).means)
    assert not torch.equal(prediction.predicted.means, without_depth.predicted.means)
    assert prediction.monodepth_m is not None
    assert prediction.monodepth_m.shape == (2, 512, 512)
    np.testing.assert_array_equal(prediction.monodepth_m, without_depth.monodepth_m)


@pytest.mark.slow
def test_a_checkpoint_gives_the_gaussians_of_apples_arrays(tmp_path: Path) -> None:
    """The whole way from an encoded image and a file of weights, at 1536 px."""
    torch.save(state("tiny"), tmp_path / "tiny.pt")
    reference = Reference.load("tiny")
    prediction = loaded(tmp_path / "tiny.pt")(png(1200, 800), PredictOptions(focal_length_px=1150.0))
    index = torch.from_numpy(reference.arrays["gaussian_index"])
    means = prediction.gaussians.means[index].double().numpy()
    expected = reference.arrays["mean_vectors"].astype(np.float64)
    assert np.linalg.norm(means - expected) <= 1e-4 * np.linalg.norm(expected)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"is not SHARP's: .* is missing.* and \d+ more"):
        SharpPipeline.load(Settings(checkpoint=tmp_path / "other.pt"))


def test_out_of_memory_is_an_error_of_ours_and_the_next_prediction_works(
    lift: SharpPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(lift.predictor, "predict", fails)
        with pytest.raises(PredictionError, match="ran out of memory"):
            lift(png(), depth=FLAT)
    assert len(lift(png(), depth=FLAT).gaussians) > NUM_VISIBLE


def test_a_failed_device_is_a_device_error(lift: SharpPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> object:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(lift.predictor, "predict", fails)
    with pytest.raises(DeviceError):
        lift(png(), depth=FLAT)
    with pytest.raises(DeviceError):
        list(lift.map([Request(image=png(), depth=FLAT)]))


def test_warm_up_runs_the_model_and_post_processing(lift: SharpPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counted(gaussians: Gaussians) -> NDArray[np.float32]:
        counts.append(len(gaussians))
        return vertex_block(gaussians)

    monkeypatch.setattr(pipeline_module, "vertex_block", counted)
    assert lift.warm_up() > 0
    assert len(counts) == 1
    assert counts[0] > NUM_VISIBLE


# ---- map


def sizes(outcomes: Iterator[object]) -> list[int]:
    return [len(outcome.gaussians) for outcome in outcomes if isinstance(outcome, Prediction)]


@pytest.mark.parametrize("overlaps", [False, True])
def test_map_yields_predictions_in_the_order_of_the_images(overlaps: bool) -> None:
    wanted = [7, 3, 11, 1, 5, 2, 9, 4, 8, 6]
    pipeline = Gated()
    assert sizes(pipeline.map((bytes(number) for number in wanted), overlaps=overlaps)) == wanted
    assert pipeline.predicted == wanted
    assert pipeline.most_at_once == 1
    assert list(pipeline.map([], overlaps=overlaps)) == []


@pytest.mark.parametrize("overlaps", [False, True])
def test_map_encodes_beside_the_device(overlaps: bool, tmp_path: Path) -> None:
    threads = set()

    def encode(prediction: Prediction) -> Path:
        threads.add(threading.current_thread().name.partition("_")[0])
        path = tmp_path / f"{prediction.key}.txt"
        write(path, prediction)
        return path

    requests = [Request(image=bytes(number), key=f"image {number}") for number in (3, 1, 2)]
    paths = list(Gated().map(requests, encode=encode, overlaps=overlaps))
    assert [path.read_text() for path in paths if isinstance(path, Path)] == ["3", "1", "2"]
    assert threads == ({"encode"} if overlaps else {"MainThread"})


@pytest.mark.parametrize("overlaps", [False, True])
def test_map_takes_images_as_they_are_needed(overlaps: bool) -> None:
    num_taken = 0

    def images() -> Iterator[bytes]:
        nonlocal num_taken
        for _ in range(100):
            num_taken += 1
            yield bytes(3)

    outcomes = Gated().map(images(), overlaps=overlaps)
    for number in range(1, 20):
        next(outcomes)
        assert num_taken <= number + (MAX_UNDER_WAY if overlaps else 0)


@pytest.mark.parametrize("overlaps", [False, True])
def test_map_yields_the_error_of_a_bad_image_in_its_place(lift: SharpPipeline, overlaps: bool) -> None:
    requests: list[Any] = [Request(image=png(), depth=FLAT), b"not an image", png(), Request(image=png(), depth=FLAT)]
    outcomes = list(lift.map(requests, PredictOptions(max_gaussians=5), overlaps=overlaps))
    assert [type(outcome) for outcome in outcomes] == [Prediction, ImageError, DepthError, Prediction]


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("failure", [DeviceError("the device failed"), ZeroDivisionError()], ids=repr)
def test_map_raises_the_failure_of_a_device_and_foreign_errors(overlaps: bool, failure: Exception) -> None:
    pipeline = Gated()
    pipeline.failure = failure
    with pytest.raises(type(failure)):
        next(pipeline.map((bytes(1) for _ in range(100)), overlaps=overlaps))
    assert len(pipeline.predicted) <= MAX_UNDER_WAY


def test_map_raises_a_type_error_for_something_that_is_no_image() -> None:
    for overlaps in (False, True):
        with pytest.raises(TypeError, match="image is of type int"):
            list(Gated().map([3], overlaps=overlaps))  # type: ignore[list-item]


@pytest.mark.skipif(sys.platform == "win32", reason="signals do not interrupt a waiting thread there")
@pytest.mark.parametrize("overlaps", [False, True])
def test_ctrl_c_ends_map_soon_and_with_threads_writes_what_has_been_predicted(overlaps: bool, tmp_path: Path) -> None:
    class Interrupted(Gated):
        def predict(self, request: Request) -> Prediction:
            if len(self.predicted) == 1:
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.1)  # The main thread receives it meanwhile.
            return super().predict(request)

    def encode(prediction: Prediction) -> None:
        time.sleep(0.05)
        write(tmp_path / prediction.key, prediction)

    pipeline = Interrupted()
    requests = (Request(image=bytes(1), key=str(number)) for number in range(100))
    with pytest.raises(KeyboardInterrupt):
        for _ in pipeline.map(requests, encode=encode, overlaps=overlaps):
            pass
    gc.collect()
    expected = ["0", "1"] if overlaps else ["0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    assert len(pipeline.predicted) == len(expected), "no other image goes to the device"


@pytest.mark.slow
def test_map_gives_the_same_gaussians_as_single_calls() -> None:
    runner = SharpRunner(Weights(state=small_state(), is_folded=False), device=CPU, dtype=torch.float32)
    pipeline = SharpPipeline(runner, device=CPU, settings=Settings(device="cpu"))
    images = [png(seed=1), png(seed=2)]
    for outcome, image in zip(pipeline.map(images, overlaps=True), images, strict=True):
        assert isinstance(outcome, Prediction)
        alone = pipeline(image).gaussians
        assert torch.equal(outcome.gaussians.means, alone.means)
        assert torch.equal(outcome.gaussians.colors_linear, alone.colors_linear)


@pytest.mark.slow
def test_the_benchmark_reports_how_long_the_device_waits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.stream", "--model", "random-tiny", "--device", "cpu", "--num", "2"]
    subprocess.run([*command, "--json", str(tmp_path / "report.json")], check=True, timeout=600, cwd=ROOT)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num"] == 2
    assert report["busy_s"] > 0
    assert 0 <= report["idle_share"] < 1


def test_lift_takes_the_depth_that_the_photograph_carries_unless_a_map_is_given(lift: SharpPipeline) -> None:
    photograph = gdepth_jpeg("RangeLinear", depth=np.full((64, 96), 2.0))
    taken = lift(photograph)
    np.testing.assert_allclose(taken.gaussians.means[:, 2], 2.0, rtol=0.01)
    assert taken.assumptions[0] == (
        "depth taken from the photograph itself (GDepth map, 96x64, 2 to 2 m): if that is wrong, give a depth map"
    )
    np.testing.assert_allclose(lift(photograph, depth=np.full((64, 96), 3.0)).gaussians.means[:, 2], 3.0, rtol=0.01)
    with pytest.raises(DepthError, match="and a depth map is given too"):
        lift(photograph, PredictOptions(depth_from="embedded"), depth=FLAT)
    for image in (png(), np.zeros((64, 96, 3), np.uint8)):
        with pytest.raises(DepthError, match="depth_from is 'embedded', but the photograph carries no depth"):
            lift(image, depth="embedded")
        with pytest.raises(DepthError, match="needs a depth map, and the photograph carries none"):
            lift(image)


def test_the_focal_length_beside_embedded_depth_counts_unless_the_caller_gives_one(lift: SharpPipeline) -> None:
    camera = lift(apple_jpeg()).camera
    assert camera.focal_length_px == pytest.approx(3000 * 96 / 4032)
    assert camera.focal_length_source == "intrinsics"
    assert lift(apple_jpeg(), PredictOptions(focal_length_px=50.0)).camera.focal_length_source == "caller"
