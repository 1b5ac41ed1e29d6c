"""nox: the clock that was put back, labels from the file, and stretches of weeks that share no hour."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from citynb.data import data_folder, load
from citynb.datasets import nox

FOLDER = data_folder() / "nox"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return load("nox", horizon=3)


@pytest.fixture(scope="module")
def rows():
    """The file, read without the loader."""
    with gzip.open(FOLDER / "nox.csv.gz", "rt") as stream:
        return pd.read_csv(stream, index_col="datetime", parse_dates=True)


@pytest.fixture(scope="module")
def make(load_make):
    return load_make("nox")


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


def test_a_clock_that_disagrees_is_refused(make):
    day = np.array([452, 452, 452])
    hours = make.clock(np.array([2090, 2091, 2092]), day)
    assert [str(hour.time()) for hour in hours] == ["01:00:00", "03:00:00", "04:00:00"]
    with pytest.raises(ValueError, match="disagree"):
        make.clock(np.array([2090, 2091, 2092]), day + 1)


@pytest.mark.parametrize("horizon", [1, 3, 24])
def test_labels_are_the_levels_of_the_file(rows, horizon):
    task = load("nox", horizon=horizon)
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
    task = load("nox", horizon=horizon)
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
    before = load("nox", horizon=3).train
    read = nox.read

    def spoiled(path):
        hours = read(path)
        keep = pd.Series(False, hours.index)
        for part, start, stop in nox.stretches_of_weeks():
            if part == "train":
                keep[start:stop] = True
        return hours.where(keep, 1.0, axis=0)

    monkeypatch.setattr(nox, "read", spoiled)
    after = load("nox", horizon=3).train
    assert np.array_equal(before.inputs, after.inputs)
    assert before.table.equals(after.table)


def test_the_newest_hour_of_a_table_is_now(task, monkeypatch):
    """Spoil the hours after one moment: no row of the table up to it may change."""
    read = nox.read
    moment = pd.Timestamp("2004-03-24 12:00")  # inside a test stretch, so `usual` stays

    def spoiled(path):
        hours = read(path)
        stop = pd.Timestamp("2004-04-04 23:00")
        hours.loc[moment + pd.Timedelta(hours=1) : stop] = 1.0
        return hours

    monkeypatch.setattr(nox, "read", spoiled)
    after = load("nox", horizon=3).test
    until = moment + pd.Timedelta(hours=3)
    old, new = (split.table[:until] for split in (task.test, after))
    assert len(old) > 40 and old.equals(new.loc[old.index])


@pytest.mark.parametrize("horizon", [0, 25, 1.5])
def test_a_horizon_out_of_range_is_refused(horizon):
    with pytest.raises(ValueError, match="choose 1 to 24"):
        load("nox", horizon=horizon)


@pytest.fixture(scope="module")
def stored():
    with np.load(FOLDER / "predictions.npz", allow_pickle=False) as file:
        return json.loads(str(file["meta"])), file["predictions"], file["very_high"]


def test_results_fit_the_test_split(stored, task):
    meta, predictions, very_high = stored
    assert predictions.shape == (len(meta["runs"]), len(task.test)) == very_high.shape
    assert 0 <= predictions.min() <= predictions.max() < task.num_classes


def test_every_row_has_three_seeds(stored):
    seeds = {}
    for run in stored[0]["runs"]:
        seeds.setdefault((run["name"], run["labels"]), set()).add(run["seed"])
    names = {name for name, _ in seeds}
    assert names == {"majority", "trees", "scratch", "frozen", "fine-tuned"}
    assert all(len(found) == 3 for found in seeds.values())


def test_each_row_runs_with_the_settings_that_validation_chose(stored, make):
    tried = json.loads((FOLDER / "tuning.json").read_text())
    sizes = {100: 100, 300: 300, None: max(run["labels"] for run in stored[0]["runs"])}
    for name, options in make.SEARCH.items():
        for labels, size in sizes.items():
            found = [t for t in tried if (t["name"], t["labels"]) == (name, labels)]
            assert [one["settings"] for one in found] == options
            best = max(one["macro_f1"] for one in found)
            chosen = [one["settings"] for one in found if one["macro_f1"] == best]
            for run in stored[0]["runs"]:
                if (run["name"], run["labels"]) == (name, size):
                    assert run["settings"] in chosen
    assert make.SEARCH_SEED not in make.SEEDS
