"""The command line in one process: the real pipeline, with a predictor that costs nothing."""

import hashlib
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import pytest
import torch
from PIL import Image
from torch import Tensor

from sharp_cog import __version__
from sharp_cog.cli import main
from sharp_cog.config.settings import Settings
from sharp_cog.formats.ply import PROPERTIES
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.external_depth import DEFAULT_USE, DepthUse
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction

FOCAL_LENGTH_35MM_TAG = 0xA405


def picture(path: Path, *, width: int = 96, height: int = 64, equivalent_mm: int | None = None) -> Path:
    """Writes a grey picture, with a focal length in its EXIF block if one is given."""
    image = Image.new("RGB", (width, height), "grey")
    exif = Image.Exif()
    if equivalent_mm is not None:
        exif.get_ifd(0x8769)[FOCAL_LENGTH_35MM_TAG] = equivalent_mm
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)
    return path


class FourGaussians:
    """A predictor that notes the depth maps it is called with, and fails when it is told to."""

    def __init__(self) -> None:
        self.depths_m: list[float | None] = []
        self.uses: list[DepthUse] = []
        self.fails: dict[int, BaseException | float] = {}
        """By the number of the call: what is raised, or the position that is returned."""

    def __call__(
        self,
        image: Tensor,
        disparity_factor: Tensor,
        depth: Tensor | None = None,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
    ) -> NDCGaussians:
        self.uses.append(use)
        if on_monodepth is not None:
            on_monodepth(torch.stack([torch.full((8, 8), 2.0), torch.full((8, 8), 3.0)]).unsqueeze(0))
        self.depths_m.append(None if depth is None else round(depth.mean().item(), 4))
        outcome = self.fails.get(len(self.depths_m), 1.0)
        if isinstance(outcome, BaseException):
            raise outcome
        return NDCGaussians(
            means=torch.full((1, 4, 3), outcome),
            scales=torch.full((1, 4, 3), 0.01),
            quaternions_wxyz=torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 4, 4),
            colors_linear=torch.full((1, 4, 3), 0.5),
            opacities=torch.full((1, 4), 0.5),
        )


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> FourGaussians:
    predictor = FourGaussians()

    def load(settings: Settings) -> SharpPipeline:
        return SharpPipeline(predictor, device=torch.device("cpu"), settings=settings)

    monkeypatch.setattr(SharpPipeline, "load", load)
    return predictor


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "CHECKPOINT", "CACHE_DIR", "CHECKPOINT_URL", "CHECKPOINT_SHA256", "DEVICE", "MAX_MEGAPIXELS"):
        monkeypatch.delenv(f"SHARP_{name}", raising=False)


@pytest.fixture(params=[False, True], ids=["one after the other", "beside the device"])
def works_beside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether pictures are read and splats written while the device works, as on a GPU."""
    works_beside: bool = request.param
    monkeypatch.setattr("sharp_cog.cli.predict._works_beside", lambda device: works_beside)
    return works_beside


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_splat_goes_beside_its_picture_and_what_it_is_gets_said(
    predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture(tmp_path / "photo.jpg", width=360, height=240, equivalent_mm=50)
    assert predict(photo) == 0
    assert names(tmp_path) == ["photo.jpg", "photo.ply"]
    assert plyfile.PlyData.read(tmp_path / "photo.ply")["vertex"].count == 4
    said = capsys.readouterr().out
    # 50 mm on a frame 36 mm wide is 500 px on one of 360 px.
    for expected in (str(tmp_path / "photo.ply"), "4 Gaussians", "500 px", "EXIF", "network", "write", "https://"):
        assert expected in said


def test_a_focal_length_that_is_assumed_is_said_to_be(
    predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(picture(tmp_path / "photo.png")) == 0
    assert "assumed" in capsys.readouterr().out


def test_the_output_may_be_a_file(predictor: FourGaussians, tmp_path: Path) -> None:
    assert predict(picture(tmp_path / "photo.jpg"), "-o", tmp_path / "scene.splat.ply") == 0
    assert names(tmp_path) == ["photo.jpg", "scene.splat.ply"]


@pytest.mark.parametrize("is_there", [True, False])
def test_the_output_may_be_a_folder(predictor: FourGaussians, tmp_path: Path, is_there: bool) -> None:
    photo = picture(tmp_path / "photo.jpg")
    if is_there:
        (tmp_path / "splats").mkdir()
    assert predict(photo, "-o", f"{tmp_path}/splats" if is_there else f"{tmp_path}/splats/") == 0
    assert names(tmp_path) == ["photo.jpg", "splats/photo.ply"]


def test_an_existing_splat_is_replaced(predictor: FourGaussians, tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.jpg")
    (tmp_path / "photo.ply").write_bytes(b"old")
    assert predict(photo) == 0
    assert plyfile.PlyData.read(tmp_path / "photo.ply")["vertex"].count == 4


@pytest.mark.usefixtures("works_beside")
def test_one_bad_picture_does_not_stop_the_rest(
    predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    for name in ("a.jpg", "c.png", "d.webp"):
        picture(folder / name)
    (folder / "b.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not taken for a picture")
    (folder / "._a.jpg").write_bytes(b"what macOS leaves on foreign disks")
    assert predict(folder, "-o", tmp_path / "splats") == 2
    assert names(tmp_path / "splats") == ["a.ply", "c.ply", "d.ply"]
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "b.jpg" in errors[0]
    assert "[invalid_image]" in errors[0]
    assert "3 of 4" in captured.out + captured.err
    assert "Traceback" not in captured.err


@pytest.mark.usefixtures("works_beside")
def test_a_failure_that_is_not_the_pictures_fault_is_exit_code_1(
    predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor.fails[1] = float("nan")
    photos = [picture(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    assert predict(*photos) == 1
    assert names(tmp_path) == ["a.jpg", "b.jpg", "b.ply"]
    assert "[prediction_failed]" in capsys.readouterr().err


@pytest.mark.usefixtures("works_beside")
def test_ctrl_c_says_what_was_written(
    predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor.fails[3] = KeyboardInterrupt()
    photos = [picture(tmp_path / f"{name}.jpg") for name in "abcd"]
    assert predict(*photos) == 130
    assert names(tmp_path) == ["a.jpg", "a.ply", "b.jpg", "b.ply", "c.jpg", "d.jpg"]
    assert "2 of 4" in capsys.readouterr().err


def test_the_next_is_read_and_the_last_written_while_the_device_works(
    predictor: FourGaussians, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other: one after the other, this would wait for ever."""
    monkeypatch.setattr("sharp_cog.cli.predict._works_beside", lambda device: True)
    writes, threads = threading.Event(), set()
    write = Prediction.write

    def seen(prediction: Prediction, path: Path) -> Path:
        threads.add(threading.current_thread().name.partition("_")[0])
        writes.set()
        return write(prediction, path)

    class Waiting(FourGaussians):
        def __call__(self, *args: Any, **kwargs: Any) -> NDCGaussians:
            assert threading.current_thread() is threading.main_thread()
            if len(self.depths_m) == 1:
                assert writes.wait(20)
            return super().__call__(*args, **kwargs)

    monkeypatch.setattr(Prediction, "write", seen)
    monkeypatch.setattr(
        SharpPipeline,
        "load",
        lambda settings: SharpPipeline(Waiting(), device=torch.device("cpu"), settings=settings),
    )
    assert predict(*(picture(tmp_path / f"{name}.jpg") for name in "abc")) == 0
    assert {"a.ply", "b.ply", "c.ply"} <= set(names(tmp_path))
    assert threads == {"write"}


def test_ctrl_c_loses_nothing_that_was_predicted(
    predictor: FourGaussians, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sharp_cog.cli.predict._works_beside", lambda device: True)
    write = Prediction.write

    def slow(prediction: Prediction, path: Path) -> Path:
        time.sleep(0.3)
        return write(prediction, path)

    monkeypatch.setattr(Prediction, "write", slow)
    predictor.fails[6] = KeyboardInterrupt()
    assert predict(*(picture(tmp_path / f"{name}.jpg") for name in "abcdefgh")) == 130
    assert {path.stem for path in tmp_path.glob("*.ply")} == set("abcde")
    assert "5 of 8" in capsys.readouterr().err


def test_pictures_of_one_name_keep_their_whole_names(predictor: FourGaussians, tmp_path: Path) -> None:
    photos = [picture(tmp_path / name) for name in ("a.jpg", "a.png", "b.jpg")]
    assert predict(*photos, "-o", tmp_path / "splats") == 0
    assert names(tmp_path / "splats") == ["a.jpg.ply", "a.png.ply", "b.ply"]


def test_pictures_that_would_become_one_file_are_refused_before_anything_is_written(
    predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [picture(tmp_path / folder / "a.jpg") for folder in ("x", "y")]
    assert predict(*photos, "-o", tmp_path / "splats") == 2
    assert not predictor.depths_m
    errors = capsys.readouterr().err
    assert all(str(photo) in errors for photo in photos)


def test_a_picture_is_never_overwritten(predictor: FourGaussians, tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.jpg")
    before = photo.read_bytes()
    (tmp_path / "link.jpg").symlink_to(photo)
    (tmp_path / "folder").mkdir()
    for spelling in (photo, tmp_path / "link.jpg", tmp_path / "folder" / ".." / "photo.jpg"):
        assert predict(photo, "-o", spelling) == 2
        assert photo.read_bytes() == before


def test_folders_below_are_searched_only_if_asked_for(predictor: FourGaussians, tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.jpg")
    picture(tmp_path / "photos" / "below" / "b.jpg")
    assert predict(tmp_path / "photos", "-o", f"{tmp_path}/flat/") == 0
    assert names(tmp_path / "flat") == ["a.ply"]
    assert predict("-r", tmp_path / "photos") == 0
    assert {"a.ply", "below/b.ply"} <= set(names(tmp_path / "photos"))


def test_folders_below_are_kept_below_the_output(predictor: FourGaussians, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        picture(tmp_path / "in" / folder / "a.jpg")
    assert predict(tmp_path / "in", "-r", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["x/a.ply", "y/a.ply"]


def test_what_cannot_work_is_told_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(settings: Settings) -> SharpPipeline:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(SharpPipeline, "load", load)
    photo = picture(tmp_path / "photo.jpg")
    assert predict(photo, "-o", tmp_path / "none" / "photo.ply") == 1
    assert "cannot write into the folder" in capsys.readouterr().err
    assert predict(tmp_path / "other.jpg") == 2
    assert "there is no file or folder" in capsys.readouterr().err
    assert predict(photo, "--focal-length-px", "0") == 2
    (tmp_path / "text.jpg").write_text("text")
    monkeypatch.setenv("SHARP_CACHE_DIR", str(tmp_path))  # Empty: the checkpoint would have to be downloaded.
    assert predict(tmp_path / "text.jpg") == 2


def test_a_folder_without_pictures_is_an_error(
    predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(tmp_path) == 2
    assert "--recursive" in capsys.readouterr().err


def test_a_missing_picture_is_an_error(
    predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(tmp_path / "no.jpg") == 2
    assert "no.jpg" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_exit_code_1(predictor: FourGaussians, tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.jpg")
    assert predict(photo, "-o", tmp_path / "no" / "photo.ply") == 1
    assert predict(photo, "-o", f"{photo}/") == 1
    assert names(tmp_path) == ["photo.jpg"]


def test_depth_maps_are_found_by_name(predictor: FourGaussians, tmp_path: Path) -> None:
    photos = [picture(tmp_path / "photos" / name) for name in ("a.jpg", "b.png", "c.jpg")]
    maps = tmp_path / "photos"
    np.save(maps / "a.depth.npy", np.full((64, 96), 2.0, dtype=np.float32))
    Image.fromarray(np.full((64, 96), 3000, dtype=np.uint16)).save(maps / "b.depth.png")
    Image.fromarray(np.full((64, 96), 4000, dtype=np.uint16)).save(maps / "c.png")
    assert predict(*photos, "--depth", maps, "-o", f"{tmp_path}/splats/") == 0
    assert predictor.depths_m == [2.0, 3.0, 4.0]


def test_one_depth_map_may_serve_all_pictures(predictor: FourGaussians, tmp_path: Path) -> None:
    photos = [picture(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    np.save(tmp_path / "flat.npy", np.full((64, 96), 2.5, dtype=np.float32))
    assert predict(*photos, "--depth", tmp_path / "flat.npy") == 0
    assert predictor.depths_m == [2.5, 2.5]


def test_a_depth_map_in_a_folder_of_pictures_is_no_picture(predictor: FourGaussians, tmp_path: Path) -> None:
    picture(tmp_path / "room.jpg")
    Image.fromarray(np.full((64, 96), 3000, dtype=np.uint16)).save(tmp_path / "room.depth.png")
    assert predict(tmp_path) == 0
    assert names(tmp_path) == ["room.depth.png", "room.jpg", "room.ply"]


def test_a_missing_depth_map_is_an_error(
    predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(picture(tmp_path / "a.jpg"), "--depth", tmp_path / "no.png") == 2
    assert "[invalid_depth]" in capsys.readouterr().err


def test_lift_without_a_depth_map_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(picture(tmp_path / "a.jpg"), "--model", "lift") == 2
    assert "--depth" in capsys.readouterr().err


def test_sharp_without_its_checkpoint_does_not_fall_back_to_lift(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = picture(tmp_path / "a.jpg")
    assert predict(photo, "--checkpoint", tmp_path / "no.pt") == 1
    assert "[checkpoint_missing]" in capsys.readouterr().err
    assert names(tmp_path) == ["a.jpg"]


def test_options_out_of_their_range_are_exit_code_2(predictor: FourGaussians, tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.jpg")
    assert predict(photo, "--focal-length-px", "-5") == 2
    assert predict(photo, "--focal-length-px", "500", "--focal-length-mm", "28") == 2
    assert names(tmp_path) == ["a.jpg"]


def test_flags_outrank_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHARP_DEVICE", "abacus")
    monkeypatch.setenv("SHARP_MODEL", "lift")
    photo = picture(tmp_path / "a.jpg")
    np.save(tmp_path / "a.npy", np.full((64, 96), 2.5, dtype=np.float32))
    assert predict(photo, "--depth", tmp_path / "a.npy") == 1
    assert "abacus" in capsys.readouterr().err
    assert predict(photo, "--depth", tmp_path / "a.npy", "--device", "slide-rule") == 1
    assert "slide-rule" in capsys.readouterr().err


def test_only_verbose_shows_where_an_error_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "no.ply")
    assert main(["info", missing]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["info", missing, "-v"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["predict"], ["predict", "a.jpg", "--model", "magic"], ["dance"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: sharp-cog" in capsys.readouterr().err


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.split() == ["sharp-cog", __version__]


def test_info_of_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = picture(tmp_path / "photo.jpg", width=3600, height=2400, equivalent_mm=50)
    assert main(["info", str(photo), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["width"], facts["height"]) == ("JPEG", 3600, 2400)
    assert facts["focal_length_px"] == pytest.approx(5000)
    assert facts["focal_length_source"] == "exif_35mm"
    assert facts["vertical_fov_degrees"] == pytest.approx(27.0, abs=0.05)
    assert main(["info", str(photo)]) == 0
    said = capsys.readouterr().out
    assert "3,600" in said
    assert "5000" in said


def test_info_of_a_splat(predictor: FourGaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = picture(tmp_path / "photo.jpg", width=360, height=240, equivalent_mm=50)
    assert predict(photo) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "photo.ply"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_gaussians"] == 4
    assert facts["bytes"] == (tmp_path / "photo.ply").stat().st_size
    assert facts["focal_length_px"] == pytest.approx(500)
    # A point at the right lower edge of the frame, 1 m away: half the frame over the focal length.
    assert facts["bounds_m"]["x"] == pytest.approx([0.36, 0.36])
    assert facts["bounds_m"]["y"] == pytest.approx([0.24, 0.24])
    assert facts["bounds_m"]["z"] == pytest.approx([1, 1])
    assert set(facts["opacity_quantiles"].values()) == {0.5}


@pytest.mark.parametrize("content", [b"", b"ply\nbut no more", b"<html>", bytes(100)])
def test_info_of_anything_else_is_exit_code_2(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert main(["info", str(tmp_path / "file")]) == 2


def test_info_of_a_splat_without_gaussians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = np.zeros(0, dtype=[(name, "<f4") for name in PROPERTIES])
    file = io.BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(empty, "vertex")]).write(file)
    (tmp_path / "empty.ply").write_bytes(file.getvalue())
    assert main(["info", str(tmp_path / "empty.ply")]) == 0
    assert "num gaussians: 0" in capsys.readouterr().out


def test_download_verifies_what_is_there_and_prints_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "sharp_2572gikvuh.pt"
    checkpoint.write_bytes(b"weights")
    monkeypatch.setenv("SHARP_CHECKPOINT_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert main(["download", "--cache-dir", str(tmp_path)]) == 0
    assert str(checkpoint) in capsys.readouterr().out
    checkpoint.write_bytes(b"other weights")
    assert main(["download", "--cache-dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "[invalid_checkpoint]" in captured.err
    assert "verified" not in captured.out


def test_verify_without_a_checkpoint_or_a_picture_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = picture(tmp_path / "a.jpg")
    assert main(["verify", str(photo), "--checkpoint", str(tmp_path / "no.pt")]) == 1
    assert "[checkpoint_missing]" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "no.jpg")]) == 2


def test_options_of_depth_reach_the_network(predictor: FourGaussians, tmp_path: Path) -> None:
    photo, depth = picture(tmp_path / "photo.jpg"), tmp_path / "depth.npy"
    np.save(depth, np.full((64, 96), 4.0, dtype=np.float32))
    flags = ["--depth-mode", "align", "--depth-fit", "median", "--depth-scale", "2", "--depth-offset", "-0.5"]
    assert predict(photo, "--depth", depth, *flags) == 0
    assert predictor.uses[-1] == DepthUse(mode="align", fit="median", scale=2.0, offset_m=-0.5)
    assert predict(photo, "--depth", depth, "--back-surface-factor", "1.5") == 0
    assert predictor.uses[-1] == DepthUse(mode="fixed", back_surface_factor=1.5)
    assert predict(photo, "--depth", depth, "--depth-format", "inverse-relative") == 0
    assert predictor.depths_m[-1] == 3.0
    assert predict(photo, "--depth", depth, "--depth-mode", "align", "--back-surface-factor", "2") == 2


def test_internal_depth_is_written_beside_the_splat(predictor: FourGaussians, tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.jpg")
    assert predict(photo, "--save-internal-depth") == 0
    assert names(tmp_path) == ["photo.jpg", "photo.ply", "photo_internal_depth.npy", "photo_internal_depth.png"]
    depth_m = np.load(tmp_path / "photo_internal_depth.npy")
    assert (depth_m.shape, depth_m.dtype) == ((2, 8, 8), np.float32)
    assert [layer.mean() for layer in depth_m] == [2.0, 3.0]
    with Image.open(tmp_path / "photo_internal_depth.png") as colors:
        assert colors.size == (16, 8)
