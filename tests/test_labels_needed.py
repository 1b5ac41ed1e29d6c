"""The stored comparison belongs to its script, is complete, and its scores come again."""

import json

import numpy as np
import pytest

import citynb
from citynb.data import data_folder

FOLDER = data_folder() / "labels_needed"


@pytest.fixture(scope="module")
def make(load_make):
    return load_make("labels_needed")


@pytest.fixture(scope="module")
def stored():
    with np.load(FOLDER / "predictions.npz", allow_pickle=False) as file:
        return json.loads(str(file["meta"])), {part: file[part] for part in ("validation", "test")}


@pytest.fixture(scope="module")
def task():
    return citynb.load("cameras")


def test_every_row_has_its_seeds(stored, make):
    meta, _ = stored
    found = {}
    for run in meta["runs"]:
        found.setdefault((run["name"], run["labels"]), []).append(run["seed"])
    rows = set(make.SEARCH) - set(make.LEFT_OUT)
    wanted = {(name, labels) for name in rows for labels in make.EPOCHS}
    assert set(found) == wanted | {(make.LONGER, make.ALL)}
    for (name, _), seeds in found.items():
        assert sorted(seeds) == list(make.LONGER_SEEDS if name == make.LONGER else make.SEEDS)


def test_settings_are_the_best_of_the_search(stored, make):
    meta, _ = stored
    for run in meta["runs"]:
        trials = meta["search"]["tried"][run["name"].removesuffix(", three times as long")]
        assert run["settings"] == max(trials, key=lambda trial: trial[0])[1]
    assert not set(make.SEARCH_SEEDS) & {run["seed"] for run in meta["runs"]}


def test_the_scores_are_those_of_the_probabilities(stored, task):
    meta, probabilities = stored
    for part, values in probabilities.items():
        assert values.shape == (len(meta["runs"]), len(getattr(task, part)), 4)
        for run, one in zip(meta["runs"][::17], values[::17], strict=True):
            result = citynb.evaluate(one.astype(float), task, part, resamples=2)
            assert result.macro_f1 == pytest.approx(run[f"{part}_macro_f1"], abs=0.003)


@pytest.mark.parametrize("labels", [25, 300])
def test_table_rows_come_again(stored, make, task, labels):
    meta, probabilities = stored
    for name in make.TABLES:
        row = next(
            i
            for i, run in enumerate(meta["runs"])
            if (run["name"], run["labels"], run["seed"]) == (name, labels, 1)
        )
        model, _ = make.train(name, task, 1, labels, meta["runs"][row]["settings"])
        again = citynb.evaluate(model, task, "test", resamples=2).probabilities
        np.testing.assert_allclose(again, probabilities["test"][row], atol=2e-3)
