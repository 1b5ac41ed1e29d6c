"""The long comparison behind the page *Where fine-tuning wins*: how many labels does a city need?

    python data/labels_needed/make.py search              choose the settings, on validation
    python data/labels_needed/make.py run --seeds 0 1     the rows of these seeds that are missing
    python data/labels_needed/make.py collect             what is missing, then predictions.npz

Each training is kept in a file of its own under `.cache/labels_needed`, so that the script can be
stopped, started again, and run side by side for other seeds. A search reads validation only; the
test split is read by `run`, with the settings that the search chose. On one core, a seed takes
about half an hour.
"""

import argparse
import hashlib
import itertools
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import sklearn
import tensorflow as tf
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import citynb
from citynb.data import data_folder

HERE = Path(__file__).resolve().parent
RUNS = HERE.parents[1] / ".cache" / "labels_needed"  # one file for each training, not shipped
PIXELS = 96
ALL = "all"
TABLES = ("trees on the detector table", "logistic regression on the detector table")
TREES, LOGISTIC = TABLES
# Labels of the target city, and how often a network sees each: fewer labels, more passes.
EPOCHS = {25: 30, 50: 25, 100: 20, 300: 12, 1000: 6, ALL: 4}
BATCH = 16
SEEDS = range(5)  # trainings of each row
SCRATCH_PASSES = 2  # a network that starts from nothing sees each picture twice as often
# Is that enough with all labels? One more row there, with the settings of "from scratch".
LONGER, LONGER_SEEDS = "from scratch, three times as long", range(3)

# Chosen by `search`: macro-F1 on validation with SEARCH_LABELS labels, seeds SEARCH_SEEDS.
SEARCH_LABELS, SEARCH_SEEDS = 100, (100, 101)
SEARCH = {
    "from scratch": [dict(learning_rate=rate) for rate in (3e-4, 1e-3, 3e-3, 1e-2)],
    "ImageNet, frozen": [dict(head_learning_rate=rate) for rate in (1e-3, 3e-3, 1e-2, 3e-2)],
    "ImageNet, fine-tuned": [dict(learning_rate=rate) for rate in (1e-4, 3e-4, 1e-3, 3e-3)],
    "city_resnet, frozen": [dict(head_learning_rate=rate) for rate in (1e-3, 3e-3, 1e-2, 3e-2)],
    "city_resnet, fine-tuned": [dict(learning_rate=rate) for rate in (1e-4, 3e-4, 1e-3, 3e-3)],
    "city_resnet, its head kept, fine-tuned": [
        dict(learning_rate=rate) for rate in (1e-4, 3e-4, 1e-3)
    ],
    TREES: [
        dict(max_leaf_nodes=leaves, max_iter=rounds, min_samples_leaf=least)
        for leaves in (4, 31)
        for rounds in (50, 150)
        for least in (5, 20)
    ],
    LOGISTIC: [dict(C=strength) for strength in (0.001, 0.01, 0.1, 1.0, 10.0)],
}


# Not run: on validation it lost to a new head, and the book's next cities have other classes.
LEFT_OUT = ("city_resnet, its head kept, fine-tuned",)


def flips(seed):
    """Mirror pictures at random: the density of a mirrored junction is the same."""
    return keras.layers.RandomFlip(
        "horizontal_and_vertical", seed=seed, data_format="channels_last"
    )


def network(name, task, seed, labels, settings):
    """Train one network on the task; return it."""
    keras.utils.set_random_seed(seed)
    start, _, how = name.partition(", ")
    body = citynb.backbone(
        "efficientnet_lite0" if start == "ImageNet" else "city_resnet",
        image_size=PIXELS,
        weights=None if start == "from scratch" else "pretrained",
    )
    model = citynb.classifier(body, task.num_classes, seed=seed)
    schedule = dict(head_epochs=30, epochs=EPOCHS[labels], augment=flips(seed))
    if how == "frozen":
        schedule |= dict(epochs=0)
    if "its head kept" in how:
        with np.load(data_folder() / "city_resnet" / "level_head.npz") as head:
            model.get_layer("head").set_weights([head["kernel"], head["bias"]])
        schedule |= dict(head_epochs=0)
    if start == "from scratch":
        passes = SCRATCH_PASSES * (3 if name == LONGER else 1)
        schedule |= dict(head_epochs=0, epochs=passes * EPOCHS[labels], batch_norm="train")
    citynb.fine_tune(
        model,
        task,
        batch_size=BATCH,
        validate=False,
        progress=False,
        seed=seed,
        **(schedule | settings),
    )
    return model


def of_table(name, task, seed, settings):
    """Fit a model on what a perfect detector would know."""
    if name == TREES:
        model = HistGradientBoostingClassifier(
            learning_rate=0.05, l2_regularization=1.0, early_stopping=False, random_state=seed
        ).set_params(**settings)
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, **settings))
    return model.fit(task.train.table, task.train.labels)


def train(name, full, seed, labels, settings):
    """Return the trained model of one row, and its seconds of training."""
    task = full if labels == ALL else full.subset(labels, seed)
    started = time.perf_counter()
    if name in TABLES:
        model = of_table(name, task, seed, settings)
    else:
        model = network(name, task, seed, labels, settings)
    return model, round(time.perf_counter() - started, 1)


def train_once(kind, name, full, seed, labels, settings):
    """Train and predict one row, unless its file is there; return (run, probabilities)."""
    description = json.dumps([name, labels, seed, settings, EPOCHS, BATCH])
    fingerprint = hashlib.sha256(description.encode()).hexdigest()[:10]
    file = RUNS / f"{kind}_{fingerprint}.npz"
    if not file.exists():
        model, seconds = train(name, full, seed, labels, settings)
        parts = {"validation": full.validation, "test": full.test}
        if kind == "search":
            parts.pop("test")
        found = {part: citynb.evaluate(model, full, part, resamples=2) for part in parts}
        run = dict(name=name, labels=labels, seed=seed, seconds=seconds, settings=settings)
        run |= {f"{part}_macro_f1": round(e.macro_f1, 4) for part, e in found.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}.part")
        with unfinished.open("wb") as stream:
            probabilities = {part: e.probabilities.astype(np.float16) for part, e in found.items()}
            np.savez_compressed(stream, run=json.dumps(run), **probabilities)
        unfinished.replace(file)
        print(kind, run, flush=True)
    with np.load(file, allow_pickle=False) as stored:
        return json.loads(str(stored["run"])), {k: stored[k] for k in stored.files if k != "run"}


def search(full, names):
    """Try every setting on validation; return {name: [(mean macro-F1, settings), ...]}."""
    tried = {}
    for name in names:
        for settings in SEARCH[name]:
            scores = [
                train_once("search", name, full, seed, SEARCH_LABELS, settings)[0]
                for seed in SEARCH_SEEDS
            ]
            mean = float(np.mean([run["validation_macro_f1"] for run in scores]))
            tried.setdefault(name, []).append((round(mean, 4), settings))
    return tried


def rows(tried):
    """Return (labels, name, settings, seeds) of every row, with the settings that search chose."""
    best = {name: max(found, key=lambda pair: pair[0])[1] for name, found in tried.items()}
    names = [name for name in best if name not in LEFT_OUT]
    found = [(labels, name, best[name], SEEDS) for labels in EPOCHS for name in names]
    return [*found, (ALL, LONGER, best["from scratch"], LONGER_SEEDS)]


def collect(full):
    """Write predictions.npz: the probabilities of every run, and what they were made with."""
    tried = search(full, SEARCH)
    found = [
        train_once("run", name, full, seed, labels, settings)
        for labels, name, settings, seeds in rows(tried)
        for seed in seeds
    ]
    meta = {
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "versions": {m.__name__: m.__version__ for m in (tf, keras, sklearn, np)},
        "search": {"labels": SEARCH_LABELS, "seeds": SEARCH_SEEDS, "tried": tried},
        "runs": [run for run, _ in found],
    }
    arrays = {
        part: np.stack([probabilities[part] for _, probabilities in found])
        for part in ("validation", "test")
    }
    unfinished = HERE / "predictions.part.npz"
    np.savez_compressed(unfinished, meta=json.dumps(meta, indent=1), **arrays)
    unfinished.replace(HERE / "predictions.npz")
    digest = hashlib.sha256((HERE / "predictions.npz").read_bytes()).hexdigest()
    (HERE / "SHA256SUMS").write_text(f"{digest}  predictions.npz\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("task", choices=("search", "run", "collect"))
    parser.add_argument("--names", nargs="+", choices=[*SEARCH, LONGER], default=[*SEARCH, LONGER])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments = parser.parse_args()
    full = citynb.load("cameras")
    if arguments.task == "search":
        for name, found in search(full, [n for n in arguments.names if n in SEARCH]).items():
            print(name, found, flush=True)
    elif arguments.task == "run":
        tried = search(full, SEARCH)
        for seed, row in itertools.product(arguments.seeds, rows(tried)):
            labels, name, settings, seeds = row
            if name in arguments.names and seed in seeds:
                train_once("run", name, full, seed, labels, settings)
    else:
        collect(full)


if __name__ == "__main__":
    main()
