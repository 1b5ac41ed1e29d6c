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


@pytest.mark.filterwarnings("ignore:.*single level")
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


# --- Faults of real files ---------------------------------------------------------------------


def hourly(values, start="2018-01-01"):
    hours = pd.date_range(start, periods=len(values), freq="h")
    return [f"{hour},{value},280" for hour, value in zip(hours, values)]


def test_a_comma_at_the_end_of_rows(tmp_path):
    with pytest.raises(ValueError, match="counts.csv, line 2: the row has more cells than the hea"):
        read_counts(csv(tmp_path, GOOD + ",", "2018-01-01 01:00:00,6,280,"))
    with pytest.raises(ValueError, match="counts.csv is not a CSV file.*line 3"):
        read_counts(csv(tmp_path, GOOD, "2018-01-01 01:00:00,6,280,"))


def test_a_point_for_thousands(tmp_path):
    message = "line 4: traffic_volume 1.234 stands beside 526, .* thousands. Write 1234"
    with pytest.raises(ValueError, match=message):
        read_counts(csv(tmp_path, *hourly(["526", "", "1.234", "2.005"])))
    decimals = ["526", "1.5", "0.667", "1.234"], ["526.000", "1.234"], ["1.234", "2.000"]
    for values in decimals:
        counts = read_counts(csv(tmp_path, *hourly(values)))
        assert counts["traffic_volume"].tolist() == [float(value) for value in values]


@pytest.mark.parametrize("zone", ["+01", "-06", "-0600", "-06:00", "Z", "z"])
@pytest.mark.parametrize("between", ["T", " "])
def test_time_zones(tmp_path, zone, between):
    rows = f"2018-01-01{between}00:00:00{zone},5,", f"2018-01-01{between}01:00:00-05,5,"
    with pytest.raises(ValueError, match="line 2: the datetime has a time zone"):
        read_counts(csv(tmp_path, *rows))
    with pytest.raises(ValueError, match="line 3: the datetime has a time zone"):
        read_counts(csv(tmp_path, GOOD, f"2018-01-01{between}01:00{zone},5,"))


def test_a_date_is_no_time_zone(tmp_path):
    counts = read_counts(csv(tmp_path, "2018-04-01,5,", "2018-04-01 01:00,6,"))
    assert counts.index[0] == pd.Timestamp("2018-04-01")


def test_the_code_of_a_failed_detector(tmp_path):
    volume = made_up()["traffic_volume"].round().astype(int).to_numpy(copy=True)
    volume[::50] = 65_535
    message = r"the count 65535 stands in 102 hours, and the next lower one is \d{4}"
    with pytest.warns(UserWarning, match="counts.csv: " + message) as caught:
        counts = read_counts(csv(tmp_path, *hourly(volume)))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="counts: " + message) as caught:
        CityTask.from_counts(counts, bounds=BOUNDS)
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:.*single level")  # of the other splits
def test_a_constant_series_and_a_short_test():
    with pytest.warns(UserWarning, match="counts.train has a single level, 'heavy'") as caught:
        CityTask.from_counts(made_up(500.0), bounds=BOUNDS)
    assert len(caught) == 3 and caught[0].filename == __file__
    short = *BOUNDS[:3], "2018-06-29 03:00"
    with pytest.warns(UserWarning, match=r"counts.test has \d example\(s\) on 1 day"):
        CityTask.from_counts(made_up(), bounds=short)


@pytest.mark.filterwarnings("error")
def test_good_counts_give_no_warning(tmp_path):
    volume = made_up()["traffic_volume"].round().astype(int)
    CityTask.from_counts(csv(tmp_path, *hourly(volume)), bounds=BOUNDS)


def test_damaged_files(tmp_path):
    whole = gzip.compress("\n".join(["datetime,traffic_volume", *hourly(range(999))]).encode())
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    path = tmp_path / "counts.csv.gz"
    for content in (whole[:middle], b"no gzip at all", flipped, whole[:-8] + bytes(8)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"counts.csv.gz is damaged \(.*Get it again"):
            read_counts(path)
    for ending in ("zip", "bz2", "xz"):
        path = tmp_path / f"counts.csv.{ending}"
        path.write_bytes(b"not what its name says")
        with pytest.raises(ValueError, match=f"counts.csv.{ending} is "):
            read_counts(path)
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        read_counts(tmp_path / "nowhere.csv")


def test_a_mistyped_year(tmp_path):
    later = "2108-01-01 01:00:00,6,280"
    message = r"line 3: the hour is 32,\d\d\d days after the row above; is a year mistyped"
    for rows in ([GOOD, later], [GOOD, later, "2018-01-01 02:00:00,7,280"]):
        with pytest.raises(ValueError, match=message):
            read_counts(csv(tmp_path, *rows))
    with pytest.raises(ValueError, match="line 3: the hour is .* days after the row above"):
        read_counts(csv(tmp_path, "1918-01-01 00:00:00,5,280", GOOD.replace("00:00", "01:00")))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("traffic_volume", -np.inf, "counts, 2018-01-05 04:00:00: traffic_volume is not a number"),
        ("traffic_volume", np.inf, "traffic_volume is not a number"),
        ("traffic_volume", -3.0, "counts, 2018-01-05 04:00:00: a count is negative"),
        ("temp", -np.inf, "counts, 2018-01-05 04:00:00: temp is not a number"),
    ],
)
def test_a_frame_is_checked_like_a_file(column, value, message):
    counts = made_up()
    counts.iloc[100, counts.columns.get_loc(column)] = value
    with pytest.raises(ValueError, match=message):
        CityTask.from_counts(counts, bounds=BOUNDS)


def test_frames_of_other_kinds():
    with pytest.raises(ValueError, match="traffic_volume is not a number"):
        CityTask.from_counts(made_up().astype({"traffic_volume": str}), bounds=BOUNDS)
    with pytest.raises(ValueError, match=r"have a time zone; use counts.tz_localize\(None\)"):
        CityTask.from_counts(made_up().tz_localize("UTC"), bounds=BOUNDS)
    with pytest.raises(ValueError, match="counts has zero usable rows"):
        CityTask.from_counts(made_up(np.nan), bounds=BOUNDS)
