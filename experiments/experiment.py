"""What an experiment declares: its rows, the cases they run at, and how one row is trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

ALL = "all"  # of a case: every training example there is


@dataclass(frozen=True)
class Row:
    """One line of a results table: a way of training.

    Attributes:
        name: str.
        train: function (task, settings, seed, case) that trains on `task.train` and returns what
            `citynb.evaluate` takes: a network, a fitted classifier, probabilities or labels.
        grid: dict or list of dicts, as `sklearn.model_selection.ParameterGrid` takes them: the
            settings to choose from on validation; one point means that nothing is searched.
        cases: tuple of cases at which the row runs, default all of the experiment.
        seeds: tuple of int, default those of the experiment.
        settings_of: str, the row whose chosen settings this one takes, default its own.
        prepare: function (seed), called before the clock starts, for what rows share, such as
            pretrained weights; it keeps them (functools.cache), and `train` asks again.
    """

    name: str
    train: Callable
    grid: dict | list = field(default_factory=dict)
    cases: tuple | None = None
    seeds: tuple | None = None
    settings_of: str | None = None
    prepare: Callable | None = None


@dataclass(frozen=True)
class Experiment:
    """A comparison of rows over cases and seeds.

    Attributes:
        name: str, the module in `experiments/` and the folder in `experiments/results/`.
        rows: tuple of `Row`.
        cases: tuple of dicts, such as `{"labels": 100}` or `{"target": "demand", "labels": "all"}`.
        load: function (case, seed) that returns the tasks of a case, cut to its labels: a
            `CityTask`, or a list of them, the folds, of which a run trains on each in turn. Folds
            put their examples together in the order of their tables' index.
        datasets: names of the folders whose checksums a run records.
        seeds: tuple of int, the trainings of each row.
        metric: str, what the search maximizes on validation, a metric of `Evaluation`.
        search_seeds: tuple of int, the trainings of each point of a grid.
        search_at: tuple of cases at which grids are searched: few, middle and all labels. Every
            other case takes the settings of the nearest one, by the ratio of `size`.
        size: str, the key of a case that says how many labels it has.
        all_labels: int, how many `"all"` are; for the ratio only.
        keep: tuple of the splits whose predictions are stored.
        probabilities: bool, whether probabilities are stored (float16), or predicted labels.
        confirm: (row name, case, seed), the cheap run that is repeated when code changes.
        agreement: float, the share of the predictions of a repeated run that must come again.
    """

    name: str
    rows: tuple
    cases: tuple
    load: Callable
    datasets: tuple
    confirm: tuple
    search_at: tuple
    seeds: tuple = (0, 1, 2)
    search_seeds: tuple = (100,)
    metric: str = "macro_f1"
    size: str = "labels"
    all_labels: int = 1
    keep: tuple = ("test",)
    probabilities: bool = True
    agreement: float = 0.98

    def row(self, name):
        return next(row for row in self.rows if row.name == name)

    def cases_of(self, row):
        return self.cases if row.cases is None else row.cases

    def seeds_of(self, row):
        return self.seeds if row.seeds is None else row.seeds

    def searched(self, case):
        """Return the case of `search_at` whose settings a case takes: equal elsewhere, near in size."""

        def distance(other):
            strange = [key for key in other if key != self.size and case.get(key) != other[key]]
            one, two = (self.all_labels if n == ALL else n or 1 for n in map(size, (case, other)))
            return len(strange), abs(math.log(one / two))

        def size(one):
            return one.get(self.size, 1)

        return min(self.search_at, key=distance)


def cut(task, case, seed):
    """Return the task with the number of training labels that the case names."""
    labels = case.get("labels", ALL)
    return task if labels == ALL else task.subset(labels, seed)


def commonest(task, settings, seed, case):
    """Give every example of every split the shares of the classes in training."""
    return Shares(np.bincount(task.train.labels, minlength=task.num_classes) / len(task.train))


class Shares:
    """A classifier that has seen labels and looks at nothing."""

    def __init__(self, shares):
        self.classes_, self.shares = np.arange(len(shares)), shares

    def predict_proba(self, table):
        return np.tile(self.shares, (len(table), 1))


def boosted_trees(task, settings, seed, case):
    """Fit the book's boosted trees to the table, with settings such as `max_leaf_nodes`."""
    model = HistGradientBoostingClassifier(
        learning_rate=0.05, l2_regularization=1.0, early_stopping=False, random_state=seed
    )
    return model.set_params(**settings).fit(task.train.table, task.train.labels)
