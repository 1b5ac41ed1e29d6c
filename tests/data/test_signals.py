"""signals: labels from the file, new detectors apart from pooled ones, splits that share no quarter-hour."""

import gzip

import numpy as np
import pandas as pd
import pytest

from citynb import load
from citynb.datasets import signals
from citynb.files import data_folder

FOLDER = data_folder() / "signals"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return load("signals", days=7)


@pytest.fixture(scope="module")
def rows():
    """The file, read without the loader."""
    with gzip.open(FOLDER / "counts.csv.gz", "rt") as stream:
        return pd.read_csv(stream, index_col="time", parse_dates=True)


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
    pooled = load("signals", days=14, detectors="pooled")
    new = {d for part in PARTS for d in getattr(task, part).table["detector"]}
    old = {d for part in PARTS for d in getattr(pooled, part).table["detector"]}
    assert new and len(old) > 8 and not new & old


@pytest.mark.parametrize("days", [1, 3, 7])
def test_days_are_the_last_ones(days):
    train = load("signals", days=days).train
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
    read = signals.read

    def spoiled():
        counts = read()
        counts.loc[moment:] = 0.0
        return counts

    monkeypatch.setattr(signals, "read", spoiled)
    after = load("signals", days=7).test
    old = task.test.table[task.test.table.index <= moment]
    new = after.table[after.table.index <= moment]
    assert len(old) > 300 and old.equals(new)
    assert not task.test.table.equals(after.table)


@pytest.mark.parametrize("options", [{"days": 0}, {"days": 15}, {"detectors": "all"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match="choose"):
        load("signals", **options)
