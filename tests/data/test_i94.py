"""The shipped counts of i94: levels, hours that no two splits share, and folds that roll forward."""

import numpy as np
import pandas as pd
import pytest

import citynb
from citynb.datasets.i94 import FOLDS
from citynb.files import data_folder
from citynb.tasks.counts import DEMAND_CUTS, read_counts

WEEK = 168


def parts(task):
    return {part: getattr(task, part) for part in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def i94():
    return citynb.load("i94", horizon=3)


@pytest.fixture(scope="module")
def volume():
    return read_counts(data_folder() / "i94" / "i94.csv.gz")["traffic_volume"]


def test_i94(i94, volume):
    assert i94.class_names == ("free", "light", "busy", "heavy")
    assert i94.input_shape == (7, 24, 3)
    assert i94.card.read_text().startswith("# Card: i94")
    assert (len(volume), volume.isna().sum()) == (17_520, 104)
    capacity = volume[:"2017-12-31"].quantile(0.995)
    for split in parts(i94).values():
        measured = volume[split.table.index]
        assert measured.notna().all()
        np.testing.assert_array_equal(split.labels, np.digitize(measured / capacity, DEMAND_CUTS))
        shares = np.bincount(split.labels, minlength=4) / len(split)
        assert shares.min() > 0.15  # the cuts make no class rare
        assert not split.table.isna().any().any()


def test_no_hour_of_i94_is_in_two_splits(i94, volume):
    """Counts every hour a picture or a row of the table reads, and where its gaps come from."""
    place = {hour: i for i, hour in enumerate(volume.index)}
    empty = volume.isna().to_numpy()
    read = []
    for split in parts(i94).values():
        hours = set()
        for time in split.table.index:
            hours.update(range(place[time] - 2 * WEEK, place[time] - 2), [place[time]])
        fills = [hour for hour in hours if empty[hour]]
        for hour in fills:
            while empty[hour]:
                hour -= WEEK if hour >= WEEK else 24
            hours.add(hour)
        read.append(hours)
    assert not read[0] & read[1] and not read[1] & read[2] and not read[0] & read[2]


@pytest.mark.parametrize("fold", [0, 1, 2, 3])
def test_folds_roll_forward(fold):
    task = citynb.load("i94", fold=fold)
    times = [split.table.index for split in parts(task).values()]
    assert times[0][-1] < times[1][0] and times[1][-1] < times[2][0]
    for index, hours in enumerate(times):
        assert hours[0] >= pd.Timestamp(FOLDS[fold][index]) + pd.Timedelta(weeks=2)
        assert hours[-1] < pd.Timestamp(FOLDS[fold][index + 1])
    if fold == 1:
        assert set(times[2].month) == {1, 2, 3}


def test_load_refuses():
    with pytest.raises(ValueError, match="no dataset 'i49'; did you mean 'i94'"):
        citynb.load("i49")
    with pytest.raises(ValueError, match="i94 has no fold 7; choose None, 0, 1, 2 or 3"):
        citynb.load("i94", fold=7)
