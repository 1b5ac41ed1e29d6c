"""Tasks from hourly counts: read and check a file, fill its gaps, cut it into examples."""

import calendar
import difflib
import lzma
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from citynb.tasks.split import Split

HOURS_PER_WEEK = 168
DEMAND_LEVELS = ("free", "light", "busy", "heavy")
# Volume over capacity at the upper bound of levels of service A, B and C of a freeway
# designed for 70 mph (Highway Capacity Manual 1985, table 3-1).
DEMAND_CUTS = (0.35, 0.54, 0.77)
SURPRISE_LEVELS = ("below usual", "as usual", "above usual")
SURPRISE_CUTS = (-0.05, 0.05)  # of capacity; fixed before any model was trained
LONGEST_GAP = pd.Timedelta(days=366)
FEWEST_DAYS = 7  # with targets in a split, below which a warning is given
ZONE = r"[T ]\d\d.*(?:[Zz]|[+-]\d\d(?::?\d\d)?)$"  # the time of day first: 2018-04-01 ends in -01
POINT_FOR_THOUSANDS = r"[1-9]\d{0,2}(?:\.\d{3})+"


def read_counts(path):
    """Read one detector's hourly counts and check every line.

    Args:
        path: CSV file, perhaps compressed (.gz, .zip, .bz2, .xz), with the columns `datetime`
            (local time, on the hour) and `traffic_volume` (vehicles an hour, empty where not
            measured), and, where known, `temp` (kelvin), `rain_1h` (millimeters), `clouds_all`
            (percent) and `weather_main` (a word such as Snow).

    Returns:
        DataFrame indexed by every hour from the first to the last; an hour that the file
        leaves out has an empty row.

    Warns:
        UserWarning: the largest count looks like the code of a failed detector.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, a column is missing, a cell is not a number, hours are
            unsorted, repeated, more than a year apart or not on the hour, a count is negative,
            or no row is usable.
    """
    where = Path(path).name
    try:
        frame = pd.read_csv(path, dtype=str, skipinitialspace=True, skip_blank_lines=False)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        if getattr(error, "errno", None):  # missing, a folder, not readable: it names the path
            raise
        raise ValueError(f"{where} is damaged ({error}). Get it again.") from error
    except ValueError as error:  # the parser's errors and those of the encoding, too
        raise ValueError(f"{where} is not a CSV file in UTF-8: {error}.") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took the first cells for an index
        raise ValueError(
            f"{where}, line 2: the row has more cells than the header has names. Remove the comma "
            "at the end of the rows, or name the column."
        )
    frame = frame.dropna(how="all")  # blank lines; the index still counts them
    for column in ("datetime", "traffic_volume"):
        if column not in frame:
            near = difflib.get_close_matches(column, frame.columns, n=1)
            hint = f" Rename {near[0]!r}?" if near else ""
            raise ValueError(
                f"{where} has no column {column!r}; it has {', '.join(frame.columns)}.{hint}"
            )
    texts = frame.pop("datetime")
    zones = texts.str.contains(ZONE, na=False)
    _refuse(zones, where, "the datetime has a time zone; write local time without one")
    hours = pd.to_datetime(texts, errors="coerce", format="ISO8601")
    _refuse(hours.isna(), where, "the datetime is not a date and time such as 2018-04-01 07:00:00")
    _refuse(hours != hours.dt.floor("h"), where, "the datetime is not on the hour; resample first")
    steps = hours.diff()
    _refuse(
        steps > LONGEST_GAP,
        where,
        f"the hour is {steps.max().days:,} days after the row above; is a year mistyped in one of "
        "them? Correct it, or give a part without such a gap",
    )
    _refuse(hours.duplicated(), where, "the hour stands twice; keep one row for each hour")
    _refuse(steps < pd.Timedelta(0), where, "the hour is before the row above; sort by datetime")
    counts = pd.DataFrame(index=pd.DatetimeIndex(hours, name="datetime"))
    for column in ("traffic_volume", "temp", "rain_1h", "clouds_all"):
        if column in frame:
            numbers = pd.to_numeric(frame[column], errors="coerce")
            _check_numbers(frame[column], numbers, where)
            counts[column] = numbers.to_numpy()
    _refuse_thousands(frame["traffic_volume"].dropna(), where)
    if "weather_main" in frame:
        counts["weather_main"] = frame["weather_main"].to_numpy()
    if not counts["traffic_volume"].notna().any():
        raise ValueError(f"{where} has zero usable rows: no hour has a traffic_volume.")
    _warn_of_codes(counts["traffic_volume"], where, stacklevel=3)
    return counts.asfreq("h")


def fill_gaps(volume):
    """Fill each empty hour with the same hour a week before, else a day before, else the last.

    Only the past is used: a mean over neighbors would tell an input what comes next.

    Args:
        volume: Series of vehicles an hour, one value for each hour, NaN where empty.

    Returns:
        Series; NaN only before the first count.
    """
    filled = volume.to_numpy(np.float64, copy=True)
    for hour in np.flatnonzero(np.isnan(filled)):
        past = [filled[hour - back] for back in (HOURS_PER_WEEK, 24, 1) if hour >= back]
        filled[hour] = next((count for count in past if not np.isnan(count)), np.nan)
    return pd.Series(filled, volume.index, name=volume.name)


def counts_splits(source, *, bounds=None, horizon=1, target="demand", capacity=None, name="counts"):
    """Make the three splits of `CityTask.from_counts`, which says what the arguments mean.

    Returns:
        (list of three Split, tuple of class names)

    Warns, Raises:
        as `CityTask.from_counts`.
    """
    if target not in ("demand", "surprise"):
        raise ValueError(f"target is {target!r}; choose 'demand' or 'surprise'.")
    if horizon not in range(1, HOURS_PER_WEEK + 1):  # this refuses 1.5, too
        raise ValueError(f"horizon is {horizon} hours; choose 1 to {HOURS_PER_WEEK}.")
    horizon = int(horizon)
    if isinstance(source, pd.DataFrame):
        counts = source
        _check_frame(counts, name)
    else:
        counts = read_counts(source)
    # Hours before the first count could only be filled from the future.
    counts = counts.loc[counts["traffic_volume"].first_valid_index() :]
    hours, volume = counts.index, counts["traffic_volume"]
    bounds = _bounds(hours, bounds, name)
    in_training = (hours >= bounds[0]) & (hours < bounds[1])
    if capacity is None:
        capacity = float(volume[in_training].quantile(0.995))
    if not 0 < capacity < np.inf:
        raise ValueError(
            f"{name}: the capacity is {capacity} vehicles an hour, from the counts of "
            f"{bounds[0]} to {bounds[1]}. Choose other bounds, or give capacity=."
        )
    hour_of_week = hours.day_of_week.to_numpy() * 24 + hours.hour.to_numpy()
    profile = volume[in_training].groupby(hour_of_week[in_training]).mean()
    if profile.notna().sum() < HOURS_PER_WEEK:
        never = min(set(range(HOURS_PER_WEEK)) - set(profile.dropna().index))
        raise ValueError(
            f"{name}: training has no count of {calendar.day_name[never // 24]} "
            f"{never % 24}:00, so what is usual then is unknown. Train on more weeks."
        )
    usual = pd.Series(profile.reindex(hour_of_week).to_numpy(), hours)
    filled = fill_gaps(volume)

    if target == "demand":
        cuts, class_names, measured = DEMAND_CUTS, DEMAND_LEVELS, volume / capacity
    else:
        cuts, class_names = SURPRISE_CUTS, SURPRISE_LEVELS
        measured = (volume - usual) / capacity
    levels = np.digitize(measured, cuts)

    weeks = np.lib.stride_tricks.sliding_window_view
    past, profiles = (
        weeks((series / capacity).clip(0, 1).to_numpy(np.float32), HOURS_PER_WEEK)
        for series in (filled, usual)
    )
    table = _counts_table(counts, filled, usual, horizon)
    reach = 2 * HOURS_PER_WEEK - horizon  # the oldest hour an input shows, before now
    splits = []
    for part, start, stop in zip(("train", "validation", "test"), bounds[:-1], bounds[1:]):
        now = np.flatnonzero((hours >= start) & (hours < stop))
        if len(now) == 0:
            raise ValueError(
                f"{name}: there are no counts from {start} to {stop}; the file runs from "
                f"{hours[0]} to {hours[-1]}."
            )
        now = now[(now >= now[0] + reach) & (now + horizon <= now[-1])]
        now = now[volume.notna().to_numpy()[now + horizon]]  # an empty hour is no label
        oldest = now - HOURS_PER_WEEK + 1
        pictures = np.stack(
            [past[oldest], past[oldest + horizon - HOURS_PER_WEEK], profiles[oldest + horizon]],
            axis=-1,
        ).reshape(len(now), 7, 24, 3)
        split = Split(
            inputs=pictures,
            labels=levels[now + horizon].astype(np.int64),
            groups=hours[now + horizon].normalize().to_numpy().astype("datetime64[D]"),
            table=table.iloc[now].set_axis(hours[now + horizon]),
        )
        _warn_of_little(split, f"{name}.{part}", class_names)
        splits.append(split)
    return splits, class_names


def _check_frame(counts, name):
    """Check a DataFrame as `read_counts` checks a file."""
    steps = np.diff(counts.index) if isinstance(counts.index, pd.DatetimeIndex) else np.zeros(1)
    if (steps != np.timedelta64(1, "h")).any() or "traffic_volume" not in counts:
        raise ValueError(
            f"{name}: the counts need a row for every hour and a column 'traffic_volume'; "
            "citynb.tasks.counts.read_counts makes them from a CSV file."
        )
    if counts.index.tz is not None:
        raise ValueError(f"{name}: the hours have a time zone; use counts.tz_localize(None).")
    for column in counts.columns.drop("weather_main", errors="ignore"):
        is_numeric = pd.api.types.is_numeric_dtype(counts[column])
        _check_numbers(counts[column], counts[column] if is_numeric else np.nan, name)
    if not counts["traffic_volume"].notna().any():
        raise ValueError(f"{name} has zero usable rows: no hour has a traffic_volume.")
    _warn_of_codes(counts["traffic_volume"], name, stacklevel=5)


def _bounds(hours, bounds, name):
    if bounds is None:
        bounds = [hours[int(len(hours) * share)] for share in (0, 0.6, 0.8)]
        bounds.append(hours[-1] + pd.Timedelta(hours=1))
    bounds = pd.DatetimeIndex(bounds)
    lengths = np.diff(bounds.to_numpy()) / np.timedelta64(HOURS_PER_WEEK, "h")
    if len(bounds) != 4 or lengths[0] < 3 or min(lengths) <= 2:
        raise ValueError(
            f"{name}: the splits need four rising dates with three weeks or more of training "
            "and more than two of validation and of test, not "
            f"{', '.join(str(day) for day in bounds)}."
        )
    return bounds


def _counts_table(counts, filled, usual, horizon):
    """What trees may know at hour t about hour t + horizon: the counts until t, and the calendar."""
    from pandas.tseries.holiday import USFederalHolidayCalendar

    hours = counts.index
    ahead = hours + pd.Timedelta(hours=horizon)
    holidays = USFederalHolidayCalendar().holidays(hours[0], ahead[-1])
    columns = {f"volume {lag} h ago": filled.shift(lag) for lag in (0, 1, 2, 3, 6, 12)}
    for weeks in (1, 2):
        same_hour = filled.shift(weeks * HOURS_PER_WEEK - horizon)
        columns[f"same hour, {weeks} week(s) before"] = same_hour
    columns["same hour, the newest full day"] = filled.shift(-horizon % 24)
    columns["usual at the target"] = usual.shift(-horizon)
    columns["volume now minus usual"] = filled - usual
    columns["last 24 h minus usual"] = (filled - usual).rolling(24).mean()
    table = pd.DataFrame(columns)
    # Beyond the last hour the usual volume is not needed: those rows have no label.
    table["hour"], table["day of week"], table["month"] = ahead.hour, ahead.day_of_week, ahead.month
    table["holiday"] = ahead.normalize().isin(holidays)
    for column in counts.columns.drop("traffic_volume"):
        newest = counts[column].ffill()
        if column == "weather_main":
            table["snow now"] = newest == "Snow"
            table["mist, fog or haze now"] = newest.isin(["Mist", "Fog", "Haze"])
        else:
            table[f"{column} now"] = newest
    return table.astype(np.float32)


def _check_numbers(cells, numbers, where):
    _refuse(cells.notna() & ~np.isfinite(numbers), where, f"{cells.name} is not a number")
    if cells.name == "traffic_volume":
        _refuse(numbers < 0, where, "a count is negative")


def _refuse(bad, where, reason):
    """Raise for the first bad row: its hour, or the line an editor shows (the header is line 1)."""
    if bad.any():
        row = bad.idxmax()
        row = row if isinstance(row, pd.Timestamp) else f"line {row + 2}"
        raise ValueError(f"{where}, {row}: {reason}.")


def _refuse_thousands(texts, where):
    """Refuse 1.234 beside 526, which is more likely 1234 than one vehicle and a quarter."""
    pointed = texts.str.contains(".", regex=False)
    if not pointed.all() and texts[pointed].str.fullmatch(POINT_FOR_THOUSANDS).all():
        told = texts[pointed.idxmax()]
        reason = (
            f"traffic_volume {told} stands beside {texts[~pointed].iloc[0]}, as if the point marked "
            f"thousands. Write {told.replace('.', '')}, or 526.000 everywhere if these are decimals"
        )
        _refuse(pointed, where, reason)


def _warn_of_codes(volume, where, stacklevel):
    """Warn when the largest count repeats far above all others, as 65535 of a failed detector."""
    largest = volume.max()
    others, hours = volume[volume < largest].max(), (volume == largest).sum()
    if hours > 1 and largest > 2 * others > 0:
        warnings.warn(
            f"{where}: the count {largest:g} stands in {hours} hours, and the next lower one is "
            f"{others:g}. If a failed detector writes it, leave those cells empty.",
            stacklevel=stacklevel,
        )


def _warn_of_little(split, where, class_names):
    days, levels = len(np.unique(split.groups)), np.unique(split.labels)
    if 0 < days < FEWEST_DAYS:
        warnings.warn(
            f"{where} has {len(split)} example(s) on {days} day(s), too few to judge by. An input "
            "reaches back two weeks, so give each split several weeks more.",
            stacklevel=4,
        )
    if len(levels) == 1:
        warnings.warn(
            f"{where} has a single level, {class_names[levels[0]]!r}: there is nothing to tell "
            "apart. Is the series constant, or the capacity wrong?",
            stacklevel=4,
        )
