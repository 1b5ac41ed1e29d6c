"""travel_times: hours of six road segments in 2022, and a task for any table of speeds."""

import numpy as np
import pandas as pd

from citynb.files import data_folder
from citynb.tasks import CityTask, Split

FOLDER = data_folder() / "travel_times"
LEVELS = ("free", "delayed", "slow", "jammed")
# Travel speed over base free-flow speed above which a street has level of service A, B and C;
# D to F are joined (Highway Capacity Manual, 7th edition, exhibit 18-1, whose speeds are these
# shares of the free-flow speed in its column headings, rounded to whole miles an hour).
LEVEL_CUTS = (0.50, 0.67, 0.80)
FREE_FLOW = 0.95  # the quantile of the known speeds that counts as free flow
PAST, AHEAD = 3, 1  # hours that an input shows; hours from now to the target
KNOWN = ("2022-09-02", "2022-09-23")
VALIDATION = ("2022-09-26", "2022-09-30")
TEST = ("2022-10-03", "2022-10-12")
DAYS = range(2, 17)


def load(days=6, segments="new"):
    """Return the task: which level of service will a segment have in the next hour?

    Every third segment counts as new: of it only the last `days` workdays before validation are
    known. The others are `"old"`: the same task, with all 16 workdays, to pretrain on. Speeds,
    levels, pictures and table are those of `speed_task`.

    Args:
        days: int, 2 to 16; the first is only looked back at. It bounds the new segments alone.
        segments: `"new"` or `"old"`.

    Raises:
        ValueError: an argument is out of range.
    """
    if days not in DAYS:
        raise ValueError(f"days is {days}; choose {DAYS[0]} to {DAYS[-1]}.")
    if segments not in ("new", "old"):
        raise ValueError(f"segments is {segments!r}; choose 'new' or 'old'.")
    speeds = workdays(1 / read())
    new, old = held_out(speeds.columns, every=3)
    parts = [np.unique(speeds[slice(*part)].index.date) for part in (KNOWN, VALIDATION, TEST)]
    return speed_task(
        speeds,
        sensors=new if segments == "new" else old,
        nearby=old,
        days=[parts[0][-int(days) :] if segments == "new" else parts[0], *parts[1:]],
        free_flow=free_flow(speeds[slice(*KNOWN)]),
        past=PAST,
        ahead=AHEAD,
        name="travel_times",
        card=FOLDER / "card.md",
    )


def read():
    """Return a DataFrame of seconds, a row for each hour from 6 to 19, a column for each segment."""
    file = FOLDER / "travel_times.csv.gz"
    return pd.read_csv(file, parse_dates=["time"], index_col="time").rename(columns=int)


def workdays(speeds):
    """Return the rows from Monday to Friday; holidays stay."""
    return speeds[speeds.index.day_of_week < 5]


def free_flow(known):
    """Return the free-flow speed of each sensor, the 95th percentile of its known speeds."""
    return known.quantile(FREE_FLOW)


def levels(share):
    """Return the level of service of speeds over free-flow speed: 0 is free, 3 is jammed."""
    return len(LEVEL_CUTS) - np.digitize(share, LEVEL_CUTS, right=True)


def along_the_road(adjacency):
    """Return the places of all sensors in one line, as a list of int.

    From the first sensor the line goes on to the one that is tied to it most strongly, and so
    forth; a sensor that is already in line is not visited again.

    Args:
        adjacency: array (sensors, sensors), how strongly two sensors are tied; 0 is not at all.
    """
    ties = np.array(adjacency, float)
    line = [0]
    while len(line) < len(ties):
        ties[:, line[-1]] = -1  # in line, not to be visited again
        line.append(int(ties[line[-1]].argmax()))
    return line


def held_out(sensors, every):
    """Return the new and the old sensors, two lists: every `every`th is new, by its position."""
    new = list(sensors[every // 2 :: every])
    return new, [sensor for sensor in sensors if sensor not in new]


def speed_task(
    speeds,
    sensors,
    nearby,
    days,
    free_flow,
    *,
    past,
    ahead,
    every=1,
    reach=1,
    block="D",
    name="speeds",
    card=None,
):
    """Make a task from any table of speeds: which level of service, `ahead` rows from now?

    An input is a space-time picture of `2 * reach + 1` rows (the sensor in the middle, and the
    `reach` nearest ones of `nearby` on either side of it) by `past` columns (the newest at the
    right). Its channels are the speed over free-flow speed until now, the same on the day before
    until the hour of the target, and the clock of the target (a row of sine, a row of cosine).
    An input may look back into the day before; the first day of all is only looked back at.

    Args:
        speeds: DataFrame of speeds in any unit, in time order, indexed by time, with the same
            times on every day; a column for each sensor, in their order along the road.
        sensors: list, the columns to forecast.
        nearby: list, the columns that may stand beside them in the picture.
        days: three lists of dates, those of train, validation and test. Of train the first is
            only looked back at.
        free_flow: Series, the free-flow speed of each column, in the unit of `speeds`.
        past: int, rows that an input shows.
        ahead: int, rows from the newest one of the input to the target.
        every: int, a forecast each `every` rows.
        reach: int, neighbors on either side.
        block: str, the stretch of time that the bootstrap resamples, for example `"D"`.
        name: str. card: Path or None.

    Returns:
        CityTask, split by time.

    Raises:
        ValueError: a speed is missing, the days have unlike times, a day has none before it, or
            there are no neighbors to show.
    """
    if reach < 1 or len(set(nearby)) < 2:
        raise ValueError(
            f"{name}: reach is {reach} and nearby has {len(set(nearby))} sensor(s); a picture "
            "needs a reach of 1 or more, and two sensors nearby or more."
        )
    if speeds.isna().any(axis=None):
        raise ValueError(f"{name}: {speeds.isna().any().idxmax()} has gaps; fill them first.")
    dates = np.unique(speeds.index.date)
    steps = len(speeds) // len(dates)
    if len(speeds) % len(dates) or len(set(speeds.index.time)) != steps:
        raise ValueError(f"{name}: not every day has the same times; fill or drop the odd days.")
    share = (speeds / free_flow).to_numpy().reshape(len(dates), steps, -1)
    clock = (speeds.index.hour + speeds.index.minute / 60).to_numpy()[:steps]
    now = np.arange(past - 1, steps - ahead, every)
    back = np.arange(1 - past, 1)
    parts = []
    for dealt in (days[0][1:], *days[1:]):
        wanted = np.flatnonzero(np.isin(dates, dealt))
        if 0 in wanted:
            raise ValueError(f"{name}: {dates[0]} has no day before it; leave it out of the split.")
        found = [
            _examples(speeds, share, clock, sensor, nearby, wanted, now, back, ahead, reach)
            for sensor in sensors
        ]
        inputs, labels, tables = zip(*found, strict=True)
        table = pd.concat(tables)
        parts.append(
            Split(
                inputs=np.concatenate(inputs),
                labels=np.concatenate(labels).astype(np.int64),
                groups=table.index.floor(block).to_numpy().astype("datetime64[m]"),
                table=table,
            )
        )
    return CityTask(name, *parts, class_names=LEVELS, split_by="time", card=card)


def _examples(speeds, share, clock, sensor, nearby, day, now, back, ahead, reach):
    """Return pictures, labels and table of one sensor on some days."""
    place = speeds.columns.get_loc(sensor)
    others = np.setdiff1d(speeds.columns.get_indexer(nearby), [place]).tolist()  # sorted
    before = [other for other in others if other < place][-reach:]
    after = [other for other in others if other > place][:reach]
    before = [(before or after)[0]] * (reach - len(before)) + before  # at an end of the road
    after = after + [(after or before)[-1]] * (reach - len(after))
    rows = [*before, place, *after]
    day, now = (grid.ravel() for grid in np.meshgrid(day, now, indexing="ij"))
    target = now + ahead
    window = share[day[:, None], now[:, None] + back][..., rows].transpose(0, 2, 1)
    yesterday = share[day[:, None] - 1, target[:, None] + back][..., rows].transpose(0, 2, 1)
    moment = np.zeros_like(window)
    moment[:, 0] = (1 + np.sin(2 * np.pi * clock[target] / 24))[:, None] / 2
    moment[:, 1] = (1 + np.cos(2 * np.pi * clock[target] / 24))[:, None] / 2
    inputs = np.stack([window.clip(0, 1), yesterday.clip(0, 1), moment], axis=-1)
    columns = {f"{-lag} rows ago": window[:, reach, lag - 1] for lag in back}
    columns |= {f"neighbor {row - reach:+d}": window[:, row, -1] for row in range(2 * reach + 1)}
    columns |= {"day before at the target": yesterday[:, reach, -1]}
    columns |= {"day before, now": share[day - 1, now, place]}
    columns |= {"sensor": place, "time of day": clock[target]}
    steps = len(clock)
    table = pd.DataFrame(columns, index=speeds.index[day * steps + target])
    table = table.drop(columns="neighbor +0").assign(**{"day of week": table.index.day_of_week})
    return inputs.astype(np.float32), levels(share[day, target, place]), table.astype(np.float32)
