"""CityTask.from_folder: the two layouts, no leak between splits, and clear refusals."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from citynb.tasks import CityTask

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
