"""compare(): signs, pairing, seeds, verdicts, and refusals."""

import numpy as np
import pytest

import citynb

GROUPS = np.repeat(np.arange(60), 5)
LABELS = np.arange(300) % 3


def noisy(share, seed=0):
    """Predictions of which about this share is wrong; the same days are hard for all."""
    hard = np.random.default_rng(1).uniform(0, 2 * share, size=60)[GROUPS]
    wrong = np.random.default_rng(seed).random(300) < hard
    return (LABELS + wrong) % 3


@pytest.fixture(scope="module")
def measure(make_task):
    task = make_task(LABELS, GROUPS, shape=(1, 1, 3))
    return lambda predictions: citynb.evaluate(predictions, task, resamples=50)


def test_signs_and_verdicts(measure):
    found = {
        "table": measure(noisy(0.2)),
        "good": measure(noisy(0.05, 5)),
        "bad": measure(noisy(0.4, 6)),
        "same": measure(noisy(0.2, 7)),
    }
    table = citynb.compare(found, "table", metric="accuracy")
    assert list(table.index) == list(found)
    assert list(table["verdict"]) == ["reference", "better", "worse", "not separated"]
    for name, row in table.iterrows():
        assert row["accuracy"] == found[name].accuracy
        assert row["difference"] == pytest.approx(found[name].accuracy - found["table"].accuracy)
        assert row["low"] <= row["difference"] <= row["high"]
    assert tuple(table.loc["table", ["low", "difference", "high"]]) == (0, 0, 0)
    mirrored = citynb.compare(found, "good", metric="accuracy").loc["table"]
    assert mirrored["low"] == pytest.approx(-table.loc["good", "high"])
    assert mirrored["verdict"] == "worse"


def test_lower_calibration_error_is_better(measure):
    truth = np.eye(3)[LABELS]
    calibrated, timid = 0.97 * truth + 0.01, 0.4 * truth + 0.2
    found = {"timid": measure(timid), "calibrated": measure(calibrated)}
    row = citynb.compare(found, "timid", metric="expected_calibration_error").loc["calibrated"]
    assert row["high"] < 0 and row["verdict"] == "better"
    row = citynb.compare(found, "calibrated", metric="expected_calibration_error").loc["timid"]
    assert row["low"] > 0 and row["verdict"] == "worse"


def test_labels_have_no_calibration(measure):
    found = {"labels": measure(LABELS), "network": measure(0.9 * np.eye(3)[LABELS] + 0.1 / 3)}
    row = citynb.compare(found, "network", metric="expected_calibration_error").loc["labels"]
    assert row["verdict"] == "not measured"
    assert np.isnan(row[["difference", "low", "high"]].astype(float)).all()


def test_pairing_narrows_the_interval(measure):
    one = noisy(0.3)
    other = np.where(np.arange(300) % 50 == 0, LABELS, one)  # nearly the same predictions
    found = {"one": measure(one), "other": measure(other)}
    row = citynb.compare(found, "one", metric="accuracy").loc["other"]
    alone = found["other"].intervals["accuracy"]
    assert row["high"] - row["low"] < 0.5 * (alone[1] - alone[0])


def test_seeds(measure):
    runs = [measure(noisy(0.2, seed)) for seed in (1, 2, 3)]
    scores = [run.accuracy for run in runs]
    found = {
        "table": measure(noisy(0.25, 9)),
        "network": runs,
        "lucky": [max(runs, key=lambda r: r.accuracy)],
    }
    table = citynb.compare(found, "table", metric="accuracy", seconds={"network": 12.5})
    row = table.loc["network"]
    assert row["accuracy"] == pytest.approx(np.mean(scores))
    assert row["spread"] == pytest.approx(np.std(scores, ddof=1))
    assert row["seeds"] == 3 and row["seconds"] == 12.5
    assert np.isnan(table.loc["lucky", "spread"]) and np.isnan(table.loc["table", "seconds"])


def test_seeds_that_differ_widen_the_interval(measure):
    steady = [measure(noisy(0.2, 1))] * 2
    unsteady = [measure(noisy(0.05, 1)), measure(noisy(0.35, 1))]
    table = citynb.compare(
        {"table": steady[0], "steady": steady, "unsteady": unsteady}, "table", metric="accuracy"
    )
    width = table["high"] - table["low"]
    assert width["steady"] == 0 and width["unsteady"] > 0.2
    assert table.loc["unsteady", "verdict"] == "not separated"


def test_deterministic(measure):
    found = {"one": measure(noisy(0.2, 1)), "other": [measure(noisy(0.2, s)) for s in (2, 3)]}
    tables = [citynb.compare(found, "one", seed=seed) for seed in (1, 1, 2)]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_refuses(measure, make_task):
    one = measure(LABELS)
    with pytest.raises(ValueError, match="no 'tabel' to compare with; did you mean 'table'"):
        citynb.compare({"table": one}, "tabel")
    with pytest.raises(ValueError, match="no evaluations"):
        citynb.compare({}, "table")
    with pytest.raises(ValueError, match="metric is 'f1'; choose one of accuracy, macro_f1"):
        citynb.compare({"table": one}, "table", metric="f1")
    with pytest.raises(ValueError, match="'network' needs what citynb.evaluate returns"):
        citynb.compare({"table": one, "network": []}, "table")
    with pytest.raises(ValueError, match="'network' needs what citynb.evaluate returns"):
        citynb.compare({"table": one, "network": [0.9]}, "table")
    for labels, groups in (
        (LABELS[::-1], GROUPS),
        (LABELS, GROUPS[::-1]),
        (LABELS[:30], GROUPS[:30]),
    ):
        other = citynb.evaluate(
            np.zeros(len(labels), int), make_task(labels, groups, shape=(1, 1, 3))
        )
        with pytest.raises(ValueError, match="'network' and 'table' were evaluated on different"):
            citynb.compare({"table": one, "network": other}, "table")


def test_one_group_decides_nothing(make_task):
    task = make_task(LABELS, np.zeros(300, int), shape=(1, 1, 3))
    found = {"good": citynb.evaluate(LABELS, task), "bad": citynb.evaluate((LABELS + 1) % 3, task)}
    assert citynb.compare(found, "bad").loc["good", "verdict"] == "not measured"
