"""The tiles of Helsinki: labels and indices follow from the maps, and no two splits touch."""

import numpy as np
import pytest

import citynb
from citynb.datasets import land_use
from citynb.files import data_folder
from data.land_use.publish import morphology
from data.land_use.publish import tiles as cut_tiles

FOLDER = data_folder() / "land_use"
CENTER = slice(15, 33)  # of 48 pixels: the 18 in the middle


@pytest.fixture(scope="module")
def city():
    return land_use.city()


def windows(city, name):
    """Cut the tiles out of one of the city's maps."""
    return [
        city[name][row : row + 48, column : column + 48]
        for row, column in zip(city["row"], city["column"], strict=True)
    ]


def painted(city, tiles, margin=0):
    """Return a mask of the city: what these tiles cover, widened by a margin."""
    mask = np.zeros(city["use"].shape, bool)
    for row, column in zip(city["row"][tiles], city["column"][tiles], strict=True):
        mask[
            max(0, row - margin) : row + 48 + margin, max(0, column - margin) : column + 48 + margin
        ] = True
    return mask


def test_shapes_and_ranges():
    task = citynb.load("land_use", fold=1)
    assert task.input_shape == (48, 48, 3)
    assert task.class_names == ("residential", "commercial", "civic", "green")
    for part in (task.train, task.validation, task.test):
        assert part.inputs.dtype == np.float32 and part.labels.dtype == np.int64
        assert set(np.unique(part.inputs[..., :2])) == {0, 1}
        assert set(np.unique(part.inputs[..., 2])) <= {0, 0.5, 1}
        assert np.isfinite(part.table.to_numpy()).all() and part.table.shape[1] == 14


def test_labels_follow_from_the_map_of_uses(city):
    for window, label in zip(windows(city, "use"), city["label"], strict=True):
        center = window[CENTER, CENTER]
        tagged = center[center > 0]
        assert tagged.size >= center.size / 2
        values, counts = np.unique(tagged, return_counts=True)
        assert values[counts.argmax()] - 1 == label
        assert counts.max() / tagged.size >= 2 / 3


def test_no_labelled_tile_was_left_out(city):
    rows, columns, labels = cut_tiles(city["use"])
    assert np.array_equal(rows, city["row"]) and np.array_equal(columns, city["column"])
    assert np.array_equal(labels, city["label"])


def test_no_two_centers_share_a_pixel(city):
    seen = np.zeros(city["use"].shape, int)
    for row, column in zip(city["row"], city["column"], strict=True):
        seen[row + 15 : row + 33, column + 15 : column + 33] += 1
    assert seen.max() == 1


def test_indices_follow_from_the_tile(city):
    names = city["table_names"].tolist()
    tiles = list(zip(windows(city, "buildings"), windows(city, "streets"), strict=True))
    again = np.array([morphology(*tile) for tile in tiles], np.float32)
    assert np.allclose(again, city["table"], rtol=1e-5)
    for (buildings, streets), row in zip(tiles, city["table"], strict=True):
        numbers = [n for n in set(buildings.ravel().tolist()) if n]
        sizes = [4 * (buildings == n).sum() for n in numbers]  # a pixel is 4 square meters
        expected = {
            "built share": (buildings > 0).sum() / 48**2,
            "buildings": len(numbers),
            "largest building area": max(sizes, default=0),
            "mean building area": sum(sizes) / len(sizes) if sizes else 0,
            "carriageway share": (streets == 2).sum() / 48**2,
            "path share": (streets == 1).sum() / 48**2,
        }
        for name, value in expected.items():
            assert row[names.index(name)] == pytest.approx(value, rel=1e-5), name


def test_the_label_is_not_in_the_picture(city):
    without = city | {"use": np.zeros_like(city["use"]), "label": np.zeros_like(city["label"])}
    assert np.array_equal(land_use.draw_tiles(without), land_use.draw_tiles(city))
    assert not {"use", "label", "row", "column"} & set(city["table_names"].tolist())


def test_pictures_show_buildings_walls_and_streets(city):
    pictures = land_use.draw_tiles(city)
    for picture, buildings, streets in zip(
        pictures, windows(city, "buildings"), windows(city, "streets"), strict=True
    ):
        assert np.array_equal(picture[..., 0] == 1, buildings > 0)
        assert np.array_equal(picture[..., 2] * 2, streets)
        wall = picture[1:, 1:, 1] == 1
        inner = buildings[1:, 1:]
        other = (inner != buildings[:-1, 1:]) | (inner != buildings[1:, :-1])
        assert np.array_equal(wall, (inner > 0) & other)


@pytest.mark.parametrize("fold", range(3))
def test_no_two_splits_touch(city, fold):
    parts = land_use.parts("spatial", fold, city)
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        widened = painted(city, parts[one], margin=land_use.GAP)
        assert not (widened & painted(city, parts[other])).any(), (one, other)


def test_the_gap_is_the_one_that_the_card_names(city):
    assert land_use.GAP * 2 == 24 and "within 24 m" in (FOLDER / "card.md").read_text()
    parts = land_use.parts("spatial", 0, city)
    wider = painted(city, parts["train"], margin=land_use.GAP + 20)
    assert (wider & painted(city, parts["validation"])).any(), "the check above could not fail"


def test_the_random_split_overlaps(city):
    parts = land_use.parts("random", 0, city)
    shared = painted(city, parts["train"]) & painted(city, parts["test"])
    assert shared.sum() > painted(city, parts["test"]).sum() / 2


@pytest.mark.parametrize("split", ["spatial", "random"])
def test_every_tile_is_tested_once(city, split):
    tested = [land_use.parts(split, fold, city)["test"] for fold in range(3)]
    assert sorted(np.concatenate(tested)) == list(range(len(city["label"])))


def test_a_block_lies_in_one_band_and_one_place(city):
    blocks = land_use.blocks(city)
    assert len(np.unique(blocks)) == 24
    for block in np.unique(blocks):
        rows, columns = (city[key][blocks == block].astype(int) for key in ("row", "column"))
        assert np.ptp(rows) <= 832 / 6 and np.ptp(columns) <= 505 / 4


def test_the_index_of_a_table_is_the_number_of_the_tile(city):
    task = citynb.load("land_use", fold=2)
    tile = task.test.table.index[7]
    assert task.test.labels[7] == city["label"][tile]
    assert np.array_equal(task.test.inputs[7], land_use.draw_tiles(city)[tile])
    assert np.array_equal(task.test.table.iloc[7], city["table"][tile])


def test_an_unknown_split_or_fold_is_refused():
    with pytest.raises(ValueError, match="'spatial' or 'random'"):
        citynb.load("land_use", split="time")
    with pytest.raises(ValueError, match="no fold 3; choose 0 to 2"):
        citynb.load("land_use", fold=3)
