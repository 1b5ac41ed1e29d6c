"""air: 8,088 hours of nitrogen oxides beside a Swiss motorway, with its traffic and the wind."""

import numpy as np
import pandas as pd

from citynb.files import data_folder
from citynb.tasks import CityTask, Split
from citynb.tasks.counts import HOURS_PER_WEEK

FOLDER = data_folder() / "air"
# The Swiss limit of the 95th percentile of half-hours, the European limit of the hour and the
# European alert threshold, all for NO2, in micrograms per cubic meter at 20 degrees Celsius
# (Luftreinhalte-Verordnung, annex 7; Directive 2008/50/EC, annexes XI and XII).
LIMITS = (100, 200, 400)
MICROGRAMS_PER_PPB = 1.9125  # of NO2
LEVELS = ("low", "raised", "high", "very high")
CYCLE_START = "2004-01-05"  # a Monday
CYCLE_WEEKS = (("train", 7), ("validation", 3), ("test", 3))
CYCLES = 4
# What makes a pixel 1: about the 99.5th percentile of the training hours (ppb, the source's
# arbitrary unit, m/s). Fixed here so that two splits are scaled alike.
SCALES = {"nox": 400.0, "emission": 5000.0, "wind_speed": 8.0}
LEAST_MEASURED = 0.8  # share of the hours of an input that must have been measured


def load(horizon=6):
    """Return the task: which NOx level, `horizon` hours ahead (1 to 24)?

    The levels are cut at published limits of NO2, taken as ppb of NOx: NO2 is a part of NOx,
    so at `low` no limit can be broken, whatever the part. An input is a picture of 7 days by
    24 hours that ends now; its channels are NOx (square root of its share of 400 ppb),
    emission and wind. The year is cut into four cycles of seven weeks of training, three of
    validation and three of test, and an input never leaves its own stretch of weeks.

    Raises:
        ValueError: the horizon is not a whole number from 1 to 24.
    """
    if horizon not in range(1, 25):
        raise ValueError(f"horizon is {horizon} hours; choose 1 to 24.")
    hours = read(FOLDER / "air.csv.gz")
    stretches = stretches_of_weeks()
    training = pd.concat([hours[start:stop] for part, start, stop in stretches if part == "train"])
    usual = training.groupby([training.index.day_of_week, training.index.hour]).mean()
    found = {part: [] for part, _ in CYCLE_WEEKS}
    for part, start, stop in stretches:
        found[part].append(_examples(hours[start:stop], usual, int(horizon)))
    parts = []
    for examples in found.values():
        pictures, labels, tables = zip(*examples, strict=True)
        table = pd.concat(tables)
        parts.append(
            Split(
                inputs=np.concatenate(pictures),
                labels=np.concatenate(labels),
                groups=table.index.normalize().to_numpy().astype("datetime64[D]"),
                table=table,
            )
        )
    return CityTask("air", *parts, class_names=LEVELS, split_by="weeks", card=FOLDER / "card.md")


def read(path):
    """Return a DataFrame with a row for each hour of 2004; an hour that was not measured is empty.

    Columns: `nox` in ppb, `emission` of the motorway's cars in an arbitrary unit, `wind_speed`
    in m/s. The index is local time.
    """
    hours = pd.read_csv(path, parse_dates=["datetime"], index_col="datetime")
    return hours.reindex(pd.date_range("2004-01-01", "2004-12-31 23:00", freq="h"))


def stretches_of_weeks():
    """Return (part, first hour, last hour) of the twelve stretches, in the order of time."""
    stretches, start = [], pd.Timestamp(CYCLE_START)
    for _ in range(CYCLES):
        for part, weeks in CYCLE_WEEKS:
            stop = start + pd.Timedelta(weeks=weeks)
            stretches.append((part, start, stop - pd.Timedelta(hours=1)))
            start = stop
    return stretches


def level_of(nox):
    """Return the level, 0 to 3, of NOx in ppb (array or Series)."""
    return np.digitize(nox, np.array(LIMITS) / MICROGRAMS_PER_PPB)


def _examples(measured, usual, horizon):
    """Return the pictures, labels and table of one stretch; nothing outside of it is read."""
    filled = measured.copy()
    for column in filled:  # the same hour a day before, else the hour before: only the past
        values = filled[column].to_numpy(copy=True)
        for hour in np.flatnonzero(np.isnan(values)):
            past = [values[hour - back] for back in (24, 1) if hour >= back]
            values[hour] = next((value for value in past if not np.isnan(value)), np.nan)
        filled[column] = values
    week = np.lib.stride_tricks.sliding_window_view
    share = week(measured["nox"].notna().to_numpy(float), HOURS_PER_WEEK).mean(-1)
    scaled = (filled / pd.Series(SCALES)).clip(0, 1)
    scaled["nox"] **= 0.5  # without it half of the hours lie in a fifth of the range
    pictures = week(scaled.to_numpy(np.float32), HOURS_PER_WEEK, axis=0)  # (weeks, 3, hours)

    now = np.arange(HOURS_PER_WEEK - 1, len(measured) - horizon)
    oldest = now - HOURS_PER_WEEK + 1
    good = measured["nox"].notna().to_numpy()
    good = good[now] & good[now + horizon] & (share[oldest] >= LEAST_MEASURED)
    good &= ~np.isnan(pictures[oldest]).any((1, 2))
    now, oldest = now[good], oldest[good]
    ahead = measured.index[now + horizon]
    table = _table(filled, usual, horizon).iloc[now].set_axis(ahead)
    labels = level_of(measured["nox"].to_numpy()[now + horizon]).astype(np.int64)
    shown = pictures[oldest].transpose(0, 2, 1).reshape(len(now), 7, 24, 3)
    return shown, labels, table


def _table(filled, usual, horizon):
    """What a model for tables may know: the hours until now, what is usual, and the calendar."""
    ahead = filled.index + pd.Timedelta(hours=horizon)
    columns = {}
    for lag in (0, 1, 2, 3, 6, 12):
        columns[f"NOx {lag} h ago"] = filled["nox"].shift(lag)
    columns["NOx, same hour, the newest full day"] = filled["nox"].shift(-horizon % 24)
    columns["NOx, same hour, a week before"] = filled["nox"].shift(HOURS_PER_WEEK - horizon)
    columns["mean NOx of 24 h"] = filled["nox"].rolling(24).mean()
    for lag in (0, 3):
        columns[f"emission {lag} h ago"] = filled["emission"].shift(lag)
    columns["emission, same hour, a week before"] = filled["emission"].shift(
        HOURS_PER_WEEK - horizon
    )
    for lag in (0, 1, 3, 6):
        columns[f"wind {lag} h ago"] = filled["wind_speed"].shift(lag)
    columns["mean wind of 24 h"] = filled["wind_speed"].rolling(24).mean()
    columns["wind, same hour, the newest full day"] = filled["wind_speed"].shift(-horizon % 24)
    table = pd.DataFrame(columns)
    usual_then = usual.reindex(pd.MultiIndex.from_arrays([ahead.day_of_week, ahead.hour]))
    table["usual NOx at the target"] = usual_then["nox"].to_numpy()
    table["usual emission at the target"] = usual_then["emission"].to_numpy()
    usual_now = usual.reindex(
        pd.MultiIndex.from_arrays([filled.index.day_of_week, filled.index.hour])
    )
    table["NOx now minus usual"] = filled["nox"] - usual_now["nox"].to_numpy()
    table["hour"], table["day of week"] = ahead.hour, ahead.day_of_week
    return table.astype(np.float32)
