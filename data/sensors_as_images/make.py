"""The long comparison behind the page *Sensors as images*: every row, three seeds.

    python data/sensors_as_images/make.py

Writes predictions.npz beside it: the test predictions of every run, and a JSON text
with seeds, seconds, versions and the checksum of this script. Hyperparameters were chosen
on validation; the test split is predicted once for each run. Takes about an hour on two
cores.
"""

import hashlib
import json
import time
from pathlib import Path

import keras
import numpy as np
import sklearn
import tensorflow as tf
from sklearn.ensemble import HistGradientBoostingClassifier

import citynb

HORIZON = 3  # hours
SEEDS = (0, 1, 2)
FEW = 1000  # labelled windows
PIXELS = 64


def small_resnet(input_shape, width=32):
    """Build the page's small ResNet: three residual blocks on 7 x 24 pixels, average pooled."""
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(width, 3, padding="same")(inputs)
    for _ in range(3):
        branch = x
        for _ in range(2):
            branch = keras.layers.BatchNormalization()(branch)
            branch = keras.layers.ReLU()(branch)
            branch = keras.layers.Conv2D(width, 3, padding="same")(branch)
        x = keras.layers.Add()([x, branch])
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    # Flattening keeps where a pixel is; averaging would forget which hour is now.
    return keras.Model(inputs, keras.layers.Flatten()(x), name="small_resnet")


def scratch(task, seed):
    keras.utils.set_random_seed(seed)
    model = citynb.classifier(small_resnet(task.input_shape), task.num_classes, seed=seed)
    epochs = max(6, 6000 // len(task.train))
    return model, dict(
        head_epochs=0, epochs=epochs, batch_size=64, learning_rate=2e-3, batch_norm="train"
    )


def imagenet(task, seed, weights="pretrained", **training):
    keras.utils.set_random_seed(seed)
    body = citynb.backbone("efficientnet_lite0", image_size=PIXELS, weights=weights)
    shape = task.input_shape
    model = citynb.classifier(body, task.num_classes, input_shape=shape, seed=seed)
    return model, dict(head_epochs=30) | training


NETWORKS = {
    "small ResNet, from scratch": scratch,
    "ImageNet, frozen": lambda task, seed: imagenet(task, seed, epochs=0),
    "ImageNet, fine-tuned": lambda task, seed: imagenet(task, seed, epochs=8, learning_rate=5e-4),
    "ImageNet, fine-tuned, BatchNorm trap": lambda task, seed: imagenet(
        task, seed, epochs=8, learning_rate=5e-4, batch_norm="train"
    ),
    "the same network, from scratch": lambda task, seed: imagenet(
        task, seed, None, head_epochs=0, epochs=8, learning_rate=2e-3, batch_norm="train"
    ),
}
# Which rows are run: on all labels, and on the second target.
ALL_LABELS = ("small ResNet, from scratch", "ImageNet, frozen")
SURPRISE = ("small ResNet, from scratch", "ImageNet, fine-tuned")


def trees(task, seed):
    """Fit the ladder's trees, with the settings that its validation search chose."""
    model = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=80,
        max_leaf_nodes=31,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    return model.fit(task.train.table, task.train.labels)


def main():
    predictions, runs = [], []

    def record(target, name, labels, seed, probabilities, seconds):
        predictions.append(probabilities.argmax(-1).astype(np.int8))
        run = dict(target=target, name=name, labels=labels, seed=seed, seconds=round(seconds, 1))
        runs.append(run)
        print(run, flush=True)

    for target in ("demand", "surprise"):
        full = citynb.load("i94", horizon=HORIZON, target=target)
        for seed in SEEDS:
            for task in (full, full.subset(FEW, seed)):
                labels, started = len(task.train), time.perf_counter()
                model = trees(task, seed)
                seconds = time.perf_counter() - started
                found = citynb.evaluate(model, task, split="test", resamples=2)
                record(target, "trees", labels, seed, found.probabilities, seconds)
                for name, build in NETWORKS.items():
                    if labels > FEW and name not in ALL_LABELS:
                        continue
                    if target == "surprise" and name not in SURPRISE:
                        continue
                    model, settings = build(task, seed)
                    run = citynb.fine_tune(
                        model, task, seed=seed, validate=False, progress=False, **settings
                    )
                    found = citynb.evaluate(model, task, split="test", resamples=2)
                    record(target, name, labels, seed, found.probabilities, run.seconds)

    meta = {
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "versions": {m.__name__: m.__version__ for m in (tf, keras, sklearn, np)},
        "runs": runs,
    }
    file = Path(__file__).with_name("predictions.npz")
    np.savez_compressed(file, predictions=np.stack(predictions), meta=json.dumps(meta, indent=1))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_name("SHA256SUMS").write_text(f"{digest}  {file.name}\n")


if __name__ == "__main__":
    main()
