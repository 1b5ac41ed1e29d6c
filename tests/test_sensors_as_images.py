"""The stored comparison belongs to the script that stands beside it, and has several seeds."""

import json

import numpy as np
import pytest

from citynb.data import data_folder, load

FOLDER = data_folder() / "sensors_as_images"


@pytest.fixture(scope="module")
def stored():
    with np.load(FOLDER / "predictions.npz", allow_pickle=False) as file:
        return json.loads(str(file["meta"])), file["predictions"]


def test_predictions_fit_the_test_split(stored):
    meta, predictions = stored
    task = load("i94", horizon=3)
    assert predictions.shape == (len(meta["runs"]), len(task.test))
    assert 0 <= predictions.min() <= predictions.max() < task.num_classes


def test_every_row_has_three_seeds(stored):
    meta, _ = stored
    seeds = {}
    for run in meta["runs"]:
        seeds.setdefault((run["target"], run["name"], run["labels"]), set()).add(run["seed"])
    assert all(len(found) == 3 for found in seeds.values())
