"""police_stops: recorded police stops of Minneapolis in 2017, as counts by precinct and day."""

import numpy as np
import pandas as pd

from citynb.files import data_folder
from citynb.tasks import CityTask, Split

FOLDER = data_folder() / "police_stops"
KINDS = ("suspicious", "traffic")
LEVELS = ("quiet", "usual", "busy")
BOUNDS = ("2017-01-01", "2017-07-17", "2017-09-25", "2018-01-01")
WEEKS = 3  # that an input shows
HORIZON = 7  # days: a roster is written a week ahead


def load():
    """Return the task: how many stops will a precinct record on a day one week ahead?

    The levels are the thirds of each precinct's own training days. An input is a picture of
    3 weeks by 7 days that ends today; its channels are the precinct's stops as suspicious, its
    traffic stops, and the stops of the whole city. It forecasts records, and so the work of
    officers; what happened in the city and was not recorded is not in it.
    """
    return task_of(read_daily(), BOUNDS, name="police_stops", card=FOLDER / "card.md")


def read_daily():
    """Return a DataFrame of stops: a row for each day, columns (precinct, problem)."""
    file = FOLDER / "daily.csv.gz"
    table = pd.read_csv(file, parse_dates=["date"])
    return table.pivot(index="date", columns=["precinct", "problem"], values="stops")


def task_of(counts, bounds, name, card=None):
    """Return the task of daily counts, split by time.

    Args:
        counts: DataFrame, a row for each day, columns (place, kind) with the two KINDS.
        bounds: four dates, the start of train, validation and test, and the end. From the last
            target of a split to the first of the next it is four weeks, as long as an input
            reaches back, so that two splits share no day.
        name, card: as in CityTask.
    """
    bounds = pd.DatetimeIndex(bounds)
    reach = WEEKS * 7 + HORIZON - 1  # days from the oldest that an input shows to the target
    places = counts.columns.get_level_values(0).unique()
    of_place = {place: counts[place].sum(axis=1) for place in places}
    city = counts.sum(axis=1)
    training = slice(bounds[0], bounds[1] - pd.Timedelta(days=1))
    cuts = {place: of_place[place][training].quantile([1 / 3, 2 / 3]) for place in places}
    parts = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        days = counts[start : stop - pd.Timedelta(days=1)].index
        found = {"inputs": [], "labels": [], "tables": []}
        for place in places:
            total = of_place[place]
            largest = [counts[place][kind][training].max() for kind in KINDS]
            channels = [counts[place][kind] / top for kind, top in zip(KINDS, largest, strict=True)]
            channels.append(city / city[training].max())
            stack = np.stack([channel[days].to_numpy() for channel in channels], axis=-1)
            windows = np.lib.stride_tricks.sliding_window_view(stack, WEEKS * 7, axis=0)
            targets = days[reach:]
            pictures = windows[: len(targets)].transpose(0, 2, 1).clip(0, 1)
            found["inputs"].append(pictures.reshape(-1, WEEKS, 7, 3).astype(np.float32))
            found["labels"].append(np.digitize(total[targets], cuts[place]))
            found["tables"].append(_table(counts, place, total[training]).loc[targets])
        table = pd.concat(found["tables"])
        parts.append(
            Split(
                inputs=np.concatenate(found["inputs"]),
                labels=np.concatenate(found["labels"]).astype(np.int64),
                groups=table.index.to_numpy().astype("datetime64[D]"),
                table=table,
            )
        )
    return CityTask(name, *parts, class_names=LEVELS, split_by="time", card=card)


def _table(counts, place, training):
    """What a model for tables may know a week before each day: counts until then, the calendar."""
    total, city = counts[place].sum(axis=1), counts.sum(axis=1)
    columns = {}
    for weeks in (1, 2, 3):
        columns[f"same weekday, {weeks} week(s) before"] = total.shift(7 * weeks)
    for days in (7, 21):
        columns[f"mean of the newest {days} days"] = total.rolling(days).mean().shift(HORIZON)
    for kind in KINDS:
        columns[f"{kind}, mean of 7 days"] = counts[place][kind].rolling(7).mean().shift(HORIZON)
    columns["city, mean of 7 days"] = city.rolling(7).mean().shift(HORIZON)
    weekday = total.index.day_of_week
    usual = training.groupby(training.index.day_of_week).mean()
    columns["usual on the weekday"] = pd.Series(usual.reindex(weekday).to_numpy(), total.index)
    columns["mean of training"] = pd.Series(training.mean(), total.index)
    table = pd.DataFrame(columns)
    table["day of week"] = weekday
    table["precinct"] = list(counts.columns.get_level_values(0).unique()).index(place) + 1
    return table.astype(np.float32)
