"""Compare models on the same examples. Steps 6 and 7 of the workflow."""

import difflib

import numpy as np
import pandas as pd

from citynb.evaluation import (
    METRICS,
    Evaluation,
    bootstrap_weights,
    metrics_from_sums,
    sums_by_group,
)


def compare(evaluations, reference, *, metric="macro_f1", seconds=None, resamples=2000, seed=0):
    """Compare models on the same examples, with the interval of the paired difference.

    Two models see the same days, so their scores rise and fall together; the difference is
    steadier than either (paired bootstrap, Koehn 2004). Each resample draws groups and, where
    a model was trained with several seeds, also seeds (Bouthillier et al. 2021). A difference is
    called better or worse only when its 95 percent interval excludes zero.

    Args:
        evaluations: dict, name to an Evaluation, or to a list of them, one for each seed.
        reference: str, the name that the others are compared with.
        metric: `"accuracy"`, `"macro_f1"`, `"quadratic_kappa"` or
            `"expected_calibration_error"` (where lower is better).
        seconds: dict, name to the seconds of training, shown as a column; optional.
        resamples: int.
        seed: int, of the bootstrap.

    Returns:
        DataFrame, a row for each name: the metric's mean over seeds, `spread` (their
        standard deviation), `seeds`, `difference` to the reference with `low` and `high`,
        and `verdict`: `"reference"`, `"better"`, `"worse"`, `"not separated"`, or
        `"not measured"` (one group only, or no probabilities to calibrate).

    Raises:
        ValueError: the reference or the metric is unknown, a name has no evaluation, or the
            evaluations are of different examples.
    """
    if reference not in evaluations:
        near = difflib.get_close_matches(str(reference), evaluations, n=1, cutoff=0.0)
        raise ValueError(
            f"compare() has no {reference!r} to compare with; did you mean {near[0]!r}?"
            if near
            else "compare() was given no evaluations."
        )
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}.")
    runs = {
        name: [found] if isinstance(found, Evaluation) else list(found)
        for name, found in evaluations.items()
    }
    for name, found in runs.items():
        if not found or not all(isinstance(run, Evaluation) for run in found):
            raise ValueError(f"{name!r} needs what citynb.evaluate returns, one or a list of them.")
    anchor = runs[reference][0]
    for name, found in runs.items():
        for run in found:
            if not (
                np.array_equal(run.labels, anchor.labels)
                and np.array_equal(run.groups, anchor.groups)
            ):
                raise ValueError(
                    f"{name!r} and {reference!r} were evaluated on different examples; "
                    "evaluate both on the same split of the same task."
                )

    groups = len(np.unique(anchor.groups))
    days = bootstrap_weights(groups, resamples, seed)
    rng = np.random.default_rng(seed + 1)
    scores, samples = {}, {}
    for name, found in runs.items():
        of_seed = []
        for run in found:
            sums = sums_by_group(
                run.probabilities.argmax(-1), run.probabilities, run.labels, run.groups
            )
            of_seed.append(metrics_from_sums(*(np.tensordot(days, s, 1) for s in sums))[metric])
        drawn = rng.integers(len(found), size=(len(found), resamples))
        samples[name] = np.take_along_axis(np.stack(of_seed), drawn, 0).mean(0)
        scores[name] = np.array([getattr(run, metric) for run in found])

    rows = {}
    sign = -1 if metric == "expected_calibration_error" else 1
    for name, values in scores.items():
        difference = values.mean() - scores[reference].mean()
        low, high = np.percentile(samples[name] - samples[reference], (2.5, 97.5))
        if np.isnan(difference) or groups == 1:
            low, high, verdict = np.nan, np.nan, "not measured"
        elif low <= 0 <= high:
            verdict = "not separated"
        else:
            verdict = "better" if sign * low > 0 else "worse"
        rows[name] = {
            metric: values.mean(),
            "spread": values.std(ddof=1) if len(values) > 1 else np.nan,
            "seeds": len(values),
            "difference": difference,
            "low": low,
            "high": high,
            "verdict": "reference" if name == reference else verdict,
        }
        if seconds is not None:
            rows[name]["seconds"] = seconds.get(name, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index")
