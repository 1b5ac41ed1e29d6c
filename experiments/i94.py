"""Sensors as images: an hour ahead on one road as a picture. About an hour on two cores."""

import functools

import keras

import citynb
from citynb.networks.small import small_resnet
from experiments.experiment import ALL, Experiment, Row, boosted_trees, cut

HORIZON = 3  # hours
FEW = 1000  # labelled windows
PIXELS = 64
WINDOWS = 64_000  # seen from scratch, with few labels and with many: a thousand steps

full = functools.cache(lambda target: citynb.load("i94", horizon=HORIZON, target=target))


def load(case, seed):
    return cut(full(case["target"]), case, seed)


def train(model, task, seed, **settings):
    citynb.fine_tune(model, task, seed=seed, validate=False, progress=False, **settings)
    return model


def scratch(task, settings, seed, case):
    keras.utils.set_random_seed(seed)
    model = citynb.classifier(small_resnet(task.input_shape), task.num_classes, seed=seed)
    schedule = dict(head_epochs=0, epochs=WINDOWS // len(task.train), batch_size=64)
    return train(model, task, seed, **schedule, batch_norm="train", **settings)


def imagenet(task, settings, seed, case, *, weights="pretrained", head_epochs=30, **schedule):
    keras.utils.set_random_seed(seed)
    body = citynb.backbone("efficientnet_lite0", image_size=PIXELS, weights=weights)
    model = citynb.classifier(body, task.num_classes, input_shape=task.input_shape, seed=seed)
    return train(model, task, seed, head_epochs=head_epochs, **schedule, **settings)


def way(**schedule):
    return functools.partial(imagenet, **schedule)


TARGETS = ("demand", "surprise")
FEW_LABELS = tuple({"target": target, "labels": FEW} for target in TARGETS)
ALL_LABELS = tuple({"target": target, "labels": ALL} for target in TARGETS)
DEMAND = (FEW_LABELS[0], ALL_LABELS[0])

EXPERIMENT = Experiment(
    "i94",
    rows=(
        Row("trees", boosted_trees, dict(max_iter=[40, 80], max_leaf_nodes=[8, 31])),
        Row(
            "small ResNet, from scratch",
            scratch,
            dict(learning_rate=[1e-3, 2e-3, 4e-3]),
        ),
        Row("ImageNet, frozen", way(epochs=0), dict(head_learning_rate=[1e-3, 3e-3]), DEMAND),
        Row(
            "ImageNet, fine-tuned",
            way(epochs=8),
            dict(learning_rate=[2e-4, 5e-4, 1e-3]),
            FEW_LABELS,
        ),
        Row(
            "ImageNet, fine-tuned, BatchNorm trap",
            way(epochs=8, batch_norm="train"),
            settings_of="ImageNet, fine-tuned",
            cases=FEW_LABELS[:1],
        ),
        Row(
            "the same network, from scratch",
            way(weights=None, head_epochs=0, epochs=8, batch_norm="train"),
            dict(learning_rate=[1e-3, 2e-3, 4e-3]),
            FEW_LABELS[:1],
        ),
    ),
    cases=(ALL_LABELS[0], FEW_LABELS[0], ALL_LABELS[1], FEW_LABELS[1]),
    load=load,
    all_labels=10_552,
    datasets=("i94",),
    metric="accuracy",
    search_at=DEMAND,
    probabilities=False,
    confirm=("ImageNet, frozen", FEW_LABELS[0], 0),
)
