"""CityTask.from_folder: the two layouts, no leak between splits, and clear refusals."""

import io
import os
import re
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from citynb.tasks import CityTask, pictures
from citynb.tasks.pictures import PictureFiles

CLASSES = ("accident", "dense_traffic", "fire", "sparse_traffic")


def draw(path, seed, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def flat(tmp_path):
    """Four classes of 20 pictures; two pictures of each camera."""
    for label, name in enumerate(CLASSES):
        for number in range(20):
            draw(
                tmp_path / "photos" / name / f"cam{number // 2}_{number}.png", 100 * label + number
            )
    return tmp_path / "photos"


@pytest.fixture
def given(tmp_path):
    """The layout of Traffic-Net: train and test, and no validation."""
    for part, count in (("train", 20), ("test", 5)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                seed = 1000 * (part == "test") + 100 * label + number
                draw(tmp_path / "net" / part / name / f"images_{number}.jpg", seed)
    return tmp_path / "net"


def test_flat_folder(flat):
    task = CityTask.from_folder(flat, image_size=(24, 32))
    assert task.class_names == CLASSES and task.name == "photos"
    assert task.input_shape == (24, 32, 3)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [48, 16, 16]
    for split in (task.train, task.validation, task.test):
        assert (np.bincount(split.labels) == len(split) // 4).all()
    pictures = np.asarray(task.train.inputs) / 255
    np.testing.assert_allclose(
        task.train.table["mean green"], pictures[..., 1].mean((1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(
        task.train.table["spread red"], pictures[..., 0].std((1, 2)), rtol=1e-5
    )


def test_the_seed_decides_the_split(flat):
    groups = [
        set(CityTask.from_folder(flat, image_size=32, seed=seed).test.groups) for seed in (0, 0, 1)
    ]
    assert groups[0] == groups[1] != groups[2]


def test_groups_stay_whole(flat):
    task = CityTask.from_folder(
        flat, image_size=32, group_of=lambda path: path.parent.name + path.stem.split("_")[0]
    )
    assert task.split_by == "group"
    for split in (task.train, task.validation, task.test):
        assert (np.unique(split.groups, return_counts=True)[1] == 2).all()
    assert sum(len(s) for s in (task.train, task.validation, task.test)) == 80


def test_given_splits(given):
    task = CityTask.from_folder(given, image_size=32)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [64, 16, 20]
    assert task.split_by == "given folders"
    shutil.copytree(given / "test", given / "validation")
    for label, name in enumerate(CLASSES):
        for number in range(5):
            draw(given / "validation" / name / f"images_{number}.jpg", 5000 + 10 * label + number)
    task = CityTask.from_folder(given, image_size=32)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [80, 20, 20]


def test_a_picture_in_two_splits_stays_in_test_only(given):
    shutil.copy(given / "test/fire/images_0.jpg", given / "train/fire/again.jpg")
    with pytest.warns(UserWarning, match=r"1 picture\(s\) also stand in another split"):
        task = CityTask.from_folder(given, image_size=32)
    assert [len(s) for s in (task.train, task.validation, task.test)] == [64, 16, 20]


def test_copies_share_a_group(flat):
    for number in range(20):
        shutil.copy(flat / f"fire/cam{number // 2}_{number}.png", flat / f"fire/copy{number}.png")
    task = CityTask.from_folder(flat, image_size=32)
    fire = CLASSES.index("fire")
    for split in (task.train, task.validation, task.test):
        assert (np.unique(split.groups[split.labels == fire], return_counts=True)[1] == 2).all()


def test_a_rare_class_inside_groups_of_others(flat):
    """Two cameras see only fires, ten others one each: too few to deal alone, enough together."""
    for camera in range(2, 10):
        for picture in (flat / "fire").glob(f"cam{camera}_*"):
            picture.unlink()
    for camera in range(10):
        draw(flat / f"fire/a{camera}_rare.png", 9000 + camera)

    def camera_of(path):
        if path.stem.startswith("a"):
            return "accident" + path.stem[1]
        return path.parent.name + path.stem[3]

    task = CityTask.from_folder(flat, image_size=32, group_of=camera_of)
    fire = CLASSES.index("fire")
    splits = (task.train, task.validation, task.test)
    assert sum((s.labels == fire).sum() for s in splits) == 14
    assert all((s.labels == fire).any() for s in splits)
    groups = [set(s.groups) for s in splits]
    assert not groups[0] & groups[1] and not groups[1] & groups[2] and not groups[0] & groups[2]


def test_an_unlucky_seed_is_told_to_choose_another(flat):
    """Three cameras see a fire and mostly something else, so chance may leave a split without."""
    for camera in range(10):
        for picture in (flat / "fire").glob(f"cam{camera}_*"):
            picture.unlink()
    for camera in range(3):
        draw(flat / f"fire/a{camera}_rare.png", 9000 + camera)

    def camera_of(path):
        rare = path.stem.startswith("a")
        return "accident" + path.stem[1] if rare else path.parent.name + path.stem[3]

    unlucky = 0
    for seed in range(10):
        try:
            CityTask.from_folder(flat, image_size=32, group_of=camera_of, seed=seed)
        except ValueError as error:
            assert re.search("'fire' has 3 group.* needs one. Choose another seed", str(error))
            unlucky += 1
    assert unlucky > 0


def test_refuses(flat, given, tmp_path):
    load = CityTask.from_folder
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="share .* group"):
        load(given, group_of=lambda path: path.stem)
    shutil.rmtree(given / "test/fire")
    with pytest.raises(ValueError, match="test has no pictures of the class 'fire'"):
        load(given)
    shutil.rmtree(given / "test")
    with pytest.raises(ValueError, match="has train, but a given split needs train and test"):
        load(given)
    for camera in range(1, 10):
        for picture in (flat / "fire").glob(f"cam{camera}_*"):
            picture.unlink()
    with pytest.raises(ValueError, match="the class 'fire' has 2 group.* needs one. Add pictures"):
        load(flat)
    draw(flat / "fire/cam9_0.png", 7777)
    (flat / "fire/cam0_0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="fire.cam0_0.png cannot be read .*neither JPEG nor PNG"):
        load(flat)
    (flat / "fire/notes.txt").write_text("x")
    with pytest.raises(ValueError, match="notes.txt is no picture .*Move it elsewhere"):
        load(flat)
    shutil.rmtree(flat / "fire")
    (flat / "fire").mkdir()
    with pytest.raises(ValueError, match="class folder .*fire is empty"):
        load(flat)
    for name in ("fire", "accident", "dense_traffic"):
        shutil.rmtree(flat / name)
    with pytest.raises(ValueError, match="has 1 class folder.*sparse_traffic"):
        load(flat)


# --- Pictures are read when they are needed ---------------------------------------------------


def test_nothing_is_read_before_a_batch(flat, monkeypatch):
    read = []
    original = pictures._read
    monkeypatch.setattr(pictures, "_read", lambda *args: read.append(args) or original(*args))
    task = CityTask.from_folder(flat, image_size=32)
    subset = task.subset(8)
    assert read == [] and task.train.inputs.dtype == np.uint8
    assert subset.train.inputs.shape == (8, 32, 32, 3)
    batches = list(subset.train.batches(4, seed=0))
    assert len(read) == 8 and [batch.dtype for batch, *_ in batches] == ["uint8", "uint8"]
    assert len(subset.train.table) == 8 and len(read) == 16
    assert len(subset.train.table) == 8 and len(read) == 16  # kept


@pytest.mark.parametrize("size", [(30, 40), (30, 30), (17, 64), (64, 17), (1, 1)])
@pytest.mark.parametrize("kind", ["RGB", "L", "P", "RGBA", "CMYK.jpg", "RGB.jpg"])
def test_pictures_are_those_of_keras(tmp_path, size, kind):
    mode, _, ending = kind.partition(".")
    path = tmp_path / f"picture.{ending or 'png'}"
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    wanted = keras.utils.load_img(
        path, target_size=size, interpolation="bilinear", keep_aspect_ratio=True
    )
    (picture,) = PictureFiles([path], size)[:]
    np.testing.assert_array_equal(picture, np.asarray(wanted))


def test_picture_files(flat):
    paths = sorted((flat / "fire").iterdir())
    files = PictureFiles(paths, (24, 32))
    whole = np.asarray(files)
    assert files.shape == whole.shape == (20, 24, 32, 3) and len(files) == 20
    np.testing.assert_array_equal(files[3], whole[3])
    np.testing.assert_array_equal(files[2:5], whole[2:5])
    np.testing.assert_array_equal(files[np.array([7, 1])], whole[[7, 1]])
    np.testing.assert_array_equal(files.take(np.arange(20) % 2 == 0)[:], whole[::2])
    assert files[[]].shape == (0, 24, 32, 3)
    with pytest.raises(IndexError, match="by rows only"):
        files[..., 0]
    assert PictureFiles(paths[:1], (1, 500))[0].shape == (1, 500, 3)  # flatter than one row


def test_sixteen_bits_of_grey(tmp_path):
    ramp = np.linspace(0, 65_535, 1200).astype(np.uint16).reshape(30, 40)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    picture = PictureFiles([tmp_path / "grey.png"], (30, 40))[0]
    np.testing.assert_array_equal(picture, np.round(ramp / 257)[..., None].repeat(3, -1))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_pictures_are_turned_as_the_camera_noted(tmp_path, ending):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:10] = 255  # the sky
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.fromarray(np.rot90(upright)).save(tmp_path / f"turned.{ending}", exif=exif)
    picture = PictureFiles([tmp_path / f"turned.{ending}"], (20, 30))[0]
    assert picture[:8].min() > 200 and picture[12:].max() < 50


def write_odd(path, kind):
    """Write a file that is no whole JPEG or PNG picture under the name of one."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":  # 200 megapixels of one color
        Image.new("1", (20_000, 10_000)).save(path, "PNG")
    elif kind == "text":
        info = PngInfo()
        info.add_text("note", "x" * 3_000_000, zip=True)
        Image.new("RGB", (9, 9)).save(path, "PNG", pnginfo=info)
    elif kind == "cut JPEG":
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)).save(
            stream, "JPEG"
        )
        path.write_bytes(stream.getvalue()[:-900])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        Image.new("RGB", (9, 9)).save(path, kind)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is not a regular file"),
        ("folder", "is not a regular file"),
        ("bomb", "cannot be read as a picture .*pixels"),
        ("text", "cannot be read as a picture .*too large"),
        ("cut JPEG", "cannot be read as a picture .*truncated"),
        ("empty", ".*neither JPEG nor PNG"),
        ("EPS", ".*neither JPEG nor PNG"),
        ("GIF", ".*neither JPEG nor PNG"),
        ("WEBP", ".*neither JPEG nor PNG"),
        ("TIFF", ".*neither JPEG nor PNG"),
        ("BMP", ".*neither JPEG nor PNG"),
    ],
)
def test_files_that_are_no_pictures_are_named_at_once(flat, kind, message):
    write_odd(flat / "fire/odd.png", kind)
    with pytest.raises(ValueError, match=f"fire.odd.png {message}"):
        CityTask.from_folder(flat, image_size=32)


def test_what_breaks_later_is_named_with_its_batch(flat):
    task = CityTask.from_folder(flat, image_size=32)
    path = task.train.inputs.paths[5]
    content = path.read_bytes()
    path.write_bytes(content[:2000] + content[-20:])  # its header and its end are whole
    name = re.escape(str(path))
    with pytest.raises(ValueError, match=f"^{name} cannot be read as a picture"):
        task.train.read(np.arange(8))
    with pytest.raises(ValueError, match=f"^{name} cannot be read"), task.train.reading():
        list(task.train.batches(8, seed=0))
    path.unlink()
    with pytest.raises(ValueError, match=f"^{name} is gone"), task.train.reading():
        list(task.train.batches(8, seed=0))


def test_much_after_the_end_of_a_picture_is_no_fault(flat):
    draw(flat / "fire/phone.jpg", 7)
    with open(flat / "fire/phone.jpg", "ab") as stream:
        stream.write(bytes(100_000))  # as phones append a film
    assert len(CityTask.from_folder(flat, image_size=32, seed=1).train) == 49


# --- Folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "shown"), [(None, "None"), (np.nan, "nan"), (pd.NA, "<NA>")])
def test_every_picture_needs_a_group(flat, gap, shown):
    def camera_of(path):
        return gap if path.name == "cam3_7.png" and path.parent.name == "fire" else path.stem

    with pytest.raises(ValueError, match=rf"group_of gave {shown} for .*fire.cam3_7.png"):
        CityTask.from_folder(flat, group_of=camera_of)


def test_a_group_of_that_fails_names_the_picture(flat):
    with pytest.raises(ValueError, match=r"group_of failed for .*cam0_0.png: IndexError: list"):
        CityTask.from_folder(flat, group_of=lambda path: path.stem.split("-")[1])


@pytest.mark.parametrize("size", [0, -3, 2.5, (32, 0), (32, 32, 3), "large", None])
def test_image_sizes(flat, size):
    with pytest.raises(ValueError, match="image_size is .*; give whole pixels from 1"):
        CityTask.from_folder(flat, image_size=size)


def test_only_the_three_splits_stand_beside_each_other(given):
    shutil.copytree(given / "test", given / "val")
    with pytest.raises(ValueError, match="val stands beside train and test.*Rename it to valida"):
        CityTask.from_folder(given)
    shutil.rmtree(given / "val")
    draw(given / "flood/images_0.png", 1)
    with pytest.raises(ValueError, match="flood stands beside train and test.*Move it elsewhere"):
        CityTask.from_folder(given)


def test_hidden_folders_are_skipped(flat, given):
    for folder in (flat, given, given / "train"):
        draw(folder / ".ipynb_checkpoints/picture.png", 1)
        assert CityTask.from_folder(folder, image_size=8).class_names == CLASSES
