"""Stored results of the long experiments, read by one call: runs and their evaluations."""

import difflib
import functools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd

from citynb.comparison import compare
from citynb.evaluation import evaluate
from citynb.files import results_folder

FEWEST_SEEDS = 3  # with fewer, a row is unfinished: no spread, no verdict


def results(experiment, split="test"):
    """Read the stored results of an experiment.

    Args:
        experiment: str, a folder of `experiments/results/`: `"air"`, `"i94"`, `"junctions"`,
            `"land_use"`, `"police_stops"` or `"signals"`.
        split: `"test"`, or `"validation"` where it was stored.

    Returns:
        Results.

    Raises:
        ValueError: there is no such experiment or split, or the file is damaged.
    """
    file = results_folder() / experiment / "results.npz"
    if not file.is_file():
        known = sorted(path.parent.name for path in results_folder().glob("*/results.npz"))
        near = difflib.get_close_matches(str(experiment), known, n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}? There are {', '.join(known)}" if near else ""
        raise ValueError(f"There are no stored results of {experiment!r}{hint}.")
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(str(arrays.pop("meta")))
    except Exception as error:  # a damaged zip file raises errors of a dozen kinds
        raise ValueError(
            f"{file} is damaged ({error}). Restore it from the repository, or install again."
        ) from error
    return Results(experiment, split, meta, arrays)


class Results:
    """What the runs of an experiment gave on one split.

    Attributes:
        experiment, split: str.
        runs: DataFrame, one row for each run: `name` of the way of training, `labels` (int, the
            number of training examples), `seed`, `seconds` of training, `settings` (dict), the
            other columns of the case (such as `days`), `accuracy` and `macro_f1` on the split,
            `seeds` (int, how many seeds the row has at this case) and `unfinished` (bool, fewer
            than three of them).
        evaluations: list of `Evaluation`, in the order of `runs`; without intervals, since
            `citynb.compare` draws its own.
        predictions: list of int arrays (examples,), the predicted classes of each run.
        search: DataFrame, one row for each trial on validation: `name`, the case, `settings`,
            `seed`, and `score`, which is what `metric` says.
        unfinished: list of (name, case), the rows with fewer than three seeds.
        metric: str, what the settings were chosen by.
    """

    def __init__(self, experiment, split, meta, arrays):
        self.experiment, self.split, self.metric = experiment, split, meta["metric"]
        self._meta, self._arrays = meta, arrays
        splits = {name.split("/")[-1] for name in arrays if name.startswith("labels/")}
        if split not in splits:
            raise ValueError(
                f"The results of {experiment!r} have no split {split!r}; "
                f"they have {' and '.join(sorted(splits))}."
            )

    @functools.cached_property
    def evaluations(self):
        found = []
        for number, run in enumerate(self._meta["runs"]):
            output = self._arrays.get(f"probabilities/{self.split}/{number}")
            if output is None:
                output = self._arrays[f"predictions/{self.split}/{number}"]
            labels, groups = (
                self._arrays[f"{kind}/{run['task']}/{self.split}"] for kind in ("labels", "groups")
            )
            names = self._arrays[f"class_names/{run['task']}"]
            found.append(evaluation_of(output, labels, groups, names, name=run["name"]))
        return found

    @property
    def predictions(self):
        return [one.probabilities.argmax(-1) for one in self.evaluations]

    @functools.cached_property
    def runs(self):
        table = pd.DataFrame([_row(run) for run in self._meta["runs"]])
        table["accuracy"] = [one.accuracy for one in self.evaluations]
        table["macro_f1"] = [one.macro_f1 for one in self.evaluations]
        row = [json.dumps([run["name"], run["case"]]) for run in self._meta["runs"]]
        table["seeds"] = table.groupby(row)["seed"].transform("nunique")
        table["unfinished"] = table["seeds"] < FEWEST_SEEDS
        return table

    @property
    def search(self):
        columns = ("name", "labels", "settings", "seed", "score")
        return pd.DataFrame(
            [
                {key: one[key] for key in columns if key in one}
                | {key: value for key, value in one["case"].items() if key != "labels"}
                for one in self._meta["search"]
            ]
        )

    @property
    def unfinished(self):
        numbers = np.flatnonzero(self.runs["unfinished"])
        pairs = [(self._meta["runs"][n]["name"], self._meta["runs"][n]["case"]) for n in numbers]
        return [pair for place, pair in enumerate(pairs) if pair not in pairs[:place]]

    def by_name(self, **case):
        """Return {name: [Evaluation of each seed]} of one case, as `citynb.compare` takes it.

        Args:
            **case: columns of `runs` with their values, for example `labels=300` (an int).

        Raises:
            ValueError: a column does not exist, or no run has these values.
        """
        if strange := sorted(set(case) - set(self.runs)):
            raise ValueError(
                f"The runs of {self.experiment!r} have no column {strange[0]!r}; "
                f"they have {', '.join(self.runs)}."
            )
        rows = self.runs.loc[(self.runs[list(case)] == pd.Series(case, dtype=object)).all(axis=1)]
        if rows.empty:
            there = {key: self.runs[key].unique().tolist() for key in case}
            raise ValueError(f"No run of {self.experiment!r} has {case}; there are {there}.")
        found = {}
        for number, name in rows["name"].items():
            found.setdefault(name, []).append(self.evaluations[number])
        return found

    def compare(self, reference, *, metric=None, **case):
        """Compare the rows of one case by `citynb.compare`; a row that is unfinished gets no verdict.

        Args:
            reference: str, the name that the others are compared with.
            metric: str, default the one that the settings were chosen by.
            **case: as in `by_name`.

        Returns:
            DataFrame as `citynb.compare` gives it; where a row or the reference has fewer than
            three seeds, the verdict is `"unfinished"` and there is no interval.

        Raises:
            ValueError: as `by_name` and `citynb.compare`.
        """
        table = compare(self.by_name(**case), reference, metric=metric or self.metric)
        few = (table["seeds"] < FEWEST_SEEDS) | (table.loc[reference, "seeds"] < FEWEST_SEEDS)
        table.loc[few, ["low", "high"]] = np.nan
        table.loc[few, "verdict"] = "unfinished"
        return table

    def chances(self, class_name):
        """Return the probability of one class, a float array (runs, examples).

        Args:
            class_name: str, one of the task's.

        Raises:
            ValueError: there is no such class, or only predicted labels were stored.
        """
        found = []
        for number, run in enumerate(self._meta["runs"]):
            names = self._arrays[f"class_names/{run['task']}"].tolist()
            if class_name not in names:
                raise ValueError(f"There is no class {class_name!r}; choose {', '.join(names)}.")
            place = names.index(class_name)
            full = self._arrays.get(f"probabilities/{self.split}/{number}")
            one = self._arrays.get(f"chance_{place}/{self.split}/{number}")
            if full is None and one is None:
                raise ValueError(f"{self.experiment!r} has no probabilities, only predictions.")
            found.append((one if full is None else full[:, place]).astype(np.float64))
        return np.stack(found)


def evaluation_of(output, labels, groups, class_names, name="stored"):
    """Return the Evaluation of stored predictions, without intervals.

    Args:
        output: probabilities (n, classes) of any float type, or predicted labels (n,).
        labels, groups: arrays (n,).
        class_names: str, one for each class.
        name: str.
    """
    part = _Labels(labels, groups)
    names = tuple(map(str, class_names))
    task = SimpleNamespace(name=name, class_names=names, num_classes=len(names), test=part)
    output = output.astype(np.float64 if output.ndim == 2 else np.int64)
    # One resample: an interval that nobody asked for would take most of the time.
    return evaluate(output, task, "test", name=name, resamples=1)


class _Labels:
    """What `evaluate` reads of a split when predictions are given."""

    def __init__(self, labels, groups):
        self.labels, self.groups = labels, groups

    def __len__(self):
        return len(self.labels)


def _row(run):
    columns = {key: run[key] for key in ("name", "labels", "seed", "seconds", "settings")}
    return columns | {key: value for key, value in run["case"].items() if key != "labels"}
