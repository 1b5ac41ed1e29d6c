"""Measure the speeds and the memory that the book relies on, as ratios taken in one run.

    make bench                            everything; about half an hour on two idle cores
    python -m tools bench hub step        only these

    hub      one training step through citynb.HubLayer, against the same weights in plain Keras
    cached   a frozen epoch on cached features, against the usual frozen epoch
    step     the share of the machine's matrix-multiplication peak that a fine-tuning step uses
    rows     pictures a second of citynb.fine_tune, against plain compile and fit
    folder   CityTask.from_folder on 20,000 pictures of 224 pixels: seconds, and the memory of
             frozen features and 100 steps of the body above that on 1,000

A ratio is the median over interleaved pairs, with its quartiles: the machine's mood changes
from second to second, but two neighbors share it.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image

import citynb
from citynb.networks.small import small_network
from tests.package.hub_server import save_reusable

PIXELS, BATCH, CLASSES, PAIRS = 64, 16, 4, 15


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


def resnet50():
    return citynb.backbone("resnet50v2", image_size=PIXELS, weights=None)


def hub():
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
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    head = model.get_layer("head")
    features = keras.Model(model.input, head.input).predict(task.train.inputs, verbose=0)
    on_features = keras.Model(head.inputs, head.outputs)
    on_features.compile("adam", loss)
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
    body = resnet50()
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
    """The same pictures, steps and optimizer, by fine_tune and by plain Keras without XLA.

    Both train all weights but BatchNorm. An epoch is the difference between two lengths of
    training, so that the tracing of either does not count.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for name, body, shape, examples, epochs in (
        ("small network", lambda: small_network((7, 24, 3)), (7, 24, 3), 3200, (2, 12)),
        (
            "EfficientNet-Lite0",
            lambda: citynb.backbone("efficientnet_lite0", image_size=PIXELS),
            (PIXELS, PIXELS, 3),
            256,
            (1, 4),
        ),
        ("ResNet-50", resnet50, (PIXELS, PIXELS, 3), 160, (1, 4)),
    ):
        rng = np.random.default_rng(0)
        parts = [
            citynb.Split(
                rng.random((n, *shape), np.float32),
                np.arange(n) % CLASSES,
                first + np.arange(n),
                pd.DataFrame({"none": np.zeros(n)}),
            )
            for first, n in ((0, examples), (10_000, CLASSES), (20_000, CLASSES))
        ]
        task = citynb.CityTask("noise", *parts, tuple("abcd"), "chance")
        models = [citynb.classifier(body(), CLASSES) for _ in range(2)]
        for model in models:
            citynb.freeze(model.layers[-2], batch_norm_only=True)

        def ours(epochs, model=models[0], task=task):
            citynb.fine_tune(
                model, task, head_epochs=0, epochs=epochs, batch_size=BATCH, schedule="constant",
                validate=False, progress=False,
            )  # fmt: skip

        def plain(epochs, model=models[1], task=task):
            optimizer = keras.optimizers.AdamW(1e-4, weight_decay=1e-4)
            model.compile(optimizer, loss, jit_compile=False)
            inputs, labels = task.train.inputs, task.train.labels
            model.fit(inputs, labels, batch_size=BATCH, epochs=epochs, verbose=0)

        def epoch(work, lengths=epochs):
            few, many = (seconds_of(lambda n=n: work(n)) for n in lengths)
            return (many - few) / (lengths[1] - lengths[0])

        took = np.array([(epoch(plain), epoch(ours)) for _ in range(5)])
        low, middle, high = np.percentile(took[:, 0] / took[:, 1], (25, 50, 75))
        print(
            f"rows: {name}: {examples / np.median(took[:, 1]):.0f} pictures a second, "
            f"{middle:.2f} times those of compile and fit ({low:.2f} to {high:.2f})",
            flush=True,
        )


def folder():
    """Measured in processes of their own: a peak of memory cannot be taken back."""
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for pictures in (1_000, 20_000):
            root = Path(place) / str(pictures)
            write_pictures(root, pictures)
            code = f"from tools.bench import train_on; train_on({str(root)!r})"
            child = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code], check=True, stdout=subprocess.PIPE
            )
            found[pictures] = json.loads(child.stdout.splitlines()[-1])
            print(f"folder: {pictures:,} pictures: {found[pictures]}", flush=True)
    more = found[20_000]["peak_gb"] - found[1_000]["peak_gb"]
    print(f"folder: {more:.2f} GB more for 20,000 pictures than for 1,000")


def train_on(root):
    """Read a folder, compute frozen features, take 100 steps of the body; print what it took."""
    seconds = time.perf_counter()
    task = citynb.CityTask.from_folder(root, image_size=224)
    seconds = time.perf_counter() - seconds
    body = citynb.backbone("efficientnet_lite0", image_size=224)
    model = citynb.classifier(body, task.num_classes)
    citynb.fine_tune(model, task, head_epochs=1, epochs=0, progress=False)
    few = task.subset(800)  # 100 steps of 8
    citynb.fine_tune(
        model, few, head_epochs=0, epochs=1, batch_size=8, validate=False, progress=False
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"from_folder_s": round(seconds, 1), "peak_gb": round(peak, 2)}))


def write_pictures(root, pictures, distinct=200):
    """Write JPEG pictures of 256 x 240 in four classes, `distinct` drawings, no two files alike."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(distinct):
        blocks = Image.fromarray(rng.integers(0, 255, (28, 28, 3), np.uint8)).resize((256, 240))
        noisy = np.asarray(blocks).astype(int) + rng.integers(-12, 12, (240, 256, 3))
        stream = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
        drawn.append(stream.getvalue())
    for i in range(pictures):
        file = root / f"class{i % CLASSES}" / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        drawing, note = drawn[i % distinct], f"{i:08d}".encode()  # a comment makes the bytes differ
        comment = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note
        file.write_bytes(drawing[:2] + comment + drawing[2:])


BENCHMARKS = {work.__name__: work for work in (hub, cached, step, rows, folder)}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(BENCHMARKS)
    unknown = set(chosen) - BENCHMARKS.keys()
    if unknown:
        sys.exit(f"There is no benchmark {sorted(unknown)}; choose from {', '.join(BENCHMARKS)}.")
    for name in chosen:
        BENCHMARKS[name]()
