"""`sharp-cog predict` in this process: the real pipeline, with a predictor that costs nothing."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import pytest
import torch
from PIL import Image

from sharp_cog import estimators, formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.config.settings import Settings
from sharp_cog.estimators import Estimate
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from tests.cli.commands import StubPredictor, names, run, write_image
from tests.depth.portraits import gdepth_jpeg
from tests.splats import CAMERA, random_gaussians


def predict(*arguments: object) -> int:
    return run("predict", *arguments)


@pytest.fixture(params=[False, True], ids=["one after another", "overlapped"])
def overlaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether images are decoded and splats written in threads beside the device, as on a GPU."""
    overlaps: bool = request.param
    overlap(monkeypatch, overlaps)
    return overlaps


def overlap(monkeypatch: pytest.MonkeyPatch, overlaps: bool) -> None:
    pipeline_map = SharpPipeline.map

    def mapped(pipeline: SharpPipeline, *arguments: Any, **options: Any) -> Any:
        return pipeline_map(pipeline, *arguments, overlaps=overlaps, **options)

    monkeypatch.setattr(SharpPipeline, "map", mapped)


def test_a_splat_is_written_beside_its_image_and_described(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_image(tmp_path / "photo.jpg", width=360, height=240, equivalent_mm=50)
    formats.write(tmp_path / "photo.ply", random_gaussians(7), CAMERA, OutputOptions())  # It is replaced.
    assert predict(photo) == 0
    assert names(tmp_path) == ["photo.jpg", "photo.ply"]
    assert plyfile.PlyData.read(tmp_path / "photo.ply")["vertex"].count == 4
    printed = capsys.readouterr().out
    # 50 mm on a frame 36 mm wide is 500 px on one of 360 px.
    for expected in (str(tmp_path / "photo.ply"), "4 Gaussians", "500 px", "EXIF", "network", "write", "https://"):
        assert expected in printed


def test_an_assumed_focal_length_is_reported(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(write_image(tmp_path / "photo.png")) == 0
    assert "(assumed, 30 mm equivalent)" in capsys.readouterr().out


def test_a_focal_length_that_is_given_is_used(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_image(tmp_path / "photo.jpg", width=360, height=240, equivalent_mm=50)
    assert predict(photo, "--focal-length-px", 321) == 0
    assert "321 px (as given)" in capsys.readouterr().out
    # 43.27 mm is the diagonal of a full frame, and 432.7 px that of the image.
    assert predict(photo, "--focal-length-mm", 30) == 0
    assert "300 px (as given)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["room.sog", "room.spz", "room.glb", "room.compressed.ply", "room.splat"])
def test_the_suffix_of_the_output_selects_the_format(predictor: StubPredictor, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    assert predict(write_image(tmp_path / "room.jpg"), "-o", target, "--max-gaussians", 3) == 0
    written = formats.format_of(target)
    if written in ("sog", "glb"):
        assert target.read_bytes()[:4] == {"sog": b"PK\x03\x04", "glb": b"glTF"}[written]
    else:
        assert formats.detect(target.read_bytes(), target) == written
        assert len(formats.read(target).gaussians) == 3


@pytest.mark.parametrize("name", ["room.scene", "holiday.jpg", "holiday.png", "film.mov"])
def test_an_output_with_another_suffix_is_refused_without_format(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A photograph that has nothing to do with the run must not become a splat."""
    photo, other = write_image(tmp_path / "room.jpg"), tmp_path / name
    if other.suffix in (".jpg", ".png"):
        write_image(other)
    before = other.read_bytes() if other.exists() else None
    assert predict(photo, "-o", other) == 2
    assert f"{name} has no suffix of .ply" in capsys.readouterr().err
    assert predict(photo, "-o", other, "--format", "ply") == (0 if before is None else 2)
    if before is not None:
        assert "is not a splat: nothing was written" in capsys.readouterr().err
        assert other.read_bytes() == before


def test_several_images_are_not_written_to_one_file(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [write_image(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    for output in ("x.spz", "x.ply"):
        assert predict(*photos, "-o", tmp_path / output) == 2
        assert f"2 images cannot all become the file {tmp_path / output}: name a folder" in capsys.readouterr().err
    assert names(tmp_path) == ["a.jpg", "b.jpg"]


def test_splats_are_replaced_or_skipped_and_other_files_kept(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    for name in ("a.jpg", "b.jpg"):
        write_image(folder / name)
    assert predict(folder, "-o", tmp_path / "splats") == 0
    first = (tmp_path / "splats" / "a.ply").stat().st_mtime_ns
    (tmp_path / "splats" / "b.ply").unlink()
    capsys.readouterr()
    assert predict(folder, "-o", tmp_path / "splats", "--skip-existing") == 0
    assert "1 of 2 outputs exist already and are skipped" in capsys.readouterr().out
    assert (tmp_path / "splats" / "a.ply").stat().st_mtime_ns == first
    assert predict(folder, "-o", tmp_path / "splats", "--skip-existing") == 0
    assert predict(folder, "-o", tmp_path / "splats") == 0
    assert (tmp_path / "splats" / "a.ply").stat().st_mtime_ns > first
    (tmp_path / "splats" / "b.ply").write_bytes(b"a letter")
    assert predict(folder, "-o", tmp_path / "splats") == 2
    assert (tmp_path / "splats" / "b.ply").read_bytes() == b"a letter"


def test_format_outranks_the_suffix_of_the_output(predictor: StubPredictor, tmp_path: Path) -> None:
    assert predict(write_image(tmp_path / "room.jpg"), "-o", tmp_path / "room.bin", "--format", "spz") == 0
    assert formats.detect((tmp_path / "room.bin").read_bytes()) == "spz"


@pytest.mark.usefixtures("overlaps")
def test_one_bad_image_does_not_stop_the_rest(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    for name in ("a.jpg", "c.png", "d.webp"):
        write_image(folder / name)
    (folder / "b.jpg").write_bytes(b"not an image")
    assert predict(folder, "-o", tmp_path / "splats") == 2
    assert names(tmp_path / "splats") == ["a.ply", "c.ply", "d.ply"]
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "b.jpg" in errors[0]
    assert "[invalid_image]" in errors[0]
    assert "3 of 4 images became splats" in captured.out
    assert "Traceback" not in captured.err


def test_an_image_that_vanishes_does_not_stop_the_rest(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(write_image(tmp_path / "a.jpg"), tmp_path / "gone.jpg") == 2
    assert names(tmp_path) == ["a.jpg", "a.ply"]
    assert f"error: {tmp_path / 'gone.jpg'}: " in capsys.readouterr().err


@pytest.mark.usefixtures("overlaps")
def test_a_failed_prediction_is_exit_code_1_even_beside_a_bad_image(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor.outcomes[1] = float("nan")
    (tmp_path / "z.jpg").write_bytes(b"not an image")
    photos = [write_image(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    assert predict(*photos, tmp_path / "z.jpg") == 1
    assert names(tmp_path) == ["a.jpg", "b.jpg", "b.ply", "z.jpg"]
    assert "[prediction_failed]" in capsys.readouterr().err


def test_ctrl_c_reports_what_was_written(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor.outcomes[3] = KeyboardInterrupt()
    photos = [write_image(tmp_path / f"{name}.jpg") for name in "abcd"]
    assert predict(*photos) == 130
    assert names(tmp_path) == ["a.jpg", "a.ply", "b.jpg", "b.ply", "c.jpg", "d.jpg"]
    assert capsys.readouterr().err.endswith("stopped: 2 of 4 splats are written\n")


def test_ctrl_c_finishes_and_reports_the_splats_that_are_being_written(
    predictor: StubPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overlap(monkeypatch, True)
    write = Prediction.write

    def write_after_ctrl_c(prediction: Prediction, path: Path, **options: Any) -> Path:
        if path.name == "c.ply":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # The main thread has stopped the rest by then.
        return write(prediction, path, **options)

    monkeypatch.setattr(Prediction, "write", write_after_ctrl_c)
    assert predict(*(write_image(tmp_path / f"{letter}.jpg") for letter in "abcdefghijklmnop")) == 130
    splats = sorted(path.name for path in tmp_path.glob("*.ply"))
    assert "c.ply" in splats
    assert len(splats) < 16
    captured = capsys.readouterr()
    assert f"stopped: {len(splats)} of 16 splats are written" in captured.err
    assert all(f"{tmp_path / name}: 4 Gaussians" in captured.out for name in splats)
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


def test_the_next_image_is_decoded_and_the_last_splat_written_while_the_device_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second prediction waits for the first file: without the overlap it would wait forever."""
    overlap(monkeypatch, True)
    written = threading.Event()
    write = Prediction.write

    def observed_write(prediction: Prediction, path: Path, **options: Any) -> Path:
        written.set()
        return write(prediction, path, **options)

    class WaitingPredictor(StubPredictor):
        def predict(self, model_input: Any) -> Any:
            if len(self.depths_m) == 1:
                assert written.wait(20)
            return super().predict(model_input)

    def load(settings: Settings) -> SharpPipeline:
        return SharpPipeline(WaitingPredictor(), device=torch.device("cpu"), settings=settings)

    monkeypatch.setattr(Prediction, "write", observed_write)
    monkeypatch.setattr(SharpPipeline, "load", load)
    assert predict(*(write_image(tmp_path / f"{name}.jpg") for name in "abc")) == 0
    assert {"a.ply", "b.ply", "c.ply"} <= set(names(tmp_path))


def test_bad_arguments_are_reported_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(settings: Settings) -> SharpPipeline:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(SharpPipeline, "load", load)
    photo = write_image(tmp_path / "photo.jpg")
    (tmp_path / "text.jpg").write_text("text")
    # The folder of checkpoints is empty, so SHARP would have to be downloaded.
    monkeypatch.setenv("SHARP_CACHE_DIR", str(tmp_path))
    cases: list[tuple[str, int, list[object]]] = [
        ("cannot write into the folder", 1, [photo, "-o", tmp_path / "none" / "photo.ply"]),
        ("there is no file or folder", 2, [tmp_path / "other.jpg"]),
        ("--focal-length-px is", 2, [photo, "--focal-length-px", "0"]),
        ("--focal-length-px is", 2, [photo, "--focal-length-px", "-5"]),
        ("--focal-length-mm", 2, [photo, "--focal-length-px", "500", "--focal-length-mm", "28"]),
        ("[invalid_image]", 2, [tmp_path / "text.jpg"]),
        ("axes is 'opencv', but glb always has opengl", 2, [photo, "--format", "glb", "--axes", "opencv"]),
        ("center is given", 2, [photo, "--format", "mp4", "--center"]),
        ("are both given: give one", 2, [photo, "--depth", photo, "--depth-from", "depth-pro"]),
        ("[invalid_depth]", 2, [photo, "--depth", tmp_path / "no.png"]),
        ("add --depth FILE", 2, [photo, "--model", "lift"]),
    ]
    for message, exit_code, arguments in cases:
        assert predict(*arguments) == exit_code, message
        assert message in capsys.readouterr().err
    assert names(tmp_path) == ["photo.jpg", "text.jpg"]


def test_sharp_without_its_checkpoint_does_not_fall_back_to_lift(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_image(tmp_path / "a.jpg")
    assert predict(photo, "--checkpoint", tmp_path / "no.pt") == 1
    assert "[checkpoint_missing]" in capsys.readouterr().err
    assert names(tmp_path) == ["a.jpg"]


def test_flags_outrank_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHARP_DEVICE", "abacus")
    monkeypatch.setenv("SHARP_MODEL", "lift")
    photo = write_image(tmp_path / "a.jpg")
    np.save(tmp_path / "a.npy", np.full((64, 96), 2.5, dtype=np.float32))
    assert predict(photo, "--depth", tmp_path / "a.npy") == 1
    assert "abacus" in capsys.readouterr().err
    assert predict(photo, "--depth", tmp_path / "a.npy", "--device", "slide-rule") == 1
    assert "slide-rule" in capsys.readouterr().err


def test_options_of_depth_reach_the_network(predictor: StubPredictor, tmp_path: Path) -> None:
    photo, depth = write_image(tmp_path / "photo.jpg"), tmp_path / "depth.npy"
    np.save(depth, np.full((64, 96), 4.0, dtype=np.float32))
    flags = ["--depth-mode", "align", "--depth-fit", "median", "--depth-scale", "2", "--depth-offset", "-0.5"]
    assert predict(photo, "--depth", depth, *flags) == 0
    assert predictor.uses[-1] == DepthUse(mode="align", fit="median", scale=2.0, offset_m=-0.5)
    assert predict(photo, "--depth", depth, "--back-surface-factor", "1.5") == 0
    assert predictor.uses[-1] == DepthUse(mode="fixed", back_surface_factor=1.5)
    assert predict(photo, "--depth", depth, "--depth-format", "inverse-relative") == 0
    assert predictor.depths_m[-1] == 3.0
    assert predict(photo, "--depth", depth, "--depth-mode", "align", "--back-surface-factor", "2") == 2


def test_what_was_assumed_is_printed_with_the_images_name_and_the_flags(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, depth = write_image(tmp_path / "photo.jpg"), tmp_path / "depth.png"
    Image.fromarray(np.full((64, 96), 3000, dtype=np.uint16)).save(depth)
    assert predict(photo, "--depth", depth) == 0
    printed = capsys.readouterr().out
    assert (
        "  photo.jpg: depth map taken as metric, as integers of a depth camera, in millimetres: if that is wrong, set "
        "--depth-format\n"
    ) in printed
    assert "  photo.jpg: focal length taken as 30 mm equivalent" in printed
    assert predict(photo, "--depth", depth, "--depth-unit", "tum", "--focal-length-mm", "30") == 0
    assert predictor.depths_m == [3.0, pytest.approx(0.6)]
    assert "photo.jpg: " not in capsys.readouterr().out
    assert predict(photo, "--depth", depth, "--depth-unit", "feet") == 2
    assert "--depth-unit is 'feet': give m, mm, cm, kitti, tum, or a positive number" in capsys.readouterr().err


def test_each_image_gets_its_own_depth_map(predictor: StubPredictor, tmp_path: Path) -> None:
    photos = [write_image(tmp_path / "photos" / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    np.save(tmp_path / "photos" / "a.depth.npy", np.full((64, 96), 2.0, dtype=np.float32))
    Image.fromarray(np.full((64, 96), 3000, dtype=np.uint16)).save(tmp_path / "photos" / "b.depth.png")
    assert predict(*photos, "--depth", tmp_path / "photos", "-o", f"{tmp_path}/splats/") == 0
    assert predictor.depths_m == [2.0, 3.0, None]


@pytest.mark.parametrize(("equivalent_mm", "source"), [(None, "(estimated from the image)"), (35, "(from EXIF)")])
def test_depth_from_estimates_the_depth_and_a_missing_focal_length(
    predictor: StubPredictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    equivalent_mm: int | None,
    source: str,
) -> None:
    loaded: list[object] = []

    def load(name: str, *, checkpoint: str | None, device: torch.device, commercial: bool) -> Any:
        loaded.append((name, checkpoint, device.type))
        return lambda source: Estimate(depth_m=np.full((64, 96), 2.5, dtype=np.float32), focal_length_px=77.0)

    monkeypatch.setattr(estimators, "load", load)
    photo = write_image(tmp_path / "photo.jpg", equivalent_mm=equivalent_mm)
    flags = ["--depth-from", "depth-pro", "--estimator-checkpoint", "mine", "--device", "cpu"]
    assert predict(photo, *flags) == 0
    assert loaded == [("depth-pro", "mine", "cpu")]
    assert predictor.depths_m == [2.5]
    printed = capsys.readouterr().out
    assert source in printed
    assert ("77 px" in printed) == (equivalent_mm is None)


def test_internal_depth_is_written_beside_the_splat(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    assert predict(photo, "--save-internal-depth") == 0
    assert names(tmp_path) == ["photo.jpg", "photo.ply", "photo_internal_depth.npy", "photo_internal_depth.png"]
    depth_m = np.load(tmp_path / "photo_internal_depth.npy")
    assert (depth_m.shape, depth_m.dtype) == ((2, 8, 8), np.float32)
    assert [layer.mean() for layer in depth_m] == [2.0, 3.0]
    with Image.open(tmp_path / "photo_internal_depth.png") as colors:
        assert colors.size == (16, 8)
    assert "photo_internal_depth.npy: SHARP's monodepth" in capsys.readouterr().out


@pytest.mark.usefixtures("short_films")
def test_a_preview_is_written_beside_the_splat(
    predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(write_image(tmp_path / "room.jpg"), "--preview") == 0
    assert names(tmp_path) == ["room.jpg", "room.ply", "room.preview.webp"]
    with Image.open(tmp_path / "room.preview.webp") as film:
        assert film.format == "WEBP"
    assert "room.preview.webp: a preview" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--depth", "embedded"], ["--depth-from", "embedded"]])
def test_the_depth_in_a_photograph_is_taken_on_request(
    flags: list[object], predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    portrait = tmp_path / "portrait.jpg"
    portrait.write_bytes(gdepth_jpeg("RangeLinear", depth=np.full((64, 96), 2.0)))
    assert predict(portrait, *flags) == 0
    assert predictor.depths_m == [pytest.approx(2.0, abs=0.01)]
    assert "  portrait.jpg: depth taken from the photograph itself (GDepth map" in capsys.readouterr().out
    assert predict(portrait) == 0
    assert predictor.depths_m[-1] is None, "SHARP takes it on request only"
    assert predict(write_image(tmp_path / "photo.jpg"), *flags) == 2
    assert "--depth-from is 'embedded', but the photograph carries no depth" in capsys.readouterr().err


def test_lift_needs_no_map_for_a_photograph_with_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    assert predict(photo, "--model", "lift") == 2
    assert "and photo.jpg carries none: add --depth FILE" in capsys.readouterr().err
