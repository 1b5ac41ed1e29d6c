"""Signals: a few days of a new detector, and networks that know older ones. 20 minutes a core."""

import functools
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd

import citynb
from citynb.datasets import signals
from citynb.files import data_folder
from citynb.networks.small import small_network
from citynb.tasks import CityTask, Split
from citynb.tasks.counts import fill_gaps, read_counts
from experiments.experiment import Experiment, Row, boosted_trees, commonest

DAYS = (1, 3, 7)
SOURCES = ("pooled", "I-94")  # what a network may be pretrained on
QUIET = dict(validate=False, progress=False)

full = functools.cache(lambda days: citynb.load("signals", days=days))
pooled = functools.cache(lambda: citynb.load("signals", days=14, detectors="pooled"))


def load(case, seed):
    return full(case["days"] or 1)  # a row that sees no day is only tested


@functools.cache
def interstate():
    """Return I-94 as the same kind of task: the level of the next hour from six hours of quarters.

    The interstate counts by the hour, so each of its quarters is a fourth of its hour. Only
    examples that stand at the end of an hour are kept: within one, a quarter would tell the
    part of the hour that is yet to come. I-94 has one detector, which also stands in for the
    mean of the others.
    """
    volume = fill_gaps(read_counts(data_folder() / "i94" / "i94.csv.gz")["traffic_volume"])
    volume = volume["2016-10":"2018-03"]
    quarters = (volume / 4).resample("15min").ffill()
    capacity = volume.quantile(0.995)
    inputs, labels, table = signals.examples(quarters, capacity, quarters * 4 / capacity, 0)
    rows = np.flatnonzero(table.index.minute == 0)
    days = table.index[rows].normalize().to_numpy().astype("datetime64[D]")
    task = full(1)
    return CityTask(
        "I-94 by quarters",
        Split(inputs[rows], labels[rows].astype(np.int64), days, table.iloc[rows]),
        task.validation,
        task.test,
        class_names=task.class_names,
        split_by="time",
        card=data_folder() / "i94" / "card.md",
    )


@functools.cache
def pretrained(seed):
    """Return {source: weights of a network trained on it}."""
    weights = {}
    for source, task in zip(SOURCES, (pooled(), interstate())):
        keras.utils.set_random_seed(seed)
        model = citynb.classifier(small_network(task.input_shape), task.num_classes, seed=seed)
        settings = dict(head_epochs=0, epochs=6, batch_size=64, learning_rate=2e-3)
        citynb.fine_tune(model, task, batch_norm="train", seed=seed, **settings, **QUIET)
        weights[source] = model.get_weights()
    return weights


def network(task, settings, seed, case, *, source=None):
    """Train one network; `windows` is how many pictures it sees in all, for any days."""
    keras.utils.set_random_seed(seed)
    model = citynb.classifier(small_network(task.input_shape), task.num_classes, seed=seed)
    schedule = dict(settings)
    if "windows" in schedule:
        schedule["epochs"] = max(1, schedule.pop("windows") // len(task.train))
    if source is None:
        schedule |= dict(head_epochs=0, batch_norm="train")
    else:  # the classes are the same, so the head comes along, too
        model.set_weights(pretrained(seed)[source])
        schedule = dict(head_epochs=10, head_learning_rate=1e-3, epochs=0) | schedule
    citynb.fine_tune(model, task, seed=seed, **schedule, **QUIET)
    return model


def untouched(task, settings, seed, case, *, source):
    model = citynb.classifier(small_network(task.input_shape), task.num_classes)
    model.set_weights(pretrained(seed)[source])
    return model


def pooled_trees(task, settings, seed, case, *, new=False):
    """Fit trees to the old detectors, and to the new one, too, if asked."""
    parts = [pooled().train, task.train] if new else [pooled().train]
    train = SimpleNamespace(
        table=pd.concat([part.table for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
    )
    return boosted_trees(SimpleNamespace(train=train), settings, seed, case)


def of_source(source):
    of = functools.partial(network, source=source)
    return (
        Row(
            f"frozen, {source}",
            of,
            dict(head_learning_rate=[1e-3, 1e-2], head_epochs=[10, 40]),
            NEW,
            prepare=pretrained,
        ),
        Row(
            f"fine-tuned, {source}",
            of,
            dict(learning_rate=[2e-4, 1e-3], windows=[5_000, 20_000]),
            NEW,
            prepare=pretrained,
        ),
    )


NEW = tuple({"days": days} for days in DAYS)
NONE = ({"days": 0},)  # nothing of a new detector is known
TREES = dict(max_leaf_nodes=[8, 31], max_iter=[20, 40])

EXPERIMENT = Experiment(
    "signals",
    rows=(
        Row("majority", commonest, cases=NEW),
        Row("trees", boosted_trees, TREES, NEW),
        Row("trees, pooled too", functools.partial(pooled_trees, new=True), TREES, NEW),
        Row(
            "scratch",
            network,
            dict(learning_rate=[1e-3, 4e-3], windows=[12_000, 36_000]),
            NEW,
        ),
        *of_source("pooled"),
        *of_source("I-94"),
        Row("pooled trees", pooled_trees, TREES, NONE),
        *(
            Row(
                f"untouched, {source}",
                functools.partial(untouched, source=source),
                cases=NONE,
                prepare=pretrained,
            )
            for source in SOURCES
        ),
    ),
    cases=NEW + NONE,
    load=load,
    datasets=("signals", "i94"),
    metric="accuracy",
    size="days",
    search_at=NEW,
    search_seeds=(100, 101),
    confirm=("scratch", {"days": 1}, 0),
    agreement=0.95,
)
