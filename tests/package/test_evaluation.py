"""evaluate(): the same numbers as scikit-learn, intervals that know about groups, clear errors."""

import keras
import numpy as np
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, RidgeClassifier

import citynb


def random_predictions(examples, classes, seed):
    """Labels, and probabilities that are right more often than chance."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=examples)
    scores = rng.normal(size=(examples, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_equals_scikit_learn(make_task, classes):
    labels, probabilities = random_predictions(300, classes, seed=classes)
    found = probabilities.argmax(-1)
    report = citynb.evaluate(probabilities, make_task(labels, classes=classes))
    assert report.accuracy == pytest.approx(metrics.accuracy_score(labels, found))
    assert report.macro_f1 == pytest.approx(metrics.f1_score(labels, found, average="macro"))
    kappa = metrics.cohen_kappa_score(labels, found, weights="quadratic")
    assert report.quadratic_kappa == pytest.approx(kappa)
    recall = metrics.recall_score(labels, found, average=None)
    np.testing.assert_allclose(list(report.recall.values()), recall)
    np.testing.assert_array_equal(report.confusion, metrics.confusion_matrix(labels, found))


def test_a_class_that_never_occurs(make_task):
    labels, found = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    report = citynb.evaluate(found, make_task(labels, classes=3))
    assert report.macro_f1 == pytest.approx(metrics.f1_score(labels, found, average="macro"))
    assert np.isnan(report.recall["level 2"])
    assert np.isnan(report.intervals["recall of level 2"]).all()
    assert report.confusion.shape == (3, 3)


def test_calibration_by_hand(make_task):
    # Bins are 1/15 wide. In one bin two answers with confidence .9, one of them right; in
    # another bin two with .6, both right: (|1.8 - 1| + |1.2 - 2|) / 4 = .4.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    report = citynb.evaluate(probabilities, make_task(np.array([0, 1, 1, 1]), classes=2))
    assert report.expected_calibration_error == pytest.approx(0.4)
    certain = np.eye(2)[[0, 1, 1, 1]]  # confidence 1 belongs to the last bin
    report = citynb.evaluate(certain, make_task(np.array([0, 1, 1, 1]), classes=2))
    assert report.expected_calibration_error == 0


def test_labels_without_probabilities(make_task):
    task = make_task()
    report = citynb.evaluate(task.validation.labels, task, name="oracle")
    assert (report.name, report.accuracy, report.macro_f1, report.quadratic_kappa) == (
        "oracle", 1, 1, 1)  # fmt: skip
    assert np.isnan(report.expected_calibration_error)
    assert np.isnan(report.intervals["expected_calibration_error"]).all()
    always = citynb.evaluate(np.zeros(24, int), task)
    assert always.accuracy == pytest.approx(1 / 3)
    assert always.quadratic_kappa == pytest.approx(0)


def test_scikit_learn_classifiers(make_task):
    task = make_task()
    table, labels = task.train.table, task.train.labels
    report = citynb.evaluate(LogisticRegression(C=1e4).fit(table, labels), task)
    assert report.accuracy > 0.8
    two = LogisticRegression(C=1e4).fit(table[labels != 1], labels[labels != 1])
    report = citynb.evaluate(two, task)  # it has never seen level 1
    assert report.recall["level 1"] == 0
    assert (report.probabilities[:, 1] == 0).all() and (report.probabilities[:, 2] > 0).all()
    report = citynb.evaluate(RidgeClassifier().fit(table, labels), task)  # labels only
    assert report.accuracy > 0.5 and np.isnan(report.expected_calibration_error)
    assert report.name == "RidgeClassifier"
    foreign = LogisticRegression().fit(table, labels + 1)
    with pytest.raises(ValueError, match=r"fitted on the classes .*3.*toy has 0 to 2"):
        citynb.evaluate(foreign, task)


def test_networks(make_task, make_model):
    task, model = make_task(), make_model()
    logits = model.predict(task.validation.inputs, verbose=0)
    by_hand = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    report = citynb.evaluate(model, task)
    assert report.name == "tiny_classifier"
    np.testing.assert_allclose(report.probabilities, by_hand, atol=1e-6)
    softmax = keras.Model(model.input, keras.layers.Softmax()(model.output))
    np.testing.assert_allclose(
        citynb.evaluate(softmax, task).probabilities, by_hand, atol=1e-6
    )  # probabilities are not squashed again
    model.get_layer("head").weights[0].assign(np.full((6, 3), np.nan))
    with pytest.raises(ValueError, match="tiny_classifier gives NaN or infinity for example 0"):
        citynb.evaluate(model, task)


def test_chooses_the_split(make_task):
    task = make_task()
    for part in ("train", "validation", "test"):
        split = getattr(task, part)
        report = citynb.evaluate(split.labels, task, part)
        assert report.accuracy == 1
        np.testing.assert_array_equal(report.groups, split.groups)
    with pytest.raises(ValueError, match="split is 'valid'; choose 'train', 'validation' or"):
        citynb.evaluate(split.labels, task, "valid")


def third(value):
    return np.full((24, 3), 1 / 3) + value


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (np.zeros((24, 4)), r"shape \(24, 4\); toy needs probabilities \(24, 3\)"),
        (np.zeros(23, int), r"shape \(23,\)"),
        (np.zeros(24), r"integer labels \(24,\)"),
        (np.full(24, 3), "labels must lie in 0 to 2"),
        (np.full(24, -1), "labels must lie in 0 to 2"),
        (third(1.0), "not probabilities"),
        (third(np.nan), "not probabilities"),
        (third([1.0, -1.0, 0.0]), "not probabilities.*softmax"),
    ],
)
def test_refuses(make_task, predictions, message):
    with pytest.raises(ValueError, match=message):
        citynb.evaluate(predictions, make_task())


def correlated(rng, groups=40, size=10):
    """Hits of a predictor that is good on some days and bad on others: .7 on the mean."""
    daily = rng.beta(3.5, 1.5, size=groups)
    return (rng.random((groups, size)) < daily[:, None]).ravel(), np.repeat(np.arange(groups), size)


def interval(make_task, hits, groups, resamples):
    task = make_task(np.ones(len(hits), int), groups, classes=2, shape=(1, 1, 3))
    report = citynb.evaluate(hits.astype(int), task, resamples=resamples)
    return report.intervals["accuracy"]


def test_groups_widen_the_interval(make_task):
    hits, days = correlated(np.random.default_rng(0))
    low, high = interval(make_task, hits, days, 1000)
    row_low, row_high = interval(make_task, hits, np.arange(len(hits)), 1000)
    assert high - low > 1.3 * (row_high - row_low)
    assert low < hits.mean() < high


def test_intervals_hold_what_they_promise(make_task):
    rng = np.random.default_rng(1)
    inside = {"days": 0, "rows": 0}
    for _ in range(120):
        hits, days = correlated(rng)
        for unit, groups in (("days", days), ("rows", np.arange(len(hits)))):
            low, high = interval(make_task, hits, groups, 200)
            inside[unit] += low <= 0.7 <= high
    assert 0.90 <= inside["days"] / 120 <= 0.99
    assert inside["rows"] / 120 < 0.86


def test_one_group_gives_no_interval(make_task):
    labels = np.arange(24) % 3
    report = citynb.evaluate(labels, make_task(labels, np.zeros(24, int)))
    assert np.isnan(list(report.intervals.values())).all()


def test_the_seed_decides_the_intervals(make_task):
    labels, probabilities = random_predictions(60, 3, seed=0)
    task = make_task(labels)
    intervals = [citynb.evaluate(probabilities, task, seed=seed).intervals for seed in (1, 1, 2)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_table(make_task):
    labels, probabilities = random_predictions(60, 3, seed=0)
    table = citynb.evaluate(probabilities, make_task(labels)).table()
    assert list(table.columns) == ["value", "low", "high"]
    assert (table["low"] <= table["value"]).sum() >= 6  # calibration is biased upward
    assert {"accuracy", "macro_f1", "recall of level 2"} <= set(table.index)
