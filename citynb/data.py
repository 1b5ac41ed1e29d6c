"""Step 1: prepare the data. Explained on the pages *Two years of one road* and *The ladder*.

Every dataset becomes one `CityTask`: three splits that share no day, junction or tile, the
class names, how the split was made, and the card that says what the data is.
"""

import calendar
import difflib
import hashlib
import importlib
import pkgutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from PIL import UnidentifiedImageError

from citynb import datasets

HOURS_PER_WEEK = 168
PICTURE_FILES = (".jpg", ".jpeg", ".png")
DEMAND_LEVELS = ("free", "light", "busy", "heavy")
# Volume over capacity at the upper bound of levels of service A, B and C of a freeway
# designed for 70 mph (Highway Capacity Manual 1985, table 3-1).
DEMAND_CUTS = (0.35, 0.54, 0.77)
SURPRISE_LEVELS = ("below usual", "as usual", "above usual")
SURPRISE_CUTS = (-0.05, 0.05)  # of capacity; fixed before any model was trained


@dataclass(frozen=True)
class Split:
    """One of the three parts of a task: n examples.

    Attributes:
        inputs: float32 array (n, height, width, channels), values in [0, 1].
        labels: int64 array (n,), class indices from 0.
        groups: array (n,), the unit that examples share (a day, a junction, a tile
            block). No group stands in two splits, and intervals resample groups.
        table: DataFrame (n, features) in plain units, what a model for tables may see.
    """

    inputs: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    table: pd.DataFrame

    def __len__(self):
        return len(self.labels)

    def take(self, rows):
        """Return the split with only these rows (int or bool array), in this order."""
        return Split(self.inputs[rows], self.labels[rows], self.groups[rows], self.table.iloc[rows])


@dataclass(frozen=True)
class CityTask:
    """A classification task of a city, split so that nothing leaks.

    Attributes:
        name: str.
        train, validation, test: `Split`. Choose with validation; touch test once.
        class_names: tuple of str, one per class, in the order of the label.
        split_by: str, how the three parts were separated, for example `"time"`.
        card: Path of the dataset's card (what, who, when, units, licence, gaps), or None.

    Raises:
        ValueError: an array has the wrong rank, dtype, range or length, holds NaN, a label
            has no class name, a split is empty, two splits share a group, or their pictures
            differ in shape.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple
    split_by: str
    card: Path | None = None

    def __post_init__(self):
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            _check_split(f"{self.name}.{part}", split, self.class_names)
            if split.inputs.shape[1:] != self.input_shape:
                raise ValueError(
                    f"{self.name}: pictures of train are {self.input_shape}, of {part} "
                    f"{split.inputs.shape[1:]}. Give all three splits pictures of one shape."
                )
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            shared = np.intersect1d(getattr(self, one).groups, getattr(self, other).groups)
            if shared.size:
                raise ValueError(
                    f"{self.name}: {one} and {other} share {shared.size} group(s), "
                    f"{shared[0]} for example. Examples of one group know each other's labels, "
                    "so the score would flatter. Split by whole groups, in time or in space."
                )

    @property
    def num_classes(self):
        return len(self.class_names)

    @property
    def input_shape(self):
        """(height, width, channels) of one input."""
        return self.train.inputs.shape[1:]

    def subset(self, num_labels, seed=0):
        """Return the task with only `num_labels` training examples.

        Each class is drawn in proportion, and at least once. Of one seed, a larger subset
        contains the smaller ones, so that a learning curve adds labels and swaps none.

        Args:
            num_labels: int, from the number of classes to the size of the training set.
            seed: int, which examples are drawn.

        Returns:
            CityTask with the same validation and test split.

        Raises:
            ValueError: `num_labels` is out of range.
        """
        labels = self.train.labels
        if not self.num_classes <= num_labels <= len(labels):
            raise ValueError(
                f"{self.name}: a subset needs {self.num_classes} to {len(labels)} labels, "
                f"not {num_labels}."
            )
        shuffled = np.random.default_rng(seed).permutation(len(labels))
        place = np.empty(len(labels))  # in the line of its class, from 0 to 1
        for label in range(self.num_classes):
            members = shuffled[labels[shuffled] == label]
            place[members] = np.arange(len(members)) / max(1, len(members))
        rows = np.sort(np.argsort(place, kind="stable")[:num_labels])
        return replace(self, train=self.train.take(rows))

    def summary(self):
        """Return a DataFrame: for each split its examples, groups, and share of each class."""
        rows = {}
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            shares = np.bincount(split.labels, minlength=self.num_classes) / len(split)
            rows[part] = {"examples": len(split), "groups": len(np.unique(split.groups))}
            rows[part] |= dict(zip(self.class_names, shares.round(3), strict=True))
        return pd.DataFrame(rows).T.astype({"examples": int, "groups": int})

    @classmethod
    def from_counts(
        cls, source, *, bounds=None, horizon=1, target="demand", capacity=None, name=None, card=None
    ):
        """Make a task from one detector's hourly counts: which level, `horizon` hours ahead?

        An input is a picture of 7 days by 24 hours with three channels, all volume over
        capacity: the week that ends now; the week that ends at the same hour as the target,
        one week before it; and the hour-of-the-week profile of the training years for the
        week that ends at the target. The last row's last pixel is the newest hour. The levels
        of demand are the levels of service A, B, C and worse of a 70 mph freeway (Highway
        Capacity Manual 1985, table 3-1).

        Args:
            source: path of a CSV file, or a DataFrame as `read_counts` returns it.
            bounds: four dates, the start of train, of validation, of test, and the end;
                default: 60, 20 and 20 percent of the time.
            horizon: int, hours from now to the target, 1 to 168.
            target: `"demand"` (four levels of volume over capacity) or `"surprise"` (three
                levels of the difference to the hour-of-the-week profile).
            capacity: vehicles an hour; default: the 99.5th percentile of the training hours.
            name: str, default the file's name.
            card: Path of the card.

        Returns:
            CityTask, split by time. From the last target of a split to the first of the next
            it is two weeks, as long as an input reaches back, so that two splits share no hour.

        Raises:
            ValueError: the file or an argument is not usable; the message names the line.
        """
        if target not in ("demand", "surprise"):
            raise ValueError(f"target is {target!r}; choose 'demand' or 'surprise'.")
        if horizon not in range(1, HOURS_PER_WEEK + 1):  # this refuses 1.5, too
            raise ValueError(f"horizon is {horizon} hours; choose 1 to {HOURS_PER_WEEK}.")
        horizon = int(horizon)
        counts = source if isinstance(source, pd.DataFrame) else read_counts(source)
        name = name or (Path(source).stem if not isinstance(source, pd.DataFrame) else "counts")
        steps = np.diff(counts.index) if isinstance(counts.index, pd.DatetimeIndex) else np.zeros(1)
        if (steps != np.timedelta64(1, "h")).any() or "traffic_volume" not in counts:
            raise ValueError(
                f"{name}: the counts need a row for every hour and a column 'traffic_volume'; "
                "citynb.data.read_counts makes them from a CSV file."
            )
        # Hours before the first count could only be filled from the future.
        counts = counts.loc[counts["traffic_volume"].first_valid_index() :]
        hours, volume = counts.index, counts["traffic_volume"]
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
        parts = []
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
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
            parts.append(
                Split(
                    inputs=pictures,
                    labels=levels[now + horizon].astype(np.int64),
                    groups=hours[now + horizon].normalize().to_numpy().astype("datetime64[D]"),
                    table=table.iloc[now].set_axis(hours[now + horizon]),
                )
            )
        return cls(name, *parts, class_names=class_names, split_by="time", card=card)

    @classmethod
    def from_folder(cls, folder, *, image_size=96, group_of=None, name=None, card=None, seed=0):
        """Make a task from a folder of labelled pictures: one folder for each class.

        Two layouts are read: `folder/<class>/<picture>`, which is split here into 60, 20 and
        20 percent of the groups; and `folder/train/<class>/<picture>` with `folder/test/...`
        and, if it is there, `folder/validation/...`. Where `validation` is missing, a fifth
        of the training groups becomes it. Pictures are JPEG or PNG, read in colour, and cut
        in the middle to the shape of `image_size`.

        Copies of one picture always share a group. If they stand in two given splits, the one
        in test stays, then the one in validation, and a warning says how many were left out.

        Args:
            folder: path.
            image_size: pixels, an int or (height, width).
            group_of: a function from the picture's Path to its group, for example
                `lambda path: path.stem.split("_")[0]` when names start with the camera. Give it
                whenever pictures share a camera, a place or an hour. Default: each picture is
                a group of its own.
            name: str, default the folder's name.
            card: Path of the card.
            seed: int, which groups go to which split.

        Returns:
            CityTask. The table of a split has the mean and the spread of each colour, which is
            what a baseline without a network can know of a picture.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: no classes, a class without pictures, other classes in another split,
                a file that is no picture, a group in two given splits, or too few groups.
        """
        folder = Path(folder)
        name = name or folder.name
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder}. It needs one folder of pictures for each class."
            )
        given = [part for part in ("train", "validation", "test") if (folder / part).is_dir()]
        if given and not {"train", "test"} <= set(given):
            raise ValueError(
                f"{folder} has {' and '.join(given)}, but a given split needs train and test. "
                "Add the missing folder, or put the classes at the top and let them be split here."
            )
        files = pd.concat(
            [_list_pictures(folder / part, part) for part in given or [""]], ignore_index=True
        )
        class_names = tuple(sorted(files["class"].unique()))
        if len(class_names) < 2:
            raise ValueError(
                f"{folder} has {len(class_names)} class folder(s) with pictures "
                f"({', '.join(class_names) or 'none'}); a task needs two or more."
            )
        for part, found in files.groupby("part")["class"]:
            if missing := sorted(set(class_names) - set(found)):
                raise ValueError(
                    f"{folder / part} has no pictures of the class {missing[0]!r}, which other "
                    "splits have. Every split needs the same class folders."
                )
        files["bytes"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files["path"]]
        order = files["part"].map({"test": 0, "validation": 1, "train": 2, "": 3})
        copies = (
            files.iloc[order.argsort(kind="stable")].groupby("bytes")["part"].transform("first")
        )
        leaks = copies.reindex(files.index) != files["part"]
        if leaks.any():
            warnings.warn(
                f"{name}: {leaks.sum()} picture(s) also stand in another split and were left out, "
                f"{files['path'][leaks.idxmax()]} for example.",
                stacklevel=2,
            )
            files = files[~leaks].reset_index(drop=True)
        files["group"] = files["bytes"] if group_of is None else files["path"].map(group_of)
        files["group"] = files.groupby("bytes")["group"].transform("first").astype(str)

        rng = np.random.default_rng(seed)
        if not given:
            _deal_groups(files, "", {"train": 0.6, "validation": 0.2, "test": 0.2}, rng, name)
        elif "validation" not in given:
            _deal_groups(files, "train", {"train": 0.8, "validation": 0.2}, rng, name)
        shape = (image_size, image_size) if np.isscalar(image_size) else tuple(image_size)
        parts = []
        for part in ("train", "validation", "test"):
            rows = files[files["part"] == part]
            pictures = np.stack([_read_picture(path, shape) for path in rows["path"]])
            colours = {
                f"{statistic} {colour}": getattr(pictures[..., channel], kind)((1, 2))
                for channel, colour in enumerate(("red", "green", "blue"))
                for statistic, kind in (("mean", "mean"), ("spread", "std"))
            }
            parts.append(
                Split(
                    inputs=pictures,
                    labels=rows["class"].map(class_names.index).to_numpy(np.int64),
                    groups=rows["group"].to_numpy(str),
                    table=pd.DataFrame(colours),
                )
            )
        split_by = "given folders" if given else "picture" if group_of is None else "group"
        return cls(name, *parts, class_names=class_names, split_by=split_by, card=card)


def load(name, **options):
    """Load one of the book's datasets as a `CityTask`.

    Args:
        name: str, a module of `citynb.datasets`: `"i94"` (hourly volume on an interstate),
            `"cameras"` (simulated aerial views of junctions), `"portland"` (signal detectors),
            `"nox"` (air beside a motorway), `"stops"` (recorded police stops), `"helsinki"`
            (land use from building plans), `"travel_times"` (seconds on six road segments).
        **options: what that module's `load` takes, for example `horizon=3` (hours) for `i94`, or
            `label="now"` for `cameras`; its docstring says which there are.

    Returns:
        CityTask.

    Raises:
        ValueError: no dataset has this name (the message says the nearest), or a file is
            not the one that its checksum names.
    """
    modules = {module.name for module in pkgutil.iter_modules(datasets.__path__)}
    known = sorted(modules - {"rebuild"})  # that one serves the scripts which make the data
    if name not in known:
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"There is no dataset {name!r}; did you mean {nearest!r}? "
            f"Choose one of {', '.join(known)}."
        )
    verify(name)
    return importlib.import_module(f"citynb.datasets.{name}").load(**options)


def read_counts(path):
    """Read one detector's hourly counts and check every line.

    Args:
        path: CSV file with the columns `datetime` (local time, on the hour) and
            `traffic_volume` (vehicles an hour, empty where not measured), and, where known,
            `temp` (kelvin), `rain_1h` (millimeters), `clouds_all` (percent) and `weather_main`
            (a word such as Snow).

    Returns:
        DataFrame indexed by every hour from the first to the last; an hour that the file
        leaves out has an empty row.

    Raises:
        ValueError: a column is missing, a cell is not a number, hours are unsorted,
            repeated or not on the hour, a count is negative, or no row is usable.
    """
    where = Path(path).name
    try:
        frame = pd.read_csv(path, dtype=str, skipinitialspace=True, skip_blank_lines=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} is not a CSV file in UTF-8: {error}.") from error
    frame = frame.dropna(how="all")  # blank lines; the index still counts them
    for column in ("datetime", "traffic_volume"):
        if column not in frame:
            near = difflib.get_close_matches(column, frame.columns, n=1)
            hint = f" Rename {near[0]!r}?" if near else ""
            raise ValueError(
                f"{where} has no column {column!r}; it has {', '.join(frame.columns)}.{hint}"
            )
    _refuse(
        frame["datetime"].str.contains(r"Z|[+-]\d\d:?\d\d$", na=False),
        where,
        "the datetime has a time zone; write local time without one",
    )
    hours = pd.to_datetime(frame.pop("datetime"), errors="coerce", format="ISO8601")
    _refuse(hours.isna(), where, "the datetime is not a date and time such as 2018-04-01 07:00:00")
    _refuse(hours != hours.dt.floor("h"), where, "the datetime is not on the hour; resample first")
    _refuse(hours.duplicated(), where, "the hour stands twice; keep one row for each hour")
    _refuse(
        hours.diff() < pd.Timedelta(0), where, "the hour is before the row above; sort by datetime"
    )
    columns = [c for c in ("traffic_volume", "temp", "rain_1h", "clouds_all") if c in frame]
    counts = pd.DataFrame(index=pd.DatetimeIndex(hours, name="datetime"))
    for column in columns:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        unreadable = frame[column].notna() & ~np.isfinite(numbers)
        _refuse(unreadable, where, f"{column} is not a number")
        counts[column] = numbers.to_numpy()
        if column == "traffic_volume":
            _refuse(numbers < 0, where, "a count is negative")
    if "weather_main" in frame:
        counts["weather_main"] = frame["weather_main"].to_numpy()
    if not counts["traffic_volume"].notna().any():
        raise ValueError(f"{where} has zero usable rows: no hour has a traffic_volume.")
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


def verify(name):
    """Check every file of a shipped dataset against its `SHA256SUMS`.

    Raises:
        ValueError: a file is missing or has other bytes.
    """
    folder = data_folder() / name
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        expected, file = line.split()
        path = folder / file
        if not path.exists():
            raise ValueError(f"{path} is missing. Get it back with `git checkout -- data/{name}`.")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(
                f"{path} is damaged: its sha256 is {found[:12]}…, not {expected[:12]}…. "
                f"Get it back with `git checkout -- data/{name}`."
            )


def data_folder():
    """Return the Path of the datasets: `data/` of the checkout, or the installed copy."""
    here = Path(__file__).resolve().parent
    installed = here / "_data"  # first, since site-packages may hold a foreign data folder
    return installed if installed.is_dir() else here.parent / "data"


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


def _list_pictures(folder, part):
    """Return a row for each picture in the class folders of `folder`; refuse what is no picture."""
    rows = []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        pictures = sorted(path for path in class_folder.iterdir() if not path.name.startswith("."))
        strange = [path for path in pictures if path.suffix.lower() not in PICTURE_FILES]
        if strange:
            raise ValueError(
                f"{strange[0]} is no picture ({', '.join(PICTURE_FILES)}). Move it elsewhere; "
                "a class folder holds only pictures."
            )
        if not pictures:
            raise ValueError(f"The class folder {class_folder} is empty. Fill it or remove it.")
        rows += [{"path": path, "class": class_folder.name, "part": part} for path in pictures]
    return pd.DataFrame(rows, columns=["path", "class", "part"])


def _deal_groups(files, part, shares, rng, name):
    """Give whole groups of `part` to new parts, class by class, so that each gets its share."""
    undealt = files[files["part"] == part]
    # A group goes with the class it has most of, so that rare classes reach every part.
    main_class = undealt.groupby("group")["class"].agg(lambda found: found.mode()[0])
    dealt = {}
    for _, groups in main_class.groupby(main_class):
        shuffled = rng.permutation(groups.index.to_numpy())
        ends = np.round(np.cumsum(list(shares.values())) * len(groups)).astype(int)
        least = np.arange(1, len(shares) + 1)  # a group for each part, as far as they reach
        most = len(groups) - np.arange(len(shares) - 1, -1, -1)
        ends = np.clip(ends, least, np.maximum(most, least)).clip(max=len(groups))
        for new_part, members in zip(shares, np.split(shuffled, ends[:-1])):
            dealt |= dict.fromkeys(members, new_part)
    parts = undealt["group"].map(dealt)
    # A rare class may be nowhere the main one and still reach every part, inside of groups.
    for class_name, found in parts.groupby(undealt["class"]):
        if missing := [part for part in shares if part not in set(found)]:
            groups = undealt["group"][undealt["class"] == class_name].nunique()
            enough = groups >= len(shares)
            way_out = "Choose another seed" if enough else "Add pictures from other places"
            raise ValueError(
                f"{name}: the class {class_name!r} has {groups} group(s), and none of them came "
                f"to {missing[0]}; each of {', '.join(shares)} needs one. {way_out}, or give train, "
                "validation and test folders yourself."
            )
    files.loc[undealt.index, "part"] = parts


def _read_picture(path, shape):
    try:
        picture = keras.utils.load_img(
            path, target_size=shape, interpolation="bilinear", keep_aspect_ratio=True
        )
    except OSError as error:
        reason = error
        if isinstance(error, UnidentifiedImageError):  # its text names an address in memory
            reason = "its content is neither JPEG nor PNG"
        raise ValueError(
            f"{path} cannot be read as a picture ({reason}). Remove it or get it again."
        ) from error
    return np.asarray(picture, np.float32) / 255


def _refuse(bad, where, reason):
    """Raise for the first bad row, with the line number an editor shows (the header is line 1)."""
    if bad.any():
        raise ValueError(f"{where}, line {bad.idxmax() + 2}: {reason}.")


def _check_split(where, split, class_names):
    inputs, labels = split.inputs, split.labels
    if len(labels) == 0:
        raise ValueError(f"{where} has no examples. Widen its bounds or check the filter.")
    sizes = {len(inputs), len(labels), len(split.groups), len(split.table)}
    if len(sizes) != 1:
        raise ValueError(f"{where}: inputs, labels, groups and table differ in length: {sizes}.")
    if inputs.ndim != 4:
        raise ValueError(
            f"{where}: inputs have the shape {inputs.shape}; pictures need four axes, "
            "(examples, height, width, channels). For one grey channel use inputs[..., None]."
        )
    if inputs.dtype != np.float32:
        raise ValueError(
            f"{where}: inputs are {inputs.dtype}; pictures are float32 in [0, 1]. "
            "For bytes use (pictures / 255).astype('float32')."
        )
    if np.isnan(inputs).any():
        row = int(np.argwhere(np.isnan(inputs))[0][0])
        raise ValueError(
            f"{where}: example {row} holds NaN. Fill or drop it before making the task."
        )
    low, high = float(inputs.min()), float(inputs.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"{where}: inputs span {low:.3g} to {high:.3g}; pictures lie in [0, 1]. Divide by 255 "
            "or by the capacity first."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise ValueError(
            f"{where}: labels are {labels.dtype} of the shape {labels.shape}; they are class "
            "indices, integers of the shape (examples,)."
        )
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise ValueError(
            f"{where}: labels run from {labels.min()} to {labels.max()}, but there are "
            f"{len(class_names)} class names {class_names}. Name every class."
        )
