"""Evaluate, with intervals. Step 5 of the workflow."""

from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd

from citynb.inference import outputs

METRICS = ("accuracy", "macro_f1", "quadratic_kappa", "expected_calibration_error")
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """How one set of predictions fares on one split.

    Attributes:
        name: str.
        accuracy: float, the share of hits.
        macro_f1: float, the mean of the classes' F1, each class counting the same.
        recall: dict, class name to the share of its examples that were found.
        quadratic_kappa: float, agreement beyond chance, an error by two levels weighing four
            times an error by one (Cohen 1968); for ordered classes.
        expected_calibration_error: float, the mean distance of confidence and accuracy in
            15 bins (Guo et al. 2017); NaN when there are labels but no probabilities.
        intervals: dict, metric to (low, high): 95 percent, from a bootstrap that resamples
            groups (days, junctions), because examples of one group are not independent
            (Cameron, Gelbach and Miller 2008). NaN when there is only one group.
        confusion: DataFrame (true class, predicted class), counts.
        probabilities: float array (n, classes).
        labels, groups: arrays (n,), of the split.
    """

    name: str
    accuracy: float
    macro_f1: float
    recall: dict
    quadratic_kappa: float
    expected_calibration_error: float
    intervals: dict
    confusion: pd.DataFrame
    probabilities: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def table(self):
        """Return a DataFrame: each metric with its value and its interval."""
        rows = {m: (getattr(self, m), *self.intervals[m]) for m in METRICS}
        rows |= {
            f"recall of {name}": (value, *self.intervals[f"recall of {name}"])
            for name, value in self.recall.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def _repr_html_(self):
        return self.table().round(3).to_html()


def evaluate(model, task, split="validation", *, name=None, resamples=1000, seed=0):
    """Measure predictions on one split; the sources of the metrics stand in `Evaluation`.

    The intervals come from a bootstrap that resamples groups (Cameron, Gelbach and Miller
    2008) with the predictions as they are: they say how sure the score of this model is, not
    how it would change with another training. `citynb.compare` takes several seeds for that.

    Args:
        model: a keras.Model with logits or probabilities (its inputs are the pictures); or a
            fitted scikit-learn classifier (its inputs are the table); or an array of
            probabilities (n, classes), or of predicted labels (n,).
        task: CityTask.
        split: `"train"`, `"validation"` or `"test"`. Choose on validation, and ask for
            test once, at the end.
        name: str, default the model's name.
        resamples: int, the number of bootstrap resamples.
        seed: int, of the bootstrap.

    Returns:
        Evaluation.

    Raises:
        ValueError: the split is unknown, the predictions do not fit the labels, or
            probabilities are negative, NaN, or do not sum to 1.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split is {split!r}; choose 'train', 'validation' or 'test'.")
    part = getattr(task, split)
    probabilities, certain = _probabilities(model, part, task)
    predictions = probabilities.argmax(-1)
    confusions, calibration = sums_by_group(predictions, probabilities, part.labels, part.groups)
    weights = bootstrap_weights(len(confusions), resamples, seed)
    metrics = metrics_from_sums(confusions.sum(0), calibration.sum(0))
    samples = metrics_from_sums(
        np.tensordot(weights, confusions, 1), np.tensordot(weights, calibration, 1)
    )
    drawn = {metric: samples[metric] for metric in METRICS}
    for class_name, recall in zip(task.class_names, samples["recall"].T, strict=True):
        drawn[f"recall of {class_name}"] = recall[~np.isnan(recall)]
    intervals = {
        metric: tuple(np.percentile(values, (2.5, 97.5)).tolist())
        if values.size and len(confusions) > 1  # one group says nothing about the next
        else (np.nan, np.nan)
        for metric, values in drawn.items()
    }
    if certain:
        metrics["expected_calibration_error"] = np.nan
        intervals["expected_calibration_error"] = (np.nan, np.nan)
    classes = pd.Index(task.class_names)
    return Evaluation(
        name=name or getattr(model, "name", type(model).__name__),
        recall=dict(zip(task.class_names, metrics.pop("recall").tolist(), strict=True)),
        **{metric: float(metrics[metric]) for metric in METRICS},
        intervals=intervals,
        confusion=pd.DataFrame(
            confusions.sum(0).astype(int), classes.rename("true"), classes.rename("predicted")
        ),
        probabilities=probabilities,
        labels=part.labels,
        groups=part.groups,
    )


def metrics_from_sums(confusion, calibration):
    """Compute the metrics from confusion matrices, for many resamples at once.

    Args:
        confusion: array (..., classes, classes), rows true, columns predicted.
        calibration: array (..., bins, 3): count, summed confidence, hits.

    Returns:
        dict of arrays (...): the metrics; `recall` has the shape (..., classes) and NaN for
        a class without examples.
    """
    total = confusion.sum((-2, -1))
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    actual, predicted = confusion.sum(-1), confusion.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * hits / (actual + predicted)
        recall = hits / actual
        levels = np.arange(confusion.shape[-1])
        cost = (levels[:, None] - levels) ** 2
        by_chance = actual[..., :, None] * predicted[..., None, :] / total[..., None, None]
        kappa = 1 - (cost * confusion).sum((-2, -1)) / (cost * by_chance).sum((-2, -1))
        count, confidence, correct = np.moveaxis(calibration, -1, 0)
    return {
        "accuracy": hits.sum(-1) / total,
        # As in scikit-learn, a class that is neither there nor predicted does not count; a
        # resample without a rare class would otherwise pull the interval down.
        "macro_f1": np.nanmean(f1, -1),
        "recall": recall,
        "quadratic_kappa": np.nan_to_num(kappa),
        "expected_calibration_error": np.abs(confidence - correct).sum(-1) / count.sum(-1),
    }


def _probabilities(model, part, task):
    """Return probabilities (n, classes), and whether they are only labels made certain."""
    shape = (len(part), task.num_classes)
    if isinstance(model, keras.Model):
        found = outputs(model, part).astype(np.float64)
        if not np.isfinite(found).all():
            row = int(np.argwhere(~np.isfinite(found))[0][0])
            raise ValueError(
                f"{model.name} gives NaN or infinity for example {row}: its weights are damaged "
                "or its training went wrong. Start again from the pretrained weights."
            )
        # In half precision the shares of a row sum to 1 within a hundredth.
        tolerance = 1e-3 if model.output.dtype == "float32" else 2e-2
        if found.min() < 0 or np.abs(found.sum(-1) - 1).max() > tolerance:  # logits
            found = np.exp(found - found.max(-1, keepdims=True))
        found /= found.sum(-1, keepdims=True)
    elif hasattr(model, "predict_proba"):
        if not set(model.classes_) <= set(range(task.num_classes)):
            raise ValueError(
                f"The classifier was fitted on the classes {list(model.classes_)}; {task.name} "
                f"has 0 to {task.num_classes - 1}. Fit it on task.train.labels."
            )
        found = np.zeros(shape)  # a class that it never saw gets 0
        found[:, np.asarray(model.classes_, int)] = model.predict_proba(part.table)
    elif hasattr(model, "predict"):  # a scikit-learn classifier without probabilities
        found = np.asarray(model.predict(part.table))
    else:
        found = np.asarray(model)
    if found.shape == shape[:1] and np.issubdtype(found.dtype, np.integer):
        if found.size and not 0 <= found.min() <= found.max() < task.num_classes:
            raise ValueError(f"Predicted labels must lie in 0 to {task.num_classes - 1}.")
        return np.eye(task.num_classes)[found], True
    if found.shape != shape:
        raise ValueError(
            f"The predictions have the shape {found.shape}; {task.name} needs probabilities "
            f"{shape} or integer labels {shape[:1]}."
        )
    if not np.isfinite(found).all() or found.min() < 0 or np.abs(found.sum(-1) - 1).max() > 1e-3:
        raise ValueError(
            "These are not probabilities: each row must be finite, 0 or more, and sum to 1. "
            "Logits become probabilities with scipy.special.softmax(logits, axis=-1)."
        )
    return found, False


def sums_by_group(predictions, probabilities, labels, groups):
    """Sum up confusion (groups, c, c) and calibration (groups, bins, 3), so that resampling
    groups is a weighted sum."""
    names, group = np.unique(groups, return_inverse=True)
    classes = probabilities.shape[1]
    confusions = np.zeros((len(names), classes, classes))
    np.add.at(confusions, (group, labels, predictions), 1)
    confidence = probabilities.max(-1)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    calibration = np.zeros((len(names), CALIBRATION_BINS, 3))
    values = np.stack([np.ones_like(confidence), confidence, predictions == labels], -1)
    np.add.at(calibration, (group, bins), values)
    return confusions, calibration


def bootstrap_weights(groups, resamples, seed):
    """Return (resamples, groups): how often each group is drawn, `groups` draws a row."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
