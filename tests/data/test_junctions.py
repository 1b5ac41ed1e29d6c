"""The shipped `junctions` files: checksums, shapes, labels that follow from the table, no leaks."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from simulation import labels, publishing
from simulation.labels import LABELS, column

FOLDER = Path(__file__).resolve().parents[2] / "data" / "junctions"


@pytest.fixture(scope="module")
def helsinki():
    with np.load(FOLDER / "helsinki.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def sample():
    with np.load(FOLDER / "source_sample.npz", allow_pickle=False) as archive:
        return dict(archive)


def test_files_match_their_checksums():
    lines = (FOLDER / "SHA256SUMS").read_text().split("\n")
    listed = dict(reversed(line.split()) for line in lines if line)
    assert set(listed) == {"headroom.json", "helsinki.npz", "source_sample.npz"}
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 15e6


@pytest.mark.parametrize("name", ["helsinki", "sample"])
def test_shapes_types_and_ranges(name, request):
    data = request.getfixturevalue(name)
    n = len(data["frames"])
    assert data["frames"].shape == (n, 96, 96, 3) and data["frames"].dtype == np.uint8
    assert (
        data["table"].shape == (n, len(data["table_names"])) and data["table"].dtype == np.float32
    )
    assert tuple(data["table_names"]) == labels.TABLE
    assert np.isfinite(data["table"]).all()
    for label in LABELS:
        assert data[label].shape == (n,) and data[label].dtype == np.int8
        assert set(np.unique(data[label])) == {0, 1, 2, 3}
    assert set(np.unique(data["weather"])) <= set(range(5))
    assert (
        column(data["table"], "halting")
        <= sum(column(data["table"], t) for t in ("cars", "buses", "trucks"))
    ).all()


@pytest.mark.parametrize("name", ["helsinki", "sample"])
def test_the_level_now_follows_from_the_table(name, request):
    """`level_now` is the mean density of the three moments that the channels show, cut at the published bounds."""
    data = request.getfixturevalue(name)
    shown = [
        column(data["table"], c).astype(np.float64)
        for c in ("density", "density_20s", "density_40s")
    ]
    level = labels.level(np.mean(shown, axis=0))
    assert np.mean(level == data["level_now"]) > 0.999  # the table is rounded to float32


def test_splits_share_neither_a_day_nor_a_junction(helsinki):
    names = list(helsinki["split_names"])
    assert names[:3] == ["train", "validation", "test"]
    places = {
        name: {key: set(helsinki[key][helsinki["split"] == k]) for key in ("day", "junction")}
        for k, name in enumerate(names)
    }
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not places[a]["day"] & places[b]["day"], (a, b)
        assert not places[a]["junction"] & places[b]["junction"], (a, b)
    assert places["same_junctions"]["junction"] == places["train"]["junction"]
    assert not places["same_junctions"]["day"] & places["train"]["day"]


def test_no_two_windows_overlap(helsinki):
    lon, lat = helsinki["junction_lon_lat"].T
    north = lat * 111_320
    east = lon * 111_320 * np.cos(np.radians(lat.mean()))
    apart = np.maximum(abs(north[:, None] - north), abs(east[:, None] - east))
    np.fill_diagonal(apart, np.inf)
    # The windows are squares on the map grid, which is turned by under 2 degrees against north.
    assert apart.min() > 0.95 * 96


def test_enough_labels_and_no_class_dominates(helsinki):
    for k, least in enumerate((1500, 400, 800)):
        levels = helsinki["level_ahead"][helsinki["split"] == k]
        assert len(levels) >= least
        shares = np.bincount(levels, minlength=4) / len(levels)
        assert shares.min() > 0.03


def test_motion_shows_in_the_channels(helsinki):
    """Pixels change between the channels where vehicles are, and hardly elsewhere."""
    clear = np.flatnonzero(helsinki["weather"] == 0)
    vehicles = sum(column(helsinki["table"], t) for t in ("cars", "vehicles_20s", "vehicles_40s"))[
        clear
    ]
    frames = helsinki["frames"][clear].astype(np.float32)
    change = np.abs(frames[..., 0] - frames[..., 2]).mean(axis=(1, 2))
    empty = change[vehicles == 0]
    busy = change[(vehicles > 20)]
    assert len(empty) and len(busy)
    assert np.median(busy) > 5 * np.median(empty) + 0.1


def test_repeat_the_present_is_beatable_but_better_than_the_majority(helsinki):
    test = helsinki["split"] == 2
    ahead, now = helsinki["level_ahead"][test], helsinki["level_now"][test]
    majority = np.bincount(ahead).max() / len(ahead)
    assert majority + 0.1 < np.mean(ahead == now) < 0.95


def test_publishing_writes_the_same_bytes(sample, tmp_path):
    """The stored arrays written again: names, order, types, compression. Helsinki takes a minute."""
    publishing.write_npz(tmp_path / "again.npz", sample)
    assert (tmp_path / "again.npz").read_bytes() == (FOLDER / "source_sample.npz").read_bytes()


def test_no_column_is_empty(helsinki):
    """Every column says something: none holds one value throughout."""
    for number, name in enumerate(helsinki["table_names"]):
        assert np.ptp(helsinki["table"][:, number]) > 0, name
