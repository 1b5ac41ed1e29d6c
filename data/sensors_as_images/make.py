"""The long comparison behind the page *Sensors as images*: every row, three seeds.

    python data/sensors_as_images/make.py            the runs that are missing
    python data/sensors_as_images/make.py --again "trees"    these anew, and what is missing

Writes predictions.npz beside it, after each run: the test predictions of every run, and a
JSON text with seeds, seconds, versions and the checksum of this script. Hyperparameters
were chosen on validation. Takes about an hour on two cores.
"""

import hashlib
import json
import sys
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
    epochs = 64_000 // len(task.train)  # a thousand steps, with few labels and with many
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
    file = Path(__file__).with_name("predictions.npz")
    done = {}
    if file.exists():
        with np.load(file, allow_pickle=False) as stored:
            runs = json.loads(str(stored["meta"]))["runs"]
            done = {row_of(run): (run, p) for run, p in zip(runs, stored["predictions"])}
    again = set(sys.argv[2:]) if sys.argv[1:2] == ["--again"] else set()
    done = {row: kept for row, kept in done.items() if row[1] not in again}

    for target in ("demand", "surprise"):
        full = citynb.load("i94", horizon=HORIZON, target=target)
        for seed in SEEDS:
            for task in (full, full.subset(FEW, seed)):
                names = ["trees"]
                for name in NETWORKS:
                    on_labels = len(task.train) == FEW or name in ALL_LABELS
                    on_target = target == "demand" or name in SURPRISE
                    names += [name] * (on_labels and on_target)
                for name in names:
                    run = dict(target=target, name=name, labels=len(task.train), seed=seed)
                    if row_of(run) not in done:
                        done[row_of(run)] = train_and_predict(task, run)
                        write(file, done)
                        print(run, flush=True)
    write(file, done)


def row_of(run):
    return run["target"], run["name"], run["labels"], run["seed"]


def train_and_predict(task, run):
    """Train one row. Return the run with its seconds, and the test predictions."""
    started = time.perf_counter()
    if run["name"] == "trees":
        model = trees(task, run["seed"])
    else:
        model, settings = NETWORKS[run["name"]](task, run["seed"])
        settings |= dict(seed=run["seed"], validate=False, progress=False)
        citynb.fine_tune(model, task, **settings)
    run["seconds"] = round(time.perf_counter() - started, 1)
    found = citynb.evaluate(model, task, split="test", resamples=2)
    return run, found.probabilities.argmax(-1).astype(np.int8)


def write(file, done):
    meta = {
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "versions": {m.__name__: m.__version__ for m in (tf, keras, sklearn, np)},
        "runs": [run for run, _ in done.values()],
    }
    predictions = np.stack([predicted for _, predicted in done.values()])
    unfinished = file.with_suffix(".part.npz")
    np.savez_compressed(unfinished, predictions=predictions, meta=json.dumps(meta, indent=1))
    unfinished.replace(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_name("SHA256SUMS").write_text(f"{digest}  {file.name}\n")


if __name__ == "__main__":
    main()
