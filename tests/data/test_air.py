"""air: the clock that was put back, labels from the file, and stretches of weeks that share no hour."""

import gzip

import numpy as np
import pandas as pd
import pytest

from citynb import load
from citynb.datasets import air
from citynb.files import data_folder
from data.air.publish import clock

FOLDER = data_folder() / "air"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return load("air", horizon=3)


@pytest.fixture(scope="module")
def rows():
    """The file, read without the loader."""
    with gzip.open(FOLDER / "air.csv.gz", "rt") as stream:
        return pd.read_csv(stream, index_col="datetime", parse_dates=True)


def test_rows_are_distinct_hours_of_2004(rows):
    assert len(rows) == 8088
    assert rows.index.is_monotonic_increasing and rows.index.is_unique
    assert set(rows.index.year) == {2004}
    assert (rows > 0).all().all()


def test_the_clock_fits_the_traffic(rows):
    """Sundays and the holidays of 2004 have the fewest emissions, and summer rises as early as winter."""
    daily = rows["emission"].resample("D").mean()
    assert daily.groupby(daily.index.day_of_week).mean().idxmin() == 6
    workdays = daily[daily.index.day_of_week < 5].dropna()
    for holiday in ("2004-04-12", "2004-05-20", "2004-05-31"):  # Easter and Whit Monday, Ascension
        assert workdays[holiday] < workdays.median() * 0.8
    workday = rows[rows.index.day_of_week < 5]["emission"]
    rise = {
        season: workday[workday.index.month.isin(months)].groupby(lambda t: t.hour).mean().diff()
        for season, months in (("winter", (1, 2)), ("summer", (6, 7)))
    }
    assert rise["winter"].loc[4:6].idxmax() == rise["summer"].loc[4:6].idxmax()


def test_a_clock_that_disagrees_is_refused():
    day = np.array([452, 452, 452])
    hours = clock(np.array([2090, 2091, 2092]), day)
    assert [str(hour.time()) for hour in hours] == ["01:00:00", "03:00:00", "04:00:00"]
    with pytest.raises(ValueError, match="disagree"):
        clock(np.array([2090, 2091, 2092]), day + 1)


@pytest.mark.parametrize("horizon", [1, 3, 24])
def test_labels_are_the_levels_of_the_file(rows, horizon):
    task = load("air", horizon=horizon)
    limits = [100 / 1.9125, 200 / 1.9125, 400 / 1.9125]
    for part in PARTS:
        split = getattr(task, part)
        ppb = rows["nox"].loc[split.table.index]
        expected = sum((ppb.to_numpy() >= limit).astype(int) for limit in limits)
        assert (split.labels == expected).all()


def test_the_picture_shows_the_week_until_now(task, rows):
    checked = 0
    for part in PARTS:
        split = getattr(task, part)
        for row in range(0, len(split), 97):
            now = split.table.index[row] - pd.Timedelta(hours=3)
            week = rows.reindex(pd.date_range(end=now, periods=168, freq="h"))
            shown = split.inputs[row].reshape(168, 3)
            expected = np.sqrt((week["nox"] / 400).clip(0, 1)), (week["emission"] / 5000).clip(0, 1)
            for channel, values in enumerate(expected):
                known = values.notna().to_numpy()
                assert np.allclose(shown[known, channel], values[known], atol=1e-6)
            assert week["nox"].notna().mean() >= 0.8
            assert np.isclose(split.table["NOx 0 h ago"].iloc[row], week["nox"].iloc[-1])
            checked += 1
    assert checked > 40


@pytest.mark.parametrize("horizon", [1, 24])
def test_no_hour_stands_in_two_splits(horizon):
    task = load("air", horizon=horizon)
    hours = {}
    for part in PARTS:
        ahead = getattr(task, part).table.index
        oldest = ahead - pd.Timedelta(hours=horizon + 167)
        hours[part] = set()
        for start, stop in zip(oldest, ahead, strict=True):
            hours[part].update(pd.date_range(start, stop, freq="h"))
    assert not hours["train"] & hours["validation"]
    assert not hours["train"] & hours["test"]
    assert not hours["validation"] & hours["test"]


def test_a_stretch_reads_nothing_outside_of_itself(monkeypatch):
    """Spoil every hour outside of the training weeks: the training split must not change."""
    before = load("air", horizon=3).train
    read = air.read

    def spoiled(path):
        hours = read(path)
        keep = pd.Series(False, hours.index)
        for part, start, stop in air.stretches_of_weeks():
            if part == "train":
                keep[start:stop] = True
        return hours.where(keep, 1.0, axis=0)

    monkeypatch.setattr(air, "read", spoiled)
    after = load("air", horizon=3).train
    assert np.array_equal(before.inputs, after.inputs)
    assert before.table.equals(after.table)


def test_the_newest_hour_of_a_table_is_now(task, monkeypatch):
    """Spoil the hours after one moment: no row of the table up to it may change."""
    read = air.read
    moment = pd.Timestamp("2004-03-24 12:00")  # inside a test stretch, so `usual` stays

    def spoiled(path):
        hours = read(path)
        stop = pd.Timestamp("2004-04-04 23:00")
        hours.loc[moment + pd.Timedelta(hours=1) : stop] = 1.0
        return hours

    monkeypatch.setattr(air, "read", spoiled)
    after = load("air", horizon=3).test
    until = moment + pd.Timedelta(hours=3)
    old, new = (split.table[:until] for split in (task.test, after))
    assert len(old) > 40 and old.equals(new.loc[old.index])


@pytest.mark.parametrize("horizon", [0, 25, 1.5])
def test_a_horizon_out_of_range_is_refused(horizon):
    with pytest.raises(ValueError, match="choose 1 to 24"):
        load("air", horizon=horizon)
