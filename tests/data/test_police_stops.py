"""police_stops: sums only, small cells blank, labels from the file, splits that share no day."""

import gzip

import numpy as np
import pandas as pd
import pytest

from citynb import load
from citynb.datasets import police_stops
from citynb.files import data_folder
from data.police_stops.publish import hide_small

FOLDER = data_folder() / "police_stops"
PARTS = ("train", "validation", "test")


def table(name):
    """Read one of the files without the loader."""
    with gzip.open(FOLDER / f"{name}.csv.gz", "rt") as stream:
        return pd.read_csv(stream)


@pytest.fixture(scope="module")
def task():
    return load("police_stops")


def test_only_sums_are_shipped():
    assert set(table("daily")) == {"date", "precinct", "problem", "stops"}
    assert table("daily")["stops"].sum() == 51_920
    assert len(table("daily")) == 365 * 5 * 2
    assert not table("groups").duplicated(["precinct", "problem", "group"]).any()
    assert len(table("neighborhoods")) == 87


@pytest.mark.parametrize(
    "name, counts, parts",
    [
        (
            "groups",
            ["stops", "person_searched", "vehicle_searched", "citation_known", "cited"],
            {
                "person_searched": "stops",
                "vehicle_searched": "stops",
                "citation_known": "stops",
                "cited": "citation_known",
            },
        ),
        (
            "neighborhoods",
            ["stops", "in_car", "person_searched"],
            {"in_car": "stops", "person_searched": "in_car"},
        ),
    ],
)
def test_small_cells_are_blank(name, counts, parts):
    found = table(name)
    for column in counts:
        assert not found[column].between(1, 9).any()
    for part, whole in parts.items():
        assert not (found[whole] - found[part]).between(1, 9).any()
    assert found[counts].isna().any().any(), "nothing was blanked: was the rule applied?"


def test_hide_small_hides_the_part_that_gives_a_small_rest():
    counts = pd.DataFrame({"stops": [100, 100, 100, 9], "searched": [20, 95, 4, 0]})
    hidden = hide_small(counts, {"searched": "stops"})
    assert hidden["searched"].tolist()[0] == 20
    assert hidden["searched"].isna().tolist() == [False, True, True, True]
    assert hidden["stops"].isna().tolist() == [False, False, False, True]


def test_labels_are_the_thirds_of_the_training_days(task):
    daily = table("daily").groupby(["precinct", "date"])["stops"].sum()
    for part in PARTS:
        split = getattr(task, part)
        dates = split.table.index.strftime("%Y-%m-%d")
        precincts = split.table["precinct"].astype(int)
        for precinct in range(1, 6):
            training = daily[precinct][:"2017-07-16"]
            low, high = np.quantile(training, [1 / 3, 2 / 3])
            here = (precincts == precinct).to_numpy()
            count = daily[precinct][dates[here]].to_numpy()
            expected = (count >= low).astype(int) + (count >= high).astype(int)
            assert here.sum() > 40 and (split.labels[here] == expected).all()


def test_the_picture_ends_a_week_before_the_target(task):
    daily = table("daily").pivot_table(
        index="date", columns=["precinct", "problem"], values="stops", aggfunc="sum"
    )
    top = daily[:"2017-07-16"].max()
    split = task.validation
    for row in range(0, len(split), 17):
        precinct = int(split.table["precinct"].iloc[row])
        now = split.table.index[row] - pd.Timedelta(days=7)
        days = pd.date_range(end=now, periods=21).strftime("%Y-%m-%d")
        for channel, kind in enumerate(("suspicious", "traffic")):
            expected = (daily.loc[days, (precinct, kind)] / top[precinct, kind]).clip(0, 1)
            assert np.allclose(split.inputs[row, ..., channel].ravel(), expected, atol=1e-6)


def test_no_day_stands_in_two_splits(task):
    days = {}
    for part in PARTS:
        ahead = getattr(task, part).table.index.unique()
        days[part] = set().union(*(pd.date_range(end=day, periods=28) for day in ahead))
    assert not days["train"] & days["validation"]
    assert not days["validation"] & days["test"]
    assert not days["train"] & days["test"]


def test_the_table_knows_nothing_of_the_last_week(task):
    """Spoil the seven days before one target and the target itself: its row must not change."""
    counts = police_stops.read_daily()
    day = pd.Timestamp("2017-11-15")
    spoiled = counts.copy()
    spoiled.loc[day - pd.Timedelta(days=6) : day] = 0
    after = police_stops.task_of(spoiled, police_stops.BOUNDS, "spoiled").test
    assert task.test.table.loc[day].equals(after.table.loc[day])
    rows = task.test.table.index == day
    assert rows.sum() == 5
    assert np.array_equal(task.test.inputs[rows], after.inputs[rows])
    assert not task.test.table.equals(after.table)
