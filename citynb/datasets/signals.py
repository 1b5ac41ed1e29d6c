"""signals: 15-minute counts of 22 signal detectors at one junction, for 26 days of 2024."""

import numpy as np
import pandas as pd

from citynb.files import data_folder
from citynb.tasks import CityTask, Split
from citynb.tasks.counts import DEMAND_CUTS, DEMAND_LEVELS

FOLDER = data_folder() / "signals"
HISTORY = 24  # quarter-hours that an input shows, six hours
AHEAD = 4  # quarter-hours of the target: the next hour
LEAST = 5  # vehicles in a mean quarter-hour; a detector with fewer has levels of noise
KNOWN = ("2024-04-18", "2024-05-02")  # two weeks, before validation
VALIDATION = ("2024-05-02", "2024-05-05")
TEST = ("2024-05-05", "2024-05-14")
DAYS = range(1, 15)


def load(days=7, detectors="new"):
    """Return the task: which demand level will a detector see in the next hour?

    Every fourth busy detector counts as new: of it only the last `days` days before validation
    are known. The others are `"pooled"`: the same task at the old detectors, to pretrain on.
    The levels are those of `i94`, volume over capacity, cut at the same shares; capacity is the
    99.5th percentile of the detector's hours in the two weeks before validation.

    An input is a picture of 6 hours by 4 quarters, the newest at the lower right. Its channels
    are the detector's counts over capacity, the same for the mean of the pooled detectors, and
    the clock (a row each for sine and cosine of the time of day, the weekend, and zero).

    Args:
        days: int, 1 to 14.
        detectors: `"new"` or `"pooled"`.

    Raises:
        ValueError: an argument is out of range.
    """
    if days not in DAYS:
        raise ValueError(f"days is {days}; choose 1 to {DAYS[-1]}.")
    if detectors not in ("new", "pooled"):
        raise ValueError(f"detectors is {detectors!r}; choose 'new' or 'pooled'.")
    counts = read()
    new, pooled = groups_of(counts)
    known = counts[KNOWN[0] : _before(KNOWN[1])]
    capacity = known.rolling(AHEAD, min_periods=AHEAD).sum().quantile(0.995)
    start = pd.Timestamp(KNOWN[1]) - pd.Timedelta(days=int(days))
    parts = []
    for first, stop in ((start, KNOWN[1]), VALIDATION, TEST):
        stretch = counts[first : _before(stop)]
        city = (stretch[pooled] * AHEAD / capacity[pooled]).mean(axis=1)
        found = [
            examples(stretch[detector], capacity[detector], city, detector)
            for detector in (new if detectors == "new" else pooled)
        ]
        inputs, labels, tables = zip(*found, strict=True)
        table = pd.concat(tables)
        parts.append(
            Split(
                inputs=np.concatenate(inputs),
                labels=np.concatenate(labels).astype(np.int64),
                groups=table.index.normalize().to_numpy().astype("datetime64[D]"),
                table=table,
            )
        )
    return CityTask(
        "signals", *parts, class_names=DEMAND_LEVELS, split_by="time", card=FOLDER / "card.md"
    )


def read():
    """Return a DataFrame of vehicles, a row for each quarter-hour, a column for each detector.

    Four quarter-hours are missing in the source; their rows are empty.
    """
    file = FOLDER / "counts.csv.gz"
    counts = pd.read_csv(file, parse_dates=["time"], index_col="time")
    counts.columns = counts.columns.astype(int)
    return counts.asfreq("15min")


def groups_of(counts):
    """Return the numbers of the new and of the pooled detectors, both lists."""
    mean = counts[KNOWN[0] : _before(KNOWN[1])].mean()
    busy = sorted(mean.index[mean >= LEAST])
    new = busy[2::4]
    return new, [detector for detector in busy if detector not in new]


def _before(day):
    return pd.Timestamp(day) - pd.Timedelta(minutes=15)


def examples(counts, capacity, city, detector):
    """Return pictures, labels and table of one detector in one stretch, each half hour.

    Args:
        counts: Series of vehicles in each quarter-hour.
        capacity: float, vehicles an hour.
        city: Series of the other detectors' mean share of capacity, at the same quarter-hours.
        detector: int, a number for the table.

    Returns:
        inputs float32 (n, 4, 6, 3), labels int (n,), and a DataFrame with n rows whose index is
        the beginning of the target hour.
    """
    times = counts.index
    share = counts * AHEAD / capacity  # as if each quarter-hour were a whole hour
    past, around = share.ffill(limit=3), city.ffill(limit=3)  # only the past fills a gap
    hour = counts.rolling(AHEAD, min_periods=AHEAD).sum().to_numpy() / capacity
    clock = 2 * np.pi * ((times.hour * 60 + times.minute) / 1440).to_numpy()
    now = np.arange(HISTORY - 1, len(times) - AHEAD)
    now = now[times[now].minute.isin([15, 45])]  # the target begins on the half hour
    window = now[:, None] + np.arange(1 - HISTORY, 1)
    good = ~np.isnan(hour[now + AHEAD])
    good &= ~np.isnan(past.to_numpy()[window]).any(1) & ~np.isnan(around.to_numpy()[window]).any(1)
    now, window = now[good], window[good]
    moment = np.zeros((len(now), 4, 6))
    moment[:, 0] = (1 + np.sin(clock[now]))[:, None] / 2
    moment[:, 1] = (1 + np.cos(clock[now]))[:, None] / 2
    moment[:, 2] = (times[now].day_of_week >= 5)[:, None]
    # Six hours by four quarters, so that a column is an hour: transposed to 4 rows of 6.
    folded = [
        series.to_numpy()[window].clip(0, 1).reshape(-1, 6, 4).transpose(0, 2, 1)
        for series in (past, around)
    ]
    inputs = np.stack([*folded, moment], axis=-1).astype(np.float32)
    labels = np.digitize(hour[now + AHEAD], DEMAND_CUTS)
    columns = {f"share {lag * 15} min ago": past.shift(lag) for lag in (0, 1, 2, 3, 5, 7, 11, 23)}
    columns["mean of the last hour"] = past.rolling(AHEAD).mean()
    columns["change in an hour"] = columns["mean of the last hour"].diff(AHEAD)
    columns["others, last quarter"] = around
    columns["others, last hour"] = around.rolling(AHEAD).mean()
    table = pd.DataFrame(columns)
    table["capacity"], table["detector"] = capacity, detector
    table["time of day"] = (times.hour * 60 + times.minute) / 60
    table["day of week"] = times.day_of_week
    table = table.iloc[now].set_axis(times[now + 1])  # the beginning of the target hour
    return inputs, labels, table.astype(np.float32)
