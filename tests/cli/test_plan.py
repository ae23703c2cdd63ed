from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharp_cog.cli.plan import Job, plan
from sharp_cog.errors import DepthError, ImageError, InputError, OutputError
from tests.cli.commands import names, write_image


def planned(
    *inputs: Path, output: Path | str | None = None, depth: Path | None = None, recursive: bool = False
) -> list[Job]:
    return plan(
        list(inputs), output=None if output is None else str(output), depth=depth, suffix=".ply", recursive=recursive
    )


def targets(*inputs: Path, output: Path | str | None = None, recursive: bool = False) -> list[Path]:
    return [job.target for job in planned(*inputs, output=output, recursive=recursive)]


def depth_names(*inputs: Path, depth: Path, recursive: bool = False) -> list[str | None]:
    """Return the depth map of each image, relative to its folder."""
    jobs = planned(*inputs, depth=depth, recursive=recursive)
    return [None if job.depth is None else job.depth.relative_to(depth).as_posix() for job in jobs]


def test_without_an_output_everything_is_written_beside_the_image(tmp_path: Path) -> None:
    (job,) = planned(write_image(tmp_path / "photo.jpg"))
    assert job.target == tmp_path / "photo.ply"
    assert job.preview == tmp_path / "photo.preview.webp"
    assert job.internal_depth == tmp_path / "photo_internal_depth.npy"


def test_the_output_of_one_image_may_be_a_file(tmp_path: Path) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    assert targets(photo, output=tmp_path / "scene.splat.ply") == [tmp_path / "scene.splat.ply"]


def test_a_folder_of_one_image_is_written_to_a_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.jpg")
    assert targets(tmp_path / "photos", output=tmp_path / "splats") == [tmp_path / "splats" / "a.ply"]
    assert targets(tmp_path / "photos", output=tmp_path / "a.ply") == [tmp_path / "a.ply"]


def test_several_images_need_a_folder(tmp_path: Path) -> None:
    photos = [write_image(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    with pytest.raises(InputError, match=r"2 images cannot all become the file .*x\.ply: name a folder, such as .*x/"):
        planned(*photos, output=tmp_path / "x.ply")
    assert targets(*photos, output=tmp_path / "splats.2026")[0] == tmp_path / "splats.2026" / "a.ply"


@pytest.mark.parametrize("exists", [True, False])
def test_the_output_of_one_image_may_be_a_folder(tmp_path: Path, exists: bool) -> None:
    photo, folder = write_image(tmp_path / "photo.jpg"), tmp_path / "splats"
    if exists:
        folder.mkdir()
    assert targets(photo, output=folder if exists else f"{folder}/") == [folder / "photo.ply"]
    assert folder.is_dir()


def test_images_of_the_same_name_keep_their_suffixes(tmp_path: Path) -> None:
    photos = [write_image(tmp_path / name) for name in ("a.jpg", "a.png", "b.jpg")]
    assert [path.name for path in targets(*photos, output=tmp_path / "splats")] == ["a.jpg.ply", "a.png.ply", "b.ply"]


def test_images_that_would_be_written_to_one_file_are_refused(tmp_path: Path) -> None:
    photos = [write_image(tmp_path / folder / "a.jpg") for folder in ("x", "y")]
    with pytest.raises(InputError, match="would all become") as error:
        planned(*photos, output=tmp_path / "splats")
    assert all(str(photo) in str(error.value) for photo in photos)


def test_an_image_is_never_overwritten(tmp_path: Path) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    (tmp_path / "link.jpg").symlink_to(photo)
    (tmp_path / "folder").mkdir()
    for spelling in (photo, tmp_path / "link.jpg", tmp_path / "folder" / ".." / "photo.jpg"):
        with pytest.raises(InputError, match="would be overwritten: choose another -o"):
            planned(photo, output=spelling)


def test_folders_of_folders_are_searched_only_with_recursive(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.jpg")
    write_image(tmp_path / "photos" / "below" / "b.jpg")
    assert targets(tmp_path / "photos") == [tmp_path / "photos" / "a.ply"]
    assert targets(tmp_path / "photos", recursive=True) == [
        tmp_path / "photos" / "a.ply",
        tmp_path / "photos" / "below" / "b.ply",
    ]


def test_the_structure_of_folders_is_kept_below_the_output(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_image(tmp_path / "in" / folder / "a.jpg")
    out = tmp_path / "out"
    assert targets(tmp_path / "in", output=out, recursive=True) == [out / "x" / "a.ply", out / "y" / "a.ply"]


def test_outputs_and_hidden_files_in_a_folder_are_not_taken_for_images(tmp_path: Path) -> None:
    write_image(tmp_path / "room.jpg")
    Image.fromarray(np.full((64, 96), 3000, dtype=np.uint16)).save(tmp_path / "room.depth.png")
    for name in ("room.preview.webp", "room_internal_depth.png", "._room.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("notes")
    assert [job.image.name for job in planned(tmp_path)] == ["room.jpg"]


def test_depth_maps_are_found_by_the_names_of_their_images(tmp_path: Path) -> None:
    photos = [write_image(tmp_path / name) for name in ("a.jpg", "b.png", "c.jpg", "d.jpg")]
    for name in ("a.depth.npy", "b.depth.png", "c.png", "d.tiff"):
        (tmp_path / name).touch()
    assert depth_names(*photos, depth=tmp_path) == ["a.depth.npy", "b.depth.png", "c.png", "d.tiff"]


def test_a_depth_map_with_the_whole_name_of_its_image_is_found_first(tmp_path: Path) -> None:
    """`sharp-cog depth` names the maps of a.jpg and a.png so, because both would become a.npy."""
    photos = [write_image(tmp_path / name) for name in ("a.jpg", "a.png", "b.jpg")]
    for name in ("a.jpg.npy", "a.png.npy", "b.npy"):
        (tmp_path / "maps" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "maps" / name).touch()
    assert depth_names(*photos, depth=tmp_path / "maps") == ["a.jpg.npy", "a.png.npy", "b.npy"]


def test_depth_maps_are_found_in_the_folder_of_their_image_and_in_the_folder_itself(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    for folder in ("x", "y", "z"):
        write_image(tmp_path / "in" / folder / f"{'c' if folder == 'z' else 'a'}.jpg")
    for name in ("x/a.npy", "y/a.npy", "c.npy"):
        (maps / name).parent.mkdir(parents=True, exist_ok=True)
        (maps / name).touch()
    assert depth_names(tmp_path / "in", depth=maps, recursive=True) == ["x/a.npy", "y/a.npy", "c.npy"]


def test_a_folder_of_depth_maps_mirrors_the_folders_of_the_images(tmp_path: Path) -> None:
    """A map in the folder itself belongs to the image there, and to no other of its name."""
    maps = tmp_path / "maps"
    for name in ("1.jpg", "a/1.jpg", "b/1.jpg", "b/c/1.jpg"):
        write_image(tmp_path / "in" / name)
    for name in ("1.npy", "a/1.npy", "b/c/1.npy"):
        (maps / name).parent.mkdir(parents=True, exist_ok=True)
        (maps / name).touch()
    assert depth_names(tmp_path / "in", depth=maps, recursive=True) == ["1.npy", "a/1.npy", None, "b/c/1.npy"]


def test_images_that_are_named_themselves_have_their_maps_in_folders_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = [write_image(Path(name)) for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg")]
    for name in ("1.npy", "a/1.npy", "2.npy"):
        (Path("maps") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("maps") / name).touch()
    found = depth_names(*images, depth=Path("maps"))
    assert found == ["a/1.npy", None, "2.npy"]


def test_one_map_does_not_serve_images_of_two_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = [write_image(tmp_path / name / "1.jpg").parent for name in ("x", "y")]
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "1.npy").touch()
    assert depth_names(folders[0], depth=tmp_path / "maps") == ["1.npy"]
    images = [folder / "1.jpg" for folder in folders]
    assert depth_names(*images, depth=tmp_path / "maps") == [None, None]
    assert "has no depth map for 1.jpg" in caplog.text


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_an_image_is_not_the_depth_map_of_its_neighbour(tmp_path: Path, mode: str) -> None:
    photo = write_image(tmp_path / "dup.webp")
    Image.new(mode, (96, 64)).save(tmp_path / "dup.png")
    assert depth_names(photo, depth=tmp_path) == [None], "it is not part of the run"
    assert depth_names(tmp_path, depth=tmp_path) == [None, None]
    Image.fromarray(np.full((64, 96), 3000, dtype=np.uint16)).save(tmp_path / "dup.png")
    assert depth_names(photo, depth=tmp_path) == ["dup.png"]


def test_an_image_is_not_its_own_depth_map(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo = write_image(tmp_path / "room.png")
    assert depth_names(photo, depth=tmp_path) == [None]
    assert "has no depth map for room.png" in caplog.text


def test_one_depth_map_serves_all_images(tmp_path: Path) -> None:
    photos = [write_image(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    (tmp_path / "flat.npy").touch()
    assert {job.depth for job in planned(*photos, depth=tmp_path / "flat.npy")} == {tmp_path / "flat.npy"}


def test_missing_inputs_are_refused(tmp_path: Path) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    with pytest.raises(ImageError, match=r"there is no file or folder .*no\.jpg"):
        planned(tmp_path / "no.jpg")
    with pytest.raises(DepthError, match=r"no\.png does not exist"):
        planned(photo, depth=tmp_path / "no.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="--recursive"):
        planned(tmp_path / "empty")


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    with pytest.raises(OutputError, match="cannot write into the folder"):
        planned(photo, output=tmp_path / "no" / "photo.ply")
    with pytest.raises(OutputError, match="cannot create the folder"):
        planned(photo, output=f"{photo}/")
    assert names(tmp_path) == ["photo.jpg"]
