"""Pretrain `city_resnet` on the simulated source cities of `data/cameras` and export it.

    python make.py --days WORK    # WORK: the folder written by data/cameras/make.py simulate

Writes `saved_model/` (a TF2 reusable SavedModel in the form TensorFlow Hub serves a feature
vector), `level_head.npz` (the linear head of the pretraining for the level ahead) and
`results.json`. Helsinki is never trained on: its validation split is only read to score the
finished network in an unseen city. Needs TensorFlow and scikit-learn, not SUMO.
"""

import argparse
import importlib.util
import json
import os
import shutil
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

HERE = Path(__file__).resolve().parent
WIDTH, BLOCKS = 24, (1, 2, 2, 1)
L2 = 2e-5
BATCH, PEAK_RATE, SEED = 64, 2e-3, 0
LABELS = ("level_ahead", "level_now", "level_5min")

_spec = importlib.util.spec_from_file_location("cameras_make", HERE.parent / "cameras" / "make.py")
cameras = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cameras)


# ------------------------------------------------------------------ the network
def network(width=WIDTH, blocks=BLOCKS):
    """A small ResNet v2 (pre-activation, He et al. 2016), fully convolutional.

    Input (b, height, width, 3) in [0, 1]. Outputs: the feature vector (b, 10.67 * width = 256 at
    width 24) and the map of 12 x 12 cells (for 96 pixels) from which the vehicles are counted.
    """

    def conv(x, filters, size, strides=1, **kw):
        return layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(L2),
            **kw,
        )(x)

    def activate(x):
        return layers.Activation("relu")(layers.BatchNormalization(momentum=0.98, epsilon=1e-5)(x))

    inputs = keras.Input((None, None, 3))
    # Each picture is brought to zero mean and unit contrast: night and fog are low in contrast.
    mean = ops.mean(inputs, axis=(1, 2, 3), keepdims=True)
    spread = ops.sqrt(ops.mean(ops.square(inputs - mean), axis=(1, 2, 3), keepdims=True))
    x = conv((inputs - mean) / (spread + 0.05), width, 5, strides=2)
    filters = (width, 2 * width, 4 * width, 20 * width // 3)
    for stage, (f, n) in enumerate(zip(filters, blocks)):
        if stage == 3:
            cells = activate(x)  # stride 8: one value for 8 m of road
        for block in range(n):
            strides = 2 if block == 0 and stage else 1
            y = activate(x)
            short = conv(y, f, 1, strides=strides) if strides == 2 or x.shape[-1] != f else x
            y = conv(y, f, 3, strides=strides)
            x = layers.Add()([short, conv(activate(y), f, 3)])
    # Averages at two scales: the finer one keeps the number of vehicles, which the coarser one blurs.
    features = layers.Concatenate(name="features")(
        [layers.GlobalAveragePooling2D()(cells), layers.GlobalAveragePooling2D()(activate(x))]
    )
    return keras.Model(inputs, [features, cells], name="city_resnet")


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
        outputs[label] = layers.Dense(4, name=label)(features)
    return keras.Model(body.input, outputs)


# ------------------------------------------------------------------ data
def load(days, cities, which, frames=True):
    """Arrays of several cities, joined: frames, the three labels, numbers, cells, table, city."""
    parts = []
    for city in cities:
        n = cameras.CITIES[city]["days"]
        chosen = range(n - cameras.HELD_OUT) if which == "train" else range(n)[-cameras.HELD_OUT :]
        part = cameras.city_arrays(city, chosen, days, skip=() if frames else ("frames",))
        parts.append(dict(part, city=np.full(len(part["day"]), city)))
    return {k: np.concatenate([p.pop(k) for p in parts]) for k in list(parts[0])}


def numbers(data):
    """Seven dense targets (n, 7): log counts of cars, buses, trucks, halting; speed; root of density now and ahead."""
    t = data["table"]
    return np.stack(
        [
            *np.log1p(t[:, [0, 1, 2, 4]]).T,
            t[:, 3] / 5,
            np.sqrt(data["density_now"]),
            np.sqrt(data["density_ahead"]),
        ],
        axis=1,
    )


def turned(x, turn):
    """One of the eight symmetries of the square: a street has no up and no left when seen from above."""
    x = np.rot90(x, turn % 4, axes=(1, 2))
    return x[:, :, ::-1] if turn >= 4 else x


# ------------------------------------------------------------------ pretraining
def rate(step, steps):
    """Learning rate: a short rise, constant for three quarters of the steps, then a straight line to zero."""
    return PEAK_RATE * min((step + 1) / 100, 1.0, (steps - step) / (steps - int(0.75 * steps)))


def pretrain(train, steps, minutes=None, report=100, snapshot=None):
    """Train for `steps` steps; returns the network, its heads, the scale of the targets and the steps made.

    With `minutes` the number of steps is set on the way, so that the run ends after about that
    time; the same number given as `steps` then repeats the run. `snapshot` is called every 300 steps.
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
                f"step {s}/{steps}  numbers {a:.3f}  cells {b:.3f}  levels {c:.3f}  {s * BATCH / (time.time() - began):.0f} images/s",
                flush=True,
            )
    return body, model, center, scale, steps


def predict(model, frames, batch=256):
    parts = [
        model(tf.cast(frames[i : i + batch], tf.float32) / 255.0, training=False)
        for i in range(0, len(frames), batch)
    ]
    return {k: np.concatenate([p[k].numpy() for p in parts]) for k in parts[0]}


# ------------------------------------------------------------------ export
class FeatureVector(tf.__internal__.tracking.AutoTrackable):
    """What TensorFlow Hub calls a reusable TF2 SavedModel with a feature vector."""

    def __init__(self, body):
        super().__init__()
        features = keras.Model(body.input, body.get_layer("features").output)
        self.variables = [v.value for v in features.variables if "seed_generator" not in v.path]
        self.trainable_variables = [v.value for v in features.trainable_variables]
        self.regularization_losses = [
            self._penalty(v.value)
            for v in features.trainable_variables
            if v.path.endswith("kernel")
        ]
        self.__dict__["_features"] = features  # not tracked: only the variables are saved
        for training in (False, True):
            self.__call__.get_concrete_function(
                tf.TensorSpec((None, None, None, 3), tf.float32, name="inputs"), training
            )

    @tf.function
    def __call__(self, inputs, training=False):
        return self._features(inputs, training=training)

    @staticmethod
    def _penalty(variable):
        @tf.function(input_signature=[])
        def penalty():
            return L2 * tf.reduce_sum(tf.square(variable))

        return penalty


def export(body, folder):
    """Write the SavedModel to `folder` (replaced as a whole)."""
    if folder.exists():
        shutil.rmtree(folder)
    tf.saved_model.save(FeatureVector(body), str(folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument(
        "--minutes", type=float, help="end after about this time instead of after --steps"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    began = time.time()
    train = load(args.days, cameras.SOURCES, "train")
    print(
        f"{len(train['frames'])} frames of {len(cameras.SOURCES)} cities, read in {time.time() - began:.0f} s",
        flush=True,
    )
    began = time.time()
    args.out.mkdir(parents=True, exist_ok=True)

    def save(body, model):
        export(body, args.out / "saved_model")
        kernel, bias = model.get_layer("level_ahead").get_weights()
        np.savez(args.out / "level_head.npz", kernel=kernel, bias=bias)

    body, model, center, scale, args.steps = pretrain(
        train, 10**9 if args.minutes else args.steps, args.minutes, snapshot=save
    )
    seconds = time.time() - began
    save(body, model)
    model.save_weights(args.days / "pretrained.weights.h5")
    results(args, train, model, center, scale, seconds)


def results(args, train, model, center, scale, seconds):
    """Score the finished network and the trees; write results.json."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    with np.load(HERE.parent / "cameras" / "helsinki.npz") as z:
        use = z["split"] == 1
        unseen = {k: z[k][use] for k in ("frames", "table", *LABELS)}
    with np.load(HERE.parent / "cameras" / "source_sample.npz") as z:
        sample = {k: z[k] for k in ("frames", "table", *LABELS)}
    held_out = load(args.days, cameras.SOURCES, "held out")
    out = {
        "steps": args.steps,
        "images_seen": args.steps * BATCH,
        "training_frames": len(train["frames"]),
        "seconds": round(seconds),
        "parameters": int(sum(np.prod(v.shape) for v in model.trainable_variables)),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "scores": {},
    }
    trees = {
        name: HistGradientBoostingClassifier(max_iter=200, learning_rate=0.05, random_state=0).fit(
            train["table"], train[name]
        )
        for name in LABELS
    }
    for where, data in (
        ("source cities, held-out days", held_out),
        ("Helsinki validation, an unseen city", unseen),
        ("shipped sample", sample),
    ):
        p = predict(model, data["frames"])
        for name in LABELS:
            row = {
                "n": len(data[name]),
                "network": float(np.mean(p[name].argmax(1) == data[name])),
                "trees": float(trees[name].score(data["table"], data[name])),
                "repeat the present": float(np.mean(data["level_now"] == data[name])),
                "majority": float(np.mean(data[name] == np.bincount(train[name]).argmax())),
            }
            out["scores"][f"{where} / {name}"] = {k: round(v, 4) for k, v in row.items()}
            print(f"{where:38s} {name:12s} {out['scores'][f'{where} / {name}']}", flush=True)
        if where.startswith("source"):
            for city in cameras.SOURCES:
                row = data["city"] == city
                out["scores"][f"{city}, held-out days / level_ahead"] = {
                    "n": int(row.sum()),
                    "network": round(
                        float(np.mean(p["level_ahead"][row].argmax(1) == data["level_ahead"][row])),
                        4,
                    ),
                }
        counted = np.expm1(p["numbers"][:, 0] * scale[0] + center[0])
        out["scores"][f"{where} / mean error of the car count"] = round(
            float(np.abs(counted - data["table"][:, 0]).mean()), 3
        )
        out["scores"][f"{where} / mean car count"] = round(float(data["table"][:, 0].mean()), 3)
    (args.out / "results.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
