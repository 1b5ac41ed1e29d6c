"""What several test files build: a small task with known answers and a small real network."""

import keras
import numpy as np
import pandas as pd
import pytest

import citynb
from citynb.tasks import CityTask, Split


@pytest.fixture(scope="session")
def make_task():
    """Return a function that makes a task of noisy pictures whose brightness tells the class.

    `labels` and `groups` replace those of the validation split.
    """

    def make(labels=None, groups=None, *, examples=24, classes=3, shape=(8, 8, 3)):
        splits = []
        for part in range(3):
            rng = np.random.default_rng(part)
            given = labels if part == 1 and labels is not None else np.arange(examples) % classes
            noise = rng.uniform(0, 0.5, (len(given), *shape))
            pictures = (noise + 0.5 * given[:, None, None, None] / classes).astype(np.float32)
            group = np.arange(len(given)) // 2 if groups is None or part != 1 else groups
            table = pd.DataFrame(
                {"brightness": pictures.mean((1, 2, 3)), "noise": noise[:, 0, 0, 0]}
            )
            splits.append(Split(pictures, np.asarray(given), 10_000 * part + group, table))
        names = tuple(f"level {i}" for i in range(classes))
        return CityTask("toy", *splits, class_names=names, split_by="chance")

    return make


@pytest.fixture(scope="session")
def make_model():
    """Return a function that makes the same small network each time: a convolution, BatchNorm
    with statistics of its own, average pooling, and a head."""

    def make(classes=3, dropout=0.0, seed=0):
        keras.utils.set_random_seed(seed)
        pictures = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(6, 3, padding="same", name="conv")(pictures)
        x = keras.layers.BatchNormalization(momentum=0.9, name="norm")(x)
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
        body = keras.Model(pictures, x, name="tiny")
        rng = np.random.default_rng(seed)
        norm = body.get_layer("norm")
        norm.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in norm.get_weights()])
        conv = body.get_layer("conv")
        conv.bias.assign(rng.normal(size=conv.bias.shape))
        return citynb.classifier(body, classes, dropout=dropout, seed=seed)

    return make


@pytest.fixture
def values():
    """Return a function that copies all variables of a model, statistics and seeds included."""
    return lambda model: {variable.path: variable.numpy().copy() for variable in model.variables}
