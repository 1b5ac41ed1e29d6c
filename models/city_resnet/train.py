"""Pretrain `city_resnet` on the simulated source cities of `simulation` and export it.

    python -m simulation simulate --out WORK               # needs SUMO, see `simulation`
    python -m models.city_resnet.train pretrain --days WORK
    python -m models.city_resnet.train convert             # weights.npz from saved_model/ again

Run from the root of the repository. `pretrain` writes the same weights in two forms: `saved_model/`
(a TF2 reusable SavedModel in the form TensorFlow Hub serves a feature vector) and `weights.npz` for
the Keras model `citynb.networks.city_resnet.network`. Beside them come `level_head.npz` (the linear
head of the pretraining for the level ahead), `results.json` and `SHA256SUMS`. Helsinki is never
trained on: its validation split is only read to score the finished network in an unseen city. Needs
TensorFlow and scikit-learn, not SUMO.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from citynb.networks.city_resnet import L2, network
from simulation.cities import SOURCES, SPLITS
from simulation.labels import LABELS, LEVELS, city_arrays, column, joined
from simulation.publishing import held_out_days, training_days
from tools.publishing import write_sums

HERE = Path(__file__).resolve().parent
JUNCTIONS = HERE.parents[1] / "data" / "junctions"
BATCH, PEAK_RATE, SEED = 64, 2e-3, 0


# ------------------------------------------------------------------ the network
def with_heads(body):
    """The network with the heads of the pretraining: numbers, levels and counts per cell."""
    features, cells = body.output
    outputs = {
        "numbers": layers.Dense(7, name="numbers")(features),
        "cells": layers.Conv2D(
            3,
            1,
            activation="softplus",
            bias_initializer=keras.initializers.Constant(-3.0),
            name="cells",
        )(cells),
    }
    for label in LABELS:
        outputs[label] = layers.Dense(len(LEVELS), name=label)(features)
    return keras.Model(body.input, outputs)


# ------------------------------------------------------------------ data
def source_frames(work, days_of):
    """Return `city_arrays` of all source cities, joined, with the name of the `city` (n,).

    `work` is the folder of the simulated days, `days_of` a function from a city to its days.
    """
    parts = []
    for city in SOURCES:
        part = city_arrays(city, days_of(city), work)
        parts.append(part | {"city": np.full(len(part["day"]), city.name)})
    return joined(parts)


def numbers(data):
    """Return seven dense targets (n, 7): log counts of cars, buses, trucks and halting vehicles,
    speed in 5 m/s, and the root of the density now and ahead."""
    table = data["table"]
    counted = ("cars", "buses", "trucks", "halting")
    return np.stack(
        [
            *(np.log1p(column(table, name)) for name in counted),
            column(table, "mean_speed") / 5,
            np.sqrt(data["density_now"]),
            np.sqrt(data["density_ahead"]),
        ],
        axis=1,
    )


def turned(x, turn):
    """Return one of eight symmetries of squares (b, h, w, c): from above, nothing is up."""
    x = np.rot90(x, turn % 4, axes=(1, 2))
    return x[:, :, ::-1] if turn >= 4 else x


# ------------------------------------------------------------------ pretraining
def rate(step, steps):
    """Return the learning rate: a short rise, constant for three quarters, then a line to zero."""
    return PEAK_RATE * min((step + 1) / 100, 1.0, (steps - step) / (steps - int(0.75 * steps)))


def pretrain(train, steps, minutes=None, report=100, snapshot=None):
    """Train for `steps` steps.

    With `minutes` the number of steps is set on the way, so that the run ends after about that
    time; the same number given as `steps` then repeats the run. `snapshot` is called with the
    network, without and with heads, every 300 steps.

    Returns:
        (network, network with heads, mean and spread (7,) of the targets `numbers`, steps made)
    """
    keras.utils.set_random_seed(SEED)
    body = network()
    model = with_heads(body)
    target = numbers(train)
    center, scale = target.mean(0), target.std(0)
    target = ((target - center) / scale).astype(np.float32)
    optimizer = keras.optimizers.Adam(PEAK_RATE)
    optimizer.build(model.trainable_variables)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(reduce_retracing=True)
    def step(images, number, cell, *levels):
        with tf.GradientTape() as tape:
            out = model(tf.cast(images, tf.float32) / 255.0, training=True)
            loss_numbers = keras.losses.Huber()(number, out["numbers"])
            # Counts per cell: Poisson likelihood, summed over the picture's vehicles.
            expected = out["cells"] + 1e-4
            loss_cells = (
                tf.reduce_mean(
                    tf.reduce_sum(expected - cell * tf.math.log(expected), axis=(1, 2, 3))
                )
                / 30.0
            )
            loss_levels = (
                tf.add_n([crossentropy(y, out[name]) for name, y in zip(LABELS, levels)]) / 3.0
            )
            loss = 2.0 * loss_numbers + loss_cells + loss_levels + tf.add_n(model.losses)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        )
        return loss_numbers, loss_cells, loss_levels

    rng = np.random.default_rng(SEED)
    order = np.empty(0, int)
    began, running = time.time(), []
    s, wait = 0, minutes is not None
    while s < steps:
        if wait and time.time() - began > 0.75 * 60 * minutes:
            steps, wait = int(s / 0.75) + 1, False
        optimizer.learning_rate.assign(rate(s, steps))
        if len(order) < BATCH:
            order = rng.permutation(len(target))
        batch, order = np.sort(order[:BATCH]), order[BATCH:]
        images = train["frames"][batch].copy()
        cell = np.concatenate(
            [
                train["cells_now"][batch].astype(np.float32),
                train["cells_ahead"][batch][..., None].astype(np.float32),
            ],
            axis=-1,
        )
        for start in range(0, BATCH, 8):
            turn, part = int(rng.integers(8)), slice(start, start + 8)
            images[part], cell[part] = turned(images[part], turn), turned(cell[part], turn)
        running.append(
            [
                float(v)
                for v in step(
                    tf.constant(images),
                    tf.constant(target[batch]),
                    tf.constant(cell),
                    *(tf.constant(train[name][batch].astype(np.int32)) for name in LABELS),
                )
            ]
        )
        s += 1
        if snapshot and s % 300 == 0:
            snapshot(body, model)
        if s % report == 0:
            a, b, c = np.mean(running, axis=0)
            running = []
            print(
                f"step {s}/{steps}  numbers {a:.3f}  cells {b:.3f}  levels {c:.3f}  "
                f"{s * BATCH / (time.time() - began):.0f} images/s",
                flush=True,
            )
    return body, model, center, scale, steps


def predict(model, frames, batch=256):
    """Return the outputs of the network with heads for frames (n, h, w, 3) uint8, by name."""
    parts = [
        model(tf.cast(frames[i : i + batch], tf.float32) / 255.0, training=False)
        for i in range(0, len(frames), batch)
    ]
    return {k: np.concatenate([p[k].numpy() for p in parts]) for k in parts[0]}


# ------------------------------------------------------------------ export
class FeatureVector(tf.__internal__.tracking.AutoTrackable):
    """What TensorFlow Hub calls a reusable TF2 SavedModel with a feature vector."""

    def __init__(self, features):
        super().__init__()
        self.variables = [v.value for v in features.variables]
        self.trainable_variables = [v.value for v in features.trainable_variables]
        self.regularization_losses = [
            l2_penalty(v.value) for v in features.trainable_variables if v.path.endswith("kernel")
        ]
        self.__dict__["_features"] = features  # not tracked: only the variables are saved
        for training in (False, True):
            self.__call__.get_concrete_function(
                tf.TensorSpec((None, None, None, 3), tf.float32, name="inputs"), training
            )

    @tf.function
    def __call__(self, inputs, training=False):
        return self._features(inputs, training=training)


def l2_penalty(variable):
    """Return the function of no arguments that the form asks for."""

    @tf.function(input_signature=[])
    def penalty():
        return L2 * tf.reduce_sum(tf.square(variable))

    return penalty


def features_of(body):
    """Return the network without its map of cells: the part that is shipped."""
    return keras.Model(body.input, body.get_layer("features").output)


def export(body, folder):
    """Write `saved_model/` (replaced as a whole) and `weights.npz` to `folder`."""
    features = features_of(body)
    target = folder / "saved_model"
    if target.exists():
        shutil.rmtree(target)
    tf.saved_model.save(FeatureVector(features), str(target))
    write_weights(features, folder / "weights.npz")


def write_weights(model, path):
    """Write the variables of a Keras model as plain arrays, named "000 stem/kernel" and so on."""
    arrays = {f"{i:03d} {v.path}": v.numpy() for i, v in enumerate(model.variables)}
    np.savez(path, **arrays)


def convert(folder):
    """Write `weights.npz` of the network in `saved_model/`, without training.

    Raises:
        ValueError: the variables are those of another network, or the two forms disagree.
    """
    served = tf.saved_model.load(str(folder / "saved_model"))
    features = features_of(network())
    features.set_weights([v.numpy() for v in served.variables])
    with np.load(JUNCTIONS / "source_sample.npz") as sample:
        frames = tf.cast(sample["frames"][:32], tf.float32) / 255.0
    apart = float(tf.reduce_max(tf.abs(features(frames, training=False) - served(frames))))
    if apart > 1e-4:
        raise ValueError(
            f"The two forms differ by {apart:.2g}: is the order of variables the same?"
        )
    write_weights(features, folder / "weights.npz")
    print(f"weights.npz: the features of 32 pictures differ by {apart:.2g} at most")


def main():
    parser = argparse.ArgumentParser(
        prog="python -m models.city_resnet.train", description=__doc__.splitlines()[0]
    )
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("convert", help="write weights.npz from saved_model/")
    sub = steps.add_parser("pretrain")
    sub.add_argument("--days", type=Path, required=True, help="folder of the simulated days")
    sub.add_argument("--steps", type=int, default=4000)
    sub.add_argument("--minutes", type=float, help="end after about this time instead")
    sub.add_argument("--threads", type=int, default=2)
    for each in steps.choices.values():
        each.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    if args.step == "convert":
        convert(args.out)
    else:
        tf.config.threading.set_intra_op_parallelism_threads(args.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        pretrain_and_score(args)
    write_sums(args.out)


def pretrain_and_score(args):
    """Pretrain, export, and write results.json."""
    train = source_frames(args.days, training_days)
    print(f"{len(train['frames'])} frames of {len(SOURCES)} cities", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)

    def save(body, model):
        export(body, args.out)
        kernel, bias = model.get_layer("level_ahead").get_weights()
        np.savez(args.out / "level_head.npz", kernel=kernel, bias=bias)

    began = time.time()
    body, model, center, scale, steps = pretrain(
        train, 10**9 if args.minutes else args.steps, args.minutes, snapshot=save
    )
    seconds = time.time() - began
    save(body, model)
    model.save_weights(args.days / "pretrained.weights.h5")
    made = {
        "steps": steps,
        "images_seen": steps * BATCH,
        "training_frames": len(train["frames"]),
        "seconds": round(seconds),
        "parameters": int(sum(np.prod(v.shape) for v in model.trainable_variables)),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "scores": scores(train, args.days, model, center[0], scale[0]),
    }
    (args.out / "results.json").write_text(json.dumps(made, indent=1) + "\n")


def scores(train, work, model, center, scale):
    """Score the network and its rivals; `center` and `scale` are those of the log car count."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    read = ("frames", "table", *LABELS)
    with np.load(JUNCTIONS / "helsinki.npz") as stored:
        rows = stored["split"] == list(SPLITS).index("validation")
        unseen = {name: stored[name][rows] for name in read}
    with np.load(JUNCTIONS / "source_sample.npz") as stored:
        sample = {name: stored[name] for name in read}
    places = {
        "source cities, held-out days": source_frames(work, held_out_days),
        "Helsinki validation, an unseen city": unseen,
        "shipped sample": sample,
    }
    trees = {
        name: HistGradientBoostingClassifier(max_iter=200, learning_rate=0.05, random_state=0).fit(
            train["table"], train[name]
        )
        for name in LABELS
    }
    found = {}
    for place, data in places.items():
        predicted = predict(model, data["frames"])
        for name in LABELS:
            truth, majority = data[name], np.bincount(train[name]).argmax()
            row = {
                "network": np.mean(predicted[name].argmax(1) == truth),
                "trees": trees[name].score(data["table"], truth),
                "repeat the present": np.mean(data["level_now"] == truth),
                "majority": np.mean(truth == majority),
            }
            found[f"{place} / {name}"] = {"n": len(truth)} | {
                rival: round(float(share), 4) for rival, share in row.items()
            }
            print(f"{place:38s} {name:12s} {found[f'{place} / {name}']}", flush=True)
        for city in SOURCES if "city" in data else ():
            rows = data["city"] == city.name
            right = predicted["level_ahead"][rows].argmax(1) == data["level_ahead"][rows]
            found[f"{city.name}, held-out days / level_ahead"] = {
                "n": int(rows.sum()),
                "network": round(float(right.mean()), 4),
            }
        cars = column(data["table"], "cars")
        away = np.abs(np.expm1(predicted["numbers"][:, 0] * scale + center) - cars)
        found[f"{place} / mean error of the car count"] = round(float(away.mean()), 3)
        found[f"{place} / mean car count"] = round(float(cars.mean()), 3)
    return found


if __name__ == "__main__":
    main()
