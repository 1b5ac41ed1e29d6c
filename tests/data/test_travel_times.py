"""travel_times: levels from the file, pictures that end before the target, new segments apart."""

import gzip

import numpy as np
import pandas as pd
import pytest

from citynb import load
from citynb.datasets import travel_times
from citynb.files import data_folder

FOLDER = data_folder() / "travel_times"
PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def rows():
    """The file, read without the loader."""
    with gzip.open(FOLDER / "travel_times.csv.gz", "rt") as stream:
        return pd.read_csv(stream, index_col="time", parse_dates=True)


@pytest.fixture(scope="module")
def task():
    return load("travel_times", days=6)


@pytest.fixture(scope="module")
def speeds():
    """Four days of twelve hours at five made-up sensors, no two speeds alike."""
    hours = [
        pd.Timestamp(day) + pd.Timedelta(hours=hour)
        for day in pd.date_range("2024-01-01", periods=4)
        for hour in range(6, 18)
    ]
    values = np.random.default_rng(0).uniform(20, 60, (len(hours), 5))
    return pd.DataFrame(values, pd.DatetimeIndex(hours), list("abcde"))


def made_up(speeds, **changes):
    """Make a task of sensor c, whose neighbors are b and e: d is not to be seen."""
    days = np.unique(speeds.index.date)
    options = dict(
        sensors=["c"], nearby=["a", "b", "e"], days=[days[:2], days[2:3], days[3:]],
        free_flow=speeds.max(), past=3, ahead=1,
    )  # fmt: skip
    return travel_times.speed_task(speeds, **options | changes)


def test_the_file_has_six_whole_segments(rows):
    assert rows.shape == (574, 6) and rows.index.is_unique
    assert (rows > 0).all().all()
    assert set(rows.groupby(rows.index.date).size()) == {14}


def test_levels_are_those_of_the_target_hour(task, rows):
    known = rows["2022-09-02":"2022-09-23"]
    free = known[known.index.day_of_week < 5].quantile(0.05, interpolation="linear")
    for part in PARTS:
        split = getattr(task, part)
        for row in range(0, len(split), 17):
            segment = rows.columns[int(split.table["sensor"].iloc[row])]
            share = free[segment] / rows.loc[split.table.index[row], segment]
            near_a_cut = min(abs(share - cut) for cut in (0.5, 0.67, 0.8)) < 0.005
            assert near_a_cut or split.labels[row] == sum(share <= cut for cut in (0.5, 0.67, 0.8))


def test_levels_at_the_cuts():
    assert travel_times.levels([1.2, 0.81, 0.8, 0.67, 0.5, 0.1]).tolist() == [0, 0, 1, 2, 3, 3]


def test_pictures_of_old_segments_do_not_show_new_ones(monkeypatch):
    """Spoil the new segments: the old task must stay as it is, and the new one must not."""
    seconds = travel_times.read()
    new, old = travel_times.held_out(seconds.columns, every=3)
    assert len(new) == 2 and len(old) == 4 and not set(new) & set(old)
    spoiled = seconds.copy()
    spoiled[new] = spoiled[new].to_numpy()[::-1]
    tasks = {}
    for frame in (seconds, spoiled):
        monkeypatch.setattr(travel_times, "read", lambda frame=frame: frame)
        for segments in ("old", "new"):
            tasks.setdefault(segments, []).append(load("travel_times", segments=segments).test)
    assert np.array_equal(*[split.inputs for split in tasks["old"]])
    assert not np.array_equal(*[split.inputs for split in tasks["new"]])


def test_the_picture_shows_the_neighbors_and_ends_before_the_target(speeds):
    task = made_up(speeds)
    share = speeds / speeds.max()
    for row in range(len(task.test)):
        target = task.test.table.index[row]
        hours = [target - pd.Timedelta(hours=back) for back in (3, 2, 1)]
        picture = share.loc[hours, ["b", "c", "e"]].to_numpy().T
        assert np.allclose(task.test.inputs[row, :, :, 0], picture, atol=1e-6)
        day_before = [target - pd.Timedelta(hours=24 + back) for back in (2, 1, 0)]
        picture = share.loc[day_before, ["b", "c", "e"]].to_numpy().T
        assert np.allclose(task.test.inputs[row, :, :, 1], picture, atol=1e-6)
        assert task.test.labels[row] == travel_times.levels(share.loc[target, "c"])
        assert np.isclose(task.test.table["0 rows ago"].iloc[row], share.loc[hours[-1], "c"])


def test_at_the_end_of_the_road_the_neighbor_is_repeated(speeds):
    picture = made_up(speeds, sensors=["a"], reach=2).test.inputs[0, :, :, 0]
    assert np.array_equal(picture[0], picture[1]) and np.array_equal(picture[0], picture[3])
    assert not np.array_equal(picture[2], picture[3]) and not np.array_equal(picture[3], picture[4])


def test_nothing_after_the_target_is_known(speeds):
    """Spoil everything from one moment on: no row whose target lies before it may change."""
    moment = speeds.index[-4]
    spoiled = speeds.copy()
    spoiled.loc[moment:] = 1.0
    free = speeds.max()
    before, after = (made_up(s, free_flow=free).test for s in (speeds, spoiled))
    old = before.table.index < moment
    assert 3 < old.sum() < len(old)
    assert np.array_equal(before.inputs[old], after.inputs[old])
    assert before.table[old].equals(after.table[old])
    assert not np.array_equal(before.labels[~old], after.labels[~old])


def test_known_days_are_the_last_ones():
    for days in (2, 6, 16):
        train = load("travel_times", days=days).train
        assert len(np.unique(train.groups)) == days - 1  # the first is only looked back at
        assert train.table.index.max() < pd.Timestamp("2022-09-24")
    assert len(load("travel_times", days=2, segments="old").train) == 15 * 11 * 4


def test_no_target_stands_in_two_splits(task):
    seen = {part: set(getattr(task, part).table.index) for part in PARTS}
    assert not seen["train"] & seen["validation"] and not seen["validation"] & seen["test"]
    assert max(seen["train"]) < min(seen["validation"]) < min(seen["test"])


def test_the_line_goes_to_the_strongest_tie():
    ties = np.array([[1, 0.1, 0.9, 0], [0.1, 1, 0, 0.8], [0.9, 0, 1, 0.3], [0, 0.8, 0.3, 1]])
    assert travel_times.along_the_road(ties) == [0, 2, 3, 1]
    assert sorted(travel_times.along_the_road(np.eye(7))) == list(range(7))


@pytest.mark.parametrize("options", [{"days": 1}, {"days": 17}, {"segments": "all"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match="choose"):
        load("travel_times", **options)


def test_unusable_speeds_are_refused(speeds):
    gap = speeds.copy()
    gap.iloc[5, 1] = np.nan
    with pytest.raises(ValueError, match="b has gaps"):
        made_up(gap)
    with pytest.raises(ValueError, match="same times"):
        made_up(speeds.drop(speeds.index[5]))
    with pytest.raises(ValueError, match="reach is 0"):
        made_up(speeds, reach=0)
    days = np.unique(speeds.index.date)
    with pytest.raises(ValueError, match="no day before"):
        made_up(speeds, days=[days[1:3], days[:1], days[3:]])
