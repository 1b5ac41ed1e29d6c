"""Measure the speeds that the book relies on, as ratios taken in one run.

    make bench                 everything; about 20 minutes on two cores
    python tools/bench.py hub cached step      only these

    hub      one training step through citynb.HubLayer, against the same weights in plain Keras
    cached   a frozen epoch on cached features, against the usual frozen epoch
    step     the share of the machine's matrix-multiplication peak that a fine-tuning step uses
    rows     each network row of *Where fine-tuning wins*: citynb.fine_tune against compile and fit
    make     seconds of `make book` and `make test`
    clone    seconds from a fresh clone to the first fine-tuned model

A ratio is the median over interleaved pairs, with its quartiles: the machine's mood changes
from second to second, but two neighbors share it.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import citynb  # noqa: E402

PIXELS, BATCH, CLASSES, PAIRS = 64, 16, 4, 15
FRESH_MODEL = """
import citynb
task = citynb.load("i94").subset(200)
body = citynb.backbone("efficientnet_lite0", image_size=64)
model = citynb.classifier(body, task.num_classes, input_shape=task.input_shape)
citynb.fine_tune(model, task, epochs=1, validate=False, progress=False)
"""


def seconds_of(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio_of(one, other, pairs=PAIRS):
    """Return the quartiles of seconds(one) / seconds(other) over interleaved pairs."""
    one(), other()  # trace and warm up
    ratios = [seconds_of(one) / seconds_of(other) for _ in range(pairs)]
    return np.percentile(ratios, (25, 50, 75))


def training_step(body):
    """Return a function that runs one SGD step of a classifier on this backbone."""
    model = citynb.classifier(body, CLASSES)
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    variables = model.trainable_variables
    optimizer.build(variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    pictures = tf.random.uniform((BATCH, PIXELS, PIXELS, 3), seed=0)
    labels = tf.constant(np.arange(BATCH) % CLASSES)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(pictures, training=True))
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return lambda: float(step())


def hub():
    from hub_server import save_reusable

    native = keras.applications.ResNet50V2(
        include_top=False, weights=None, input_shape=(PIXELS, PIXELS, 3), pooling="avg"
    )
    with tempfile.TemporaryDirectory() as folder:
        save_reusable(native, folder)
        images = keras.Input((PIXELS, PIXELS, 3))
        layer = citynb.HubLayer(folder, freeze_batch_norm=False)
        through_hub = keras.Model(images, layer(images), name="through_hub")
        # Both train every weight and move the statistics: the same arithmetic.
        low, middle, high = ratio_of(training_step(native), training_step(through_hub))
    print(f"hub: HubLayer trains at {middle:.2f} of the native speed ({low:.2f} to {high:.2f})")


def cached():
    task = citynb.load("i94").subset(400)
    keras.utils.set_random_seed(0)
    body = citynb.backbone("efficientnet_lite0", image_size=PIXELS)
    model = citynb.classifier(body, task.num_classes, input_shape=task.input_shape)
    citynb.freeze(body)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    head = model.get_layer("head")
    features = keras.Model(model.input, head.input).predict(task.train.inputs, verbose=0)
    on_features = keras.Model(head.inputs, head.outputs)
    on_features.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = task.train.labels
    low, middle, high = ratio_of(
        lambda: model.fit(task.train.inputs, labels, verbose=0),
        lambda: on_features.fit(features, labels, verbose=0),
        pairs=5,
    )
    print(
        f"cached: a frozen epoch is {middle:.0f} times faster on features ({low:.0f} to {high:.0f})"
    )


def step():
    body = keras.applications.ResNet50V2(
        include_top=False, weights=None, input_shape=(PIXELS, PIXELS, 3), pooling="avg"
    )
    forward = 0
    for layer in body.layers:
        if isinstance(layer, keras.layers.Conv2D):
            forward += 2 * layer.count_params() * np.prod(layer.output.shape[1:3])
    work = 3 * forward * BATCH  # forward, gradient of the inputs, gradient of the weights
    side = 2048
    matrix = tf.random.uniform((side, side), seed=0)
    multiply = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    train, peak = training_step(body), lambda: float(multiply())
    low, middle, high = ratio_of(train, peak)
    share = [work / (2 * side**3) / ratio for ratio in (high, middle, low)]
    print(
        f"step: a ResNet-50 step at {PIXELS} px runs at {share[1]:.0%} of the matmul peak "
        f"({share[0]:.0%} to {share[2]:.0%})"
    )


def rows():
    """Train 100 frames by fine_tune and by plain Keras: the same pictures, steps and optimizer."""
    task = citynb.load("cameras").subset(100)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings = dict(batch_size=BATCH, schedule="constant", validate=False, progress=False)
    for name, backbone, weights, epochs in (
        ("from scratch", "city_resnet", None, 4),
        ("ImageNet, frozen", "efficientnet_lite0", "pretrained", 0),
        ("ImageNet, fine-tuned", "efficientnet_lite0", "pretrained", 4),
        ("city_resnet, frozen", "city_resnet", "pretrained", 0),
        ("city_resnet, fine-tuned", "city_resnet", "pretrained", 4),
    ):

        def classifier(backbone=backbone, weights=weights):
            body = citynb.backbone(backbone, image_size=task.input_shape[:2], weights=weights)
            return citynb.classifier(body, task.num_classes)

        def ours(epochs=epochs, weights=weights):
            batch_norm = "frozen" if weights else "train"
            head_epochs = 0 if epochs else 20
            citynb.fine_tune(
                classifier(), task, head_epochs=head_epochs, epochs=epochs, batch_norm=batch_norm,
                **settings,
            )  # fmt: skip

        def plain(epochs=epochs, weights=weights):
            model = classifier()
            if not epochs:
                citynb.freeze(model.layers[-2])
            elif weights:
                citynb.freeze(model.layers[-2], batch_norm_only=True)
            model.compile(keras.optimizers.AdamW(1e-4), loss)
            model.fit(
                task.train.inputs,
                task.train.labels,
                batch_size=BATCH,
                epochs=epochs or 20,
                verbose=0,
            )

        low, middle, high = ratio_of(plain, ours, pairs=3)
        took = seconds_of(ours)
        print(
            f"rows: {name}: {took:.1f} s, {len(task.train) * (epochs or 20) / took:.0f} pictures a "
            f"second; fine_tune is {middle:.2f} times as fast as fit ({low:.2f} to {high:.2f})"
        )


def make():
    for target in ("book", "test"):
        run = seconds_of(lambda: subprocess.run(["make", "-s", target], cwd=ROOT, check=True))  # noqa: B023
        print(f"make: `make {target}` took {run:.0f} s after setup")


def clone():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "book"

        def run(*command):
            subprocess.run(command, cwd=path if path.exists() else folder, check=True)

        started = time.perf_counter()
        run("git", "clone", "--quiet", str(ROOT), str(path))
        run("make", "-s", "setup")
        ready = time.perf_counter()
        run(str(path / ".venv/bin/python"), "-W", "ignore", "-c", FRESH_MODEL)
        done = time.perf_counter()
    print(
        f"clone: {done - started:.0f} s to the first fine-tuned model, {ready - started:.0f} s of it setup"
    )


BENCHMARKS = {work.__name__: work for work in (hub, cached, step, rows, make, clone)}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(BENCHMARKS)
    unknown = set(chosen) - BENCHMARKS.keys()
    if unknown:
        sys.exit(f"There is no benchmark {sorted(unknown)}; choose from {', '.join(BENCHMARKS)}.")
    for name in chosen:
        BENCHMARKS[name]()
