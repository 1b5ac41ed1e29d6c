"""Air quality: a small traffic network moves to the air beside a motorway. An hour on one core."""

import functools

import keras
import numpy as np

import citynb
from citynb.files import data_folder
from citynb.networks.small import small_resnet
from experiments.experiment import ALL, Experiment, Row, boosted_trees, commonest, cut

HORIZON = 3  # hours
WIDTH = 8  # channels, a quarter of the network of `experiments/i94.py`
QUIET = dict(validate=False, progress=False)

full = functools.cache(lambda: citynb.load("air", horizon=HORIZON))


def load(case, seed):
    return cut(full(), case, seed)


def traffic_body():
    """Return the weights of a body trained on the demand levels of `i94`.

    They are shipped in `data/air/traffic_body.npz`, since a page loads them, too; without the
    file they are trained, and it is written.
    """
    file = data_folder() / "air" / "traffic_body.npz"
    if not file.exists():
        source = citynb.load("i94", horizon=HORIZON)
        keras.utils.set_random_seed(0)
        body = small_resnet(source.input_shape, WIDTH)
        model = citynb.classifier(body, source.num_classes)
        settings = dict(epochs=5, batch_size=64, learning_rate=2e-3, batch_norm="train")
        citynb.fine_tune(model, source, head_epochs=0, **settings, **QUIET)
        weights = {f"{i:02d}": values for i, values in enumerate(body.get_weights())}
        np.savez_compressed(file, **weights)
    with np.load(file, allow_pickle=False) as stored:
        return [stored[key] for key in sorted(stored.files)]


def network(task, settings, seed, case, *, scratch=False):
    """Train one network; `windows` is how many pictures it sees in all, for any labels."""
    keras.utils.set_random_seed(seed)
    body = small_resnet(task.input_shape, WIDTH)
    schedule = dict(settings)
    if "windows" in schedule:
        schedule["epochs"] = max(1, schedule.pop("windows") // len(task.train))
    if scratch:
        schedule |= dict(head_epochs=0, batch_size=64, batch_norm="train")
    else:
        body.set_weights(traffic_body())
        schedule = dict(head_epochs=20, epochs=0) | schedule
    model = citynb.classifier(body, task.num_classes, seed=seed)
    citynb.fine_tune(model, task, seed=seed, **schedule, **QUIET)
    return model


CASES = ({"labels": 100}, {"labels": 300}, {"labels": ALL})

EXPERIMENT = Experiment(
    "air",
    rows=(
        Row("majority", commonest),
        Row(
            "trees",
            boosted_trees,
            dict(max_leaf_nodes=[4, 8], min_samples_leaf=[5, 20], max_iter=[80]),
        ),
        Row(
            "scratch",
            functools.partial(network, scratch=True),
            dict(learning_rate=[1e-3, 4e-3], windows=[24_000, 72_000]),
        ),
        Row("frozen", network, dict(head_learning_rate=[1e-3, 1e-2], head_epochs=[20, 80])),
        Row("fine-tuned", network, dict(learning_rate=[2e-4, 1e-3], windows=[10_000, 40_000])),
    ),
    cases=CASES,
    load=load,
    all_labels=3513,
    datasets=("air", "i94"),
    search_at=CASES,
    confirm=("fine-tuned", {"labels": 100}, 0),
    agreement=0.95,
)
