"""Police stops: a network trained on days of traffic moves to the work of officers. Two minutes."""

import functools

import keras
import numpy as np
import pandas as pd

import citynb
from citynb.datasets import police_stops
from citynb.files import data_folder
from citynb.networks.small import small_network
from citynb.tasks.counts import fill_gaps, read_counts
from experiments.experiment import Experiment, Row, boosted_trees, commonest

SCRATCH = dict(head_epochs=0, batch_norm="train")


@functools.cache
def full():
    return citynb.load("police_stops")


def traffic_days():
    """Return i94 as the same kind of task: which third of its days, a week ahead?"""
    volume = fill_gaps(read_counts(data_folder() / "i94" / "i94.csv.gz")["traffic_volume"])
    days = volume.resample("D").sum()
    # One detector: its volume stands in for both kinds of stops and for the whole city.
    daily = days / days[:"2017-12-31"].max() * 50
    counts = pd.DataFrame({("I-94", kind): daily for kind in police_stops.KINDS})
    bounds = ("2016-10-01", "2018-01-01", "2018-05-01", "2018-10-01")
    return police_stops.task_of(counts, bounds, name="i94 days")


def network(task, settings, seed, case=None, *, pretrained=False):
    keras.utils.set_random_seed(seed)
    body = small_network(task.input_shape)
    if pretrained:
        body.set_weights(traffic_body(seed))
    model = citynb.classifier(body, task.num_classes, seed=seed)
    citynb.fine_tune(model, task, seed=seed, validate=False, progress=False, **settings)
    return model


@functools.cache
def traffic_body(seed):
    """Return the weights of the body of a network trained on the days of I-94."""
    model = network(traffic_days(), SCRATCH | dict(epochs=20, learning_rate=2e-3), seed)
    return model.get_layer("small_network").get_weights()


def usual_level(task, settings, seed, case):
    """Predict the training days' most frequent level of precinct and weekday."""
    keys = ["precinct", "day of week"]
    train = task.train.table[keys].assign(level=task.train.labels)
    return Usual(train.groupby(keys)["level"].agg(lambda level: level.mode()[0]), keys)


class Usual:
    """A classifier that looks labels up by columns of the table."""

    def __init__(self, usual, keys):
        self.usual, self.keys = usual, keys

    def predict(self, table):
        return self.usual.loc[pd.MultiIndex.from_frame(table[self.keys])].to_numpy(np.int64)


tuned = dict(train=functools.partial(network, pretrained=True), prepare=traffic_body)

EXPERIMENT = Experiment(
    "police_stops",
    rows=(
        Row("majority", commonest),
        Row("precinct and weekday", usual_level),
        Row("trees", boosted_trees, dict(max_iter=[40, 80], max_leaf_nodes=[4, 8])),
        Row(
            "scratch",
            network,
            dict(
                head_epochs=[0],
                batch_norm=["train"],
                learning_rate=[1e-3, 4e-3],
                epochs=[20, 60],
            ),
        ),
        Row(
            "frozen",
            grid=dict(epochs=[0], head_learning_rate=[1e-3, 1e-2], head_epochs=[20, 80]),
            **tuned,
        ),
        Row(
            "fine-tuned",
            grid=dict(head_epochs=[20], learning_rate=[2e-4, 1e-3], epochs=[10, 40]),
            **tuned,
        ),
    ),
    cases=({},),
    load=lambda case, seed: full(),
    datasets=("police_stops", "i94"),
    search_at=({},),
    probabilities=False,
    confirm=("scratch", {}, 0),
    agreement=0.95,
)
