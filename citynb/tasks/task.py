"""The task: three splits that share no day, junction or tile, and what their classes are called."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from citynb.tasks.counts import counts_splits
from citynb.tasks.pictures import PARTS, folder_splits
from citynb.tasks.split import Split


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
            has no class name, an example no group, a split is empty, two splits share a group, or
            their pictures differ in shape or type. Values that are not in memory are checked
            when a batch reads them.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple
    split_by: str
    card: Path | None = None

    def __post_init__(self):
        groups = {}
        for part in PARTS:
            split, where = getattr(self, part), f"{self.name}.{part}"
            if split.name != where:
                split = split.named(where)
                object.__setattr__(self, part, split)
            split.check(self.class_names)
            if split.inputs.shape[1:] != self.input_shape:
                raise ValueError(
                    f"{self.name}: pictures of train are {self.input_shape}, of {part} "
                    f"{split.inputs.shape[1:]}. Give all three splits pictures of one shape."
                )
            if split.inputs.dtype != self.train.inputs.dtype:
                raise ValueError(
                    f"{self.name}: pictures of train are {self.train.inputs.dtype}, of {part} "
                    f"{split.inputs.dtype}. Give all three splits pictures of one type."
                )
            groups[part] = set(split.groups.tolist())
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            if shared := groups[one] & groups[other]:
                raise ValueError(
                    f"{self.name}: {one} and {other} share {len(shared)} group(s), "
                    f"{min(shared, key=str)} for example. Examples of one group know each other's "
                    "labels, so the score would flatter. Split by whole groups, in time or in "
                    "space."
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
        for part in PARTS:
            split = getattr(self, part)
            shares = np.bincount(split.labels, minlength=self.num_classes) / len(split)
            rows[part] = {"examples": len(split), "groups": len(set(split.groups.tolist()))}
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
            source: path of a CSV file, or a DataFrame as `citynb.tasks.counts.read_counts`
                returns it.
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

        Warns:
            UserWarning: a count looks like the code of a failed detector, a split has a single
                level or targets on fewer than seven days.

        Raises:
            ValueError: the file or an argument is not usable; the message names the line.
        """
        name = name or ("counts" if isinstance(source, pd.DataFrame) else Path(source).stem)
        splits, class_names = counts_splits(
            source, bounds=bounds, horizon=horizon, target=target, capacity=capacity, name=name
        )
        return cls(name, *splits, class_names=class_names, split_by="time", card=card)

    @classmethod
    def from_folder(cls, folder, *, image_size=96, group_of=None, name=None, card=None, seed=0):
        """Make a task from a folder of labelled pictures: one folder for each class.

        Two layouts are read: `folder/<class>/<picture>`, which is split here into 60, 20 and
        20 percent of the groups; and `folder/train/<class>/<picture>` with `folder/test/...`
        and, if it is there, `folder/validation/...`. Where `validation` is missing, a fifth
        of the training groups becomes it. Pictures are JPEG or PNG. Only their headers are read
        here; each batch reads its own pictures in color, turned as the camera noted, and cut in
        the middle to the shape of `image_size`. They stay bytes (uint8), so that 20,000 pictures
        need no more memory than 1,000. Hidden files and folders are skipped.

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
            CityTask. The table of a split has the mean and the spread of each color, which is
            what a baseline without a network can know of a picture; it is made, from all of the
            split's pictures, when it is first asked for.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: no classes, a class without pictures, other classes in another split,
                a folder beside the given splits, a file that is no picture, a group that is
                missing or in two given splits, or too few groups.
        """
        name = name or Path(folder).name
        splits, class_names, made_by = folder_splits(
            folder, image_size=image_size, group_of=group_of, seed=seed, name=name
        )
        return cls(name, *splits, class_names=class_names, split_by=made_by, card=card)
