"""portland: labels from the file, new detectors apart from pooled ones, splits that share no quarter-hour."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from citynb.data import DEMAND_CUTS, data_folder, fill_gaps, load, read_counts
from citynb.datasets import portland

FOLDER = data_folder() / "portland"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return load("portland", days=7)


@pytest.fixture(scope="module")
def rows():
    """The file, read without the loader."""
    with gzip.open(FOLDER / "counts.csv.gz", "rt") as stream:
        return pd.read_csv(stream, index_col="time", parse_dates=True)


@pytest.fixture(scope="module")
def make(load_make):
    return load_make("portland")


def test_the_file_has_22_detectors(rows):
    assert rows.shape == (2492, 22)
    assert (rows >= 0).all().all() and rows.index.is_unique


def test_labels_are_the_levels_of_the_next_hour(task, rows):
    for part in PARTS:
        split = getattr(task, part)
        for row in range(0, len(split), 53):
            detector, start = str(int(split.table["detector"].iloc[row])), split.table.index[row]
            hour = rows.loc[start : start + pd.Timedelta(minutes=45), detector]
            two_weeks = rows.loc[:"2024-05-01", detector].asfreq("15min")
            capacity = (two_weeks.rolling(4).sum()).quantile(0.995)
            share = hour.sum() / capacity
            assert len(hour) == 4
            assert split.labels[row] == sum(share >= cut for cut in (0.35, 0.54, 0.77))


def test_the_picture_ends_before_the_target(task, rows):
    split = task.test
    for row in range(0, len(split), 101):
        detector, start = str(int(split.table["detector"].iloc[row])), split.table.index[row]
        newest = rows.loc[start - pd.Timedelta(minutes=15), detector]
        capacity = split.table["capacity"].iloc[row]
        assert np.isclose(split.inputs[row, -1, -1, 0], min(1, newest * 4 / capacity), atol=1e-5)
        oldest = rows.loc[start - pd.Timedelta(hours=6), detector]
        assert np.isclose(split.inputs[row, 0, 0, 0], min(1, oldest * 4 / capacity), atol=1e-5)


def test_new_and_pooled_detectors_are_apart(task):
    pooled = load("portland", days=14, detectors="pooled")
    new = {d for part in PARTS for d in getattr(task, part).table["detector"]}
    old = {d for part in PARTS for d in getattr(pooled, part).table["detector"]}
    assert new and len(old) > 8 and not new & old


@pytest.mark.parametrize("days", [1, 3, 7])
def test_days_are_the_last_ones(days):
    train = load("portland", days=days).train
    assert len(np.unique(train.groups)) == days
    assert train.table.index.max() < pd.Timestamp("2024-05-02")
    assert train.table.index.min() >= pd.Timestamp("2024-05-02") - pd.Timedelta(days=days)


def test_no_quarter_hour_stands_in_two_splits(task):
    seen = {}
    for part in PARTS:
        start = getattr(task, part).table.index
        seen[part] = set()
        for quarter in range(-24, 4):
            seen[part].update(start + quarter * pd.Timedelta(minutes=15))
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_the_table_knows_only_the_past(task, monkeypatch):
    """Spoil everything from one moment on: no row whose target begins by then may change."""
    moment = pd.Timestamp("2024-05-08 12:00")
    read = portland.read

    def spoiled():
        counts = read()
        counts.loc[moment:] = 0.0
        return counts

    monkeypatch.setattr(portland, "read", spoiled)
    after = load("portland", days=7).test
    old = task.test.table[task.test.table.index <= moment]
    new = after.table[after.table.index <= moment]
    assert len(old) > 300 and old.equals(new)
    assert not task.test.table.equals(after.table)


@pytest.mark.parametrize("options", [{"days": 0}, {"days": 15}, {"detectors": "all"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match="choose"):
        load("portland", **options)


@pytest.fixture(scope="module")
def stored():
    with np.load(FOLDER / "predictions.npz", allow_pickle=False) as file:
        return json.loads(str(file["meta"])), file["predictions"], file["probabilities"]


def test_results_fit_the_test_split(stored, task):
    meta, predictions, probabilities = stored
    assert predictions.shape == (len(meta["runs"]), len(task.test))
    assert probabilities.shape == (*predictions.shape, task.num_classes)
    assert np.allclose(probabilities.astype(float).sum(-1), 1, atol=5e-3)


def test_every_row_has_three_seeds(stored, make):
    seeds = {}
    for run in stored[0]["runs"]:
        seeds.setdefault((run["name"], run["days"]), set()).add(run["seed"])
    for name in ("majority", "trees", "trees, pooled too", *make.SEARCH):
        assert {days for n, days in seeds if n == name} == {1, 3, 7}
    assert all(found == {0, 1, 2} for found in seeds.values())


def test_each_row_runs_with_the_settings_that_validation_chose(stored, make):
    tried = pd.DataFrame(json.loads((FOLDER / "tuning.json").read_text()))
    for (name, days), found in tried.groupby(["name", "days"]):
        mean = found["accuracy"].groupby(found["settings"].map(json.dumps)).mean()
        assert len(mean) == len(make.SEARCH[name])
        for run in stored[0]["runs"]:
            if (run["name"], run["days"]) == (name, days):
                assert json.dumps(run["settings"]) == mean.idxmax()
    assert not set(make.SEARCH_SEEDS) & set(make.SEEDS)


def test_the_interstate_shows_whole_hours_that_are_over(make):
    """A picture of I-94 must not hold a part of the hour whose level is asked for."""
    source = make.interstate().train
    volume = fill_gaps(read_counts(data_folder() / "i94" / "i94.csv.gz")["traffic_volume"])
    capacity = volume["2016-10":"2018-03"].quantile(0.995)
    assert source.table.index.minute.unique().tolist() == [0]
    for row in range(0, len(source), 997):
        begins = source.table.index[row]
        hours = volume[begins - pd.Timedelta(hours=6) : begins - pd.Timedelta(hours=1)]
        shown = np.repeat(hours.to_numpy()[None] / capacity, 4, axis=0).clip(0, 1)
        assert np.allclose(source.inputs[row, :, :, 0], shown, atol=1e-6)
        assert source.labels[row] == np.digitize(volume[begins] / capacity, DEMAND_CUTS)
