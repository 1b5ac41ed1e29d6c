"""Where fine-tuning wins: how many labels does a city need? One core takes half an hour a seed."""

import functools

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import citynb
from citynb.files import models_folder
from experiments.experiment import ALL, Experiment, Row, boosted_trees, cut

PIXELS = 96
# How often a network sees each label: fewer labels, more passes.
EPOCHS = {25: 30, 50: 25, 100: 20, 300: 12, 1000: 6, ALL: 4}
PASSES = 2  # a network that starts from nothing sees each picture twice as often

full = functools.cache(lambda: citynb.load("junctions"))


def load(case, seed):
    return cut(full(), case, seed)


def network(task, settings, seed, case, *, start, head_epochs=30, passes=1, **schedule):
    keras.utils.set_random_seed(seed)
    body = citynb.backbone(
        "efficientnet_lite0" if start == "ImageNet" else "city_resnet",
        image_size=PIXELS,
        weights=None if start == "scratch" else "pretrained",
    )
    model = citynb.classifier(body, task.num_classes, seed=seed)
    if start == "city_resnet and its head":
        with np.load(models_folder() / "city_resnet" / "level_head.npz") as head:
            model.get_layer("head").set_weights([head["kernel"], head["bias"]])
    # The density of a mirrored junction is the same.
    flips = keras.layers.RandomFlip(
        "horizontal_and_vertical", seed=seed, data_format="channels_last"
    )
    schedule = dict(epochs=passes * EPOCHS[case["labels"]], head_epochs=head_epochs) | schedule
    schedule |= dict(batch_size=16, augment=flips, seed=seed, validate=False, progress=False)
    citynb.fine_tune(model, task, **schedule, **settings)
    return model


def logistic(task, settings, seed, case):
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, **settings))
    return model.fit(task.train.table, task.train.labels)


def way(start, **schedule):
    return functools.partial(network, start=start, **schedule)


SCRATCH = dict(head_epochs=0, batch_norm="train")
HEADS = dict(head_learning_rate=[1e-3, 3e-3, 1e-2, 3e-2])
BODIES = dict(learning_rate=[1e-4, 3e-4, 1e-3, 3e-3])
TREES = dict(max_leaf_nodes=[4, 31], max_iter=[50, 150], min_samples_leaf=[5, 20])

EXPERIMENT = Experiment(
    "junctions",
    rows=(
        Row(
            "from scratch",
            way("scratch", passes=PASSES, **SCRATCH),
            dict(learning_rate=[3e-4, 1e-3, 3e-3, 1e-2]),
        ),
        Row("ImageNet, frozen", way("ImageNet", epochs=0), HEADS),
        Row("ImageNet, fine-tuned", way("ImageNet"), BODIES),
        Row("city_resnet, frozen", way("city_resnet", epochs=0), HEADS),
        Row("city_resnet, fine-tuned", way("city_resnet"), BODIES),
        # Searched and not run: on validation it lost to a new head, and the book's next cities
        # have other classes.
        Row(
            "city_resnet, its head kept, fine-tuned",
            way("city_resnet and its head", head_epochs=0),
            dict(learning_rate=[1e-4, 3e-4, 1e-3]),
            cases=(),
        ),
        Row("trees on the detector table", boosted_trees, TREES),
        Row(
            "logistic regression on the detector table",
            logistic,
            dict(C=[0.001, 0.01, 0.1, 1.0, 10.0]),
        ),
        # Is that enough with all labels? Once more, three times as long.
        Row(
            "from scratch, three times as long",
            way("scratch", passes=3 * PASSES, **SCRATCH),
            settings_of="from scratch",
            cases=({"labels": ALL},),
            seeds=(0, 1, 2),
        ),
    ),
    cases=tuple({"labels": labels} for labels in EPOCHS),
    load=load,
    all_labels=2380,
    datasets=("junctions", "city_resnet"),
    seeds=(0, 1, 2, 3, 4),
    search_at=({"labels": 50}, {"labels": 300}, {"labels": ALL}),
    search_seeds=(100, 101),
    keep=("validation", "test"),
    confirm=("city_resnet, frozen", {"labels": 25}, 0),
)
