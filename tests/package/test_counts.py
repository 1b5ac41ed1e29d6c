"""read_counts and CityTask.from_counts: what is refused, and that nothing leaks."""

import gzip

import numpy as np
import pandas as pd
import pytest

from citynb.tasks import CityTask
from citynb.tasks.counts import DEMAND_CUTS, SURPRISE_CUTS, fill_gaps, read_counts

# --- read_counts ------------------------------------------------------------------------------


def csv(tmp_path, *rows, header="datetime,traffic_volume,temp"):
    path = tmp_path / "counts.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_read_counts_makes_every_hour(tmp_path):
    rows = "2018-01-01 00:00:00,5,280.5", "", "2018-01-01 03:00:00,7,", "2018-01-01 04:00:00,,281"
    counts = read_counts(csv(tmp_path, *rows))
    assert list(counts.index.hour) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(counts["traffic_volume"], [5, np.nan, np.nan, 7, np.nan])
    np.testing.assert_array_equal(counts["temp"], [280.5, np.nan, np.nan, np.nan, 281])


GOOD = "2018-01-01 00:00:00,5,280"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2018-01-01 01:00:00,many,280", "line 3: traffic_volume is not a number"),
        ("2018-01-01 01:00:00,inf,280", "line 3: traffic_volume is not a number"),
        ("2018-01-01 01:00:00,5,warm", "line 3: temp is not a number"),
        ("2018-01-01 01:00:00,-5,280", "line 3: a count is negative"),
        ("2018-01-01 01:30:00,5,280", "line 3: the datetime is not on the hour"),
        ("2018-01-01 00:00:00,5,280", "line 3: the hour stands twice"),
        ("2017-12-31 23:00:00,5,280", "line 3: the hour is before the row above; sort"),
        ("tomorrow,5,280", "line 3: the datetime is not a date and time such as 2018-04-01"),
        ("2018-02-30 00:00:00,5,280", "line 3: the datetime is not a date"),
        (",5,280", "line 3: the datetime is not a date"),
        ("2018-01-01T01:00:00Z,5,280", "line 3: the datetime has a time zone"),
        ("2018-01-01 01:00:00-06:00,5,280", "line 3: the datetime has a time zone"),
        ("\n2018-01-01 01:00:00,many,280", "line 4: traffic_volume is not a number"),
        ("2018-01-01 01:00:00,5,280,1,2", "counts.csv is not a CSV file.*line 3"),
    ],
)
def test_read_counts_names_the_line(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_counts(csv(tmp_path, GOOD, row))


def test_read_counts_refuses_files(tmp_path):
    with pytest.raises(ValueError, match="no column 'traffic_volume'; .*Rename 'trafic_volume'?"):
        read_counts(csv(tmp_path, GOOD, header="datetime,trafic_volume,temp"))
    with pytest.raises(ValueError, match="no column 'datetime'; it has when"):
        read_counts(csv(tmp_path, GOOD, header="when,traffic_volume,temp"))
    for rows in ((), ("2018-01-01 00:00:00,,280",)):
        with pytest.raises(ValueError, match="counts.csv has zero usable rows"):
            read_counts(csv(tmp_path, *rows))
    path = csv(tmp_path)
    for content in (b"", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="counts.csv is not a CSV file in UTF-8"):
            read_counts(path)


def test_gaps_are_filled_from_the_past_only():
    rng = np.random.default_rng(0)
    hours = pd.date_range("2018-01-01", periods=600, freq="h")
    volume = pd.Series(rng.uniform(1, 2, 600), hours)
    volume.iloc[[0, 1, 30, 60, 61, 62, 84, 400, 568]] = np.nan
    filled = fill_gaps(volume)
    assert np.isnan(filled.iloc[:2]).all()  # there is no past yet
    assert filled.iloc[30] == volume.iloc[6]  # a day before
    assert filled.iloc[84] == filled.iloc[60] == volume.iloc[36]
    assert filled.iloc[400] == volume.iloc[232]  # a week before
    assert filled.iloc[568] == filled.iloc[400]
    measured = volume.notna()
    assert filled[measured].equals(volume[measured])
    for hour in np.flatnonzero(volume.isna()):
        later = volume.copy()
        later.iloc[hour + 1 :] = 99.0
        assert fill_gaps(later)[: hour + 1].equals(filled[: hour + 1])


# --- from_counts: which hours an example reads ------------------------------------------------

WEEK = 168
BOUNDS = ("2018-01-01", "2018-05-01", "2018-06-15", "2018-08-01")


def made_up(volume=None, seed=0):
    """Seven months of made-up counts and weather, every hour measured."""
    rng = np.random.default_rng(seed)
    hours = pd.date_range("2018-01-01", "2018-07-31 23:00", freq="h", name="datetime")
    volume = rng.uniform(0, 4000, len(hours)) if volume is None else volume
    weather = {
        "temp": rng.normal(280, 9, len(hours)),
        "weather_main": rng.choice(["Snow", "Fog", "Clear"], len(hours)),
    }
    return pd.DataFrame({"traffic_volume": volume, **weather}, hours)


def parts(task):
    return {part: getattr(task, part) for part in ("train", "validation", "test")}


@pytest.mark.parametrize("horizon", [1, 3, 24, 168])
def test_every_pixel_is_the_hour_it_says(horizon):
    # The volume of hour i is i, so that a picture tells which hours it reads.
    hours = made_up().index
    counts = made_up(np.arange(len(hours), dtype=float))
    task = CityTask.from_counts(counts, bounds=BOUNDS, horizon=horizon, capacity=8192)
    read = {}
    for part, split in parts(task).items():
        target = hours.get_indexer(split.table.index)
        seen = np.rint(split.inputs[..., :2] * 8192).astype(int).reshape(len(split), WEEK, 2)
        week = np.arange(WEEK) - WEEK + 1
        np.testing.assert_array_equal(seen[..., 0], (target - horizon)[:, None] + week)
        np.testing.assert_array_equal(seen[..., 1], (target - WEEK)[:, None] + week)
        np.testing.assert_array_equal(split.table["volume 0 h ago"], target - horizon)
        np.testing.assert_array_equal(split.table["volume 12 h ago"], target - horizon - 12)
        np.testing.assert_array_equal(split.table["same hour, 1 week(s) before"], target - WEEK)
        oldest = target - 2 * WEEK
        np.testing.assert_array_equal(split.table["same hour, 2 week(s) before"], oldest)
        newest = split.table["same hour, the newest full day"].to_numpy().astype(int)
        assert ((target - newest) % 24 == 0).all() and (newest <= target - horizon).all()
        assert (newest > target - horizon - 24).all()
        assert oldest.min() >= hours.get_loc(pd.Timestamp(BOUNDS[list(parts(task)).index(part)]))
        read[part] = {*seen.ravel(), *target, *oldest, *newest}
        np.testing.assert_array_equal(split.groups, hours[target].normalize())
    assert not read["train"] & read["validation"]
    assert not read["validation"] & read["test"]
    gap = task.test.table.index[0] - task.validation.table.index[-1]
    assert gap >= pd.Timedelta(weeks=2)


@pytest.mark.parametrize("target", ["demand", "surprise"])
def test_levels_are_of_the_target_hour(target):
    counts = made_up()
    task = CityTask.from_counts(counts, bounds=BOUNDS, horizon=3, target=target)
    volume = counts["traffic_volume"]
    training = volume[: pd.Timestamp(BOUNDS[1]) - pd.Timedelta(hours=1)]
    capacity = np.quantile(training, 0.995)
    for split in parts(task).values():
        for time, label in list(zip(split.table.index, split.labels, strict=True))[::37]:
            alike = (training.index.day_of_week == time.day_of_week) & (
                training.index.hour == time.hour
            )
            usual = training[alike].mean()
            if target == "demand":
                share, cuts = volume[time] / capacity, DEMAND_CUTS
            else:
                share, cuts = (volume[time] - usual) / capacity, SURPRISE_CUTS
            assert label == sum(share >= cut for cut in cuts)
            assert split.table.loc[time, "usual at the target"] == pytest.approx(usual, rel=1e-5)


def assert_equal(one, other):
    np.testing.assert_array_equal(one.inputs, other.inputs)
    np.testing.assert_array_equal(one.labels, other.labels)
    pd.testing.assert_frame_equal(one.table, other.table)


@pytest.mark.parametrize("target", ["demand", "surprise"])
def test_training_knows_nothing_of_what_comes_after(target):
    counts, changed = made_up(), made_up()
    changed.loc[BOUNDS[2] :, "traffic_volume"] *= 3
    tasks = [CityTask.from_counts(c, bounds=BOUNDS, target=target) for c in (counts, changed)]
    assert_equal(tasks[0].train, tasks[1].train)
    assert_equal(tasks[0].validation, tasks[1].validation)
    assert (tasks[0].test.labels != tasks[1].test.labels).any()


@pytest.mark.parametrize("horizon", [1, 24, 100])
def test_no_input_looks_past_now(horizon):
    counts = made_up()
    counts.loc["2018-07-10 05:00":"2018-07-10 07:00", "traffic_volume"] = np.nan
    task = CityTask.from_counts(counts, bounds=BOUNDS, horizon=horizon)
    for now in pd.to_datetime(["2018-07-10 07:00", "2018-07-12 00:00", "2018-07-20 18:00"]):
        changed = counts.copy()
        later = changed.index > now
        changed.loc[later] = made_up(seed=1)[later]
        other = CityTask.from_counts(changed, bounds=BOUNDS, horizon=horizon).test
        (one,) = task.test.table.index.get_indexer([now + pd.Timedelta(hours=horizon)])
        (two,) = other.table.index.get_indexer([now + pd.Timedelta(hours=horizon)])
        assert one >= 0 and two >= 0
        np.testing.assert_array_equal(task.test.inputs[one], other.inputs[two])
        assert task.test.table.iloc[one].equals(other.table.iloc[two])
        assert not task.test.table.iloc[one + 1].equals(other.table.iloc[two + 1])


def test_an_empty_hour_is_never_a_label_and_leading_ones_are_cut():
    counts = made_up()
    empty = counts.index[[4000, 4500, 5000]]
    counts.loc[empty, "traffic_volume"] = np.nan
    counts.loc[:"2018-01-20", "traffic_volume"] = np.nan
    task = CityTask.from_counts(counts, bounds=BOUNDS)
    for split in parts(task).values():
        assert not split.table.index.isin(empty).any()
    assert task.train.table.index[0] >= pd.Timestamp("2018-01-21") + pd.Timedelta(weeks=2)


def test_bounds_have_a_default():
    task = CityTask.from_counts(made_up())
    ends = [split.table.index[-1] for split in parts(task).values()]
    assert ends[-1] == pd.Timestamp("2018-07-31 23:00")
    share = (ends[0] - pd.Timestamp("2018-01-01")) / (ends[-1] - pd.Timestamp("2018-01-01"))
    assert share == pytest.approx(0.6, abs=0.01)
    assert task.name == "counts" and task.split_by == "time"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "speed"}, "target is 'speed'; choose 'demand' or 'surprise'"),
        ({"horizon": 0}, "horizon is 0 hours; choose 1 to 168"),
        ({"horizon": 169}, "horizon is 169 hours"),
        ({"horizon": 1.5}, "horizon is 1.5 hours"),
        ({"capacity": 0}, "capacity is 0 vehicles an hour"),
        ({"bounds": BOUNDS[:3]}, "need four rising dates"),
        ({"bounds": BOUNDS[::-1]}, "need four rising dates"),
        ({"bounds": ("2018-01-01", "2018-01-15", *BOUNDS[2:])}, "three weeks or more of training"),
        ({"bounds": (*BOUNDS[:3], "2018-06-25")}, "more than two of validation and of test"),
        ({"bounds": (*BOUNDS[:2], "2018-08-01", "2018-10-01")}, "no counts from 2018-08-01"),
        ({"bounds": ("2017-01-01", "2017-06-01", *BOUNDS[1:3])}, "the capacity is nan"),
    ],
)
def test_from_counts_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        CityTask.from_counts(made_up(), **{"bounds": BOUNDS, **change})


def test_from_counts_refuses_counts(tmp_path):
    with pytest.raises(ValueError, match="a row for every hour.*read_counts"):
        CityTask.from_counts(made_up().drop(made_up().index[7]), bounds=BOUNDS)
    with pytest.raises(ValueError, match="column 'traffic_volume'"):
        CityTask.from_counts(made_up()[["temp"]], bounds=BOUNDS)
    with pytest.raises(ValueError, match="a row for every hour"):
        CityTask.from_counts(made_up().reset_index(), bounds=BOUNDS)
    sundays = made_up()
    sundays.loc[(sundays.index.day_of_week == 6) & (sundays.index.hour == 4), "traffic_volume"] = (
        np.nan
    )
    with pytest.raises(ValueError, match="training has no count of Sunday 4:00"):
        CityTask.from_counts(sundays, bounds=BOUNDS)
    with pytest.raises(ValueError, match="counts: .*three weeks or more"):
        CityTask.from_counts(csv(tmp_path, GOOD, "2018-01-01 01:00:00,5,280"))
