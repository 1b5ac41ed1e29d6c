"""CityTask: what is refused, subsets, and the summary."""

import dataclasses

import numpy as np
import pytest


def broken(task, part="train", **changes):
    return dataclasses.replace(task, **{part: dataclasses.replace(getattr(task, part), **changes)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"inputs": s.inputs[..., 0]}, r"toy.train: inputs have the shape \(24, 8, 8\)"),
        (lambda s: {"inputs": s.inputs.astype(np.float64)}, "inputs are float64.*float32 in"),
        (lambda s: {"inputs": (s.inputs * 255).astype(np.int64)}, "inputs are int64.*'uint8'"),
        (lambda s: {"inputs": (s.inputs * 255).astype(np.uint8)}, "train are uint8, of .* float32"),
        (lambda s: {"inputs": s.inputs.tolist()}, "inputs are a list without shape"),
        (lambda s: {"groups": np.where(np.arange(24) == 5, np.nan, s.groups)},
         "example 5 has no group"),
        (lambda s: {"groups": np.array([*"abc", None] * 6, object)}, "example 3 has no group"),
        (lambda s: {"groups": s.groups[:, None]}, r"groups have the shape \(24, 1\)"),
        (lambda s: {"inputs": s.inputs * 255}, r"inputs span .*pictures lie in \[0, 1\]"),
        (lambda s: {"inputs": s.inputs - 1}, "inputs span -"),
        (lambda s: {"inputs": s.inputs / np.float32(0.0)}, "inputs span .* inf"),
        (lambda s: {"inputs": np.where(np.arange(24)[:, None, None, None] == 7, np.float32("nan"),
                                       s.inputs)}, "example 7 holds NaN"),
        (lambda s: {"inputs": s.inputs[:-1]}, "inputs, labels, groups and table differ in length"),
        (lambda s: {"table": s.table[:-1]}, "differ in length"),
        (lambda s: {"labels": s.labels + 1}, "labels run from 1 to 3, but there are 3 class names"),
        (lambda s: {"labels": s.labels - 1}, "labels run from -1"),
        (lambda s: {"labels": s.labels.astype(float)}, "labels are float64"),
        (lambda s: {"labels": s.labels[:, None]}, r"labels are int64 of the shape \(24, 1\)"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_task_refuses(make_task, change, message):
    task = make_task()
    with pytest.raises(ValueError, match=message):
        broken(task, **change(task.train))


def test_task_refuses_splits_that_do_not_fit_together(make_task):
    task = make_task()
    with pytest.raises(ValueError, match="train and test share 1 group.s., 0 for example"):
        broken(task, "test", groups=np.where(np.arange(24) == 3, 0, task.test.groups))
    with pytest.raises(ValueError, match="toy.validation has no examples"):
        dataclasses.replace(task, validation=task.validation.take(np.arange(0)))
    with pytest.raises(ValueError, match=r"train are \(8, 8, 3\), of test \(8, 7, 3\)"):
        broken(task, "test", inputs=task.test.inputs[:, :, :7])


def test_split_takes_rows(make_task):
    split = make_task().train
    taken = split.take(np.array([5, 2]))
    np.testing.assert_array_equal(taken.inputs, split.inputs[[5, 2]])
    np.testing.assert_array_equal(taken.labels, split.labels[[5, 2]])
    np.testing.assert_array_equal(taken.groups, split.groups[[5, 2]])
    assert taken.table.equals(split.table.iloc[[5, 2]])
    assert len(split.take(split.labels == 1)) == 8


def test_subset(make_task):
    task = make_task(examples=100)
    labels = np.repeat([0, 1, 2], [80, 18, 2])
    task = broken(task, labels=labels)
    ids = [f"{value:.9f}" for value in task.train.table["noise"]]
    before = set()
    for size in (3, 10, 50, 99, 100):
        part = task.subset(size, seed=1)
        assert len(part.train) == size
        counts = np.bincount(part.train.labels, minlength=3)
        assert counts.min() >= 1
        np.testing.assert_allclose(counts, size * np.array([0.8, 0.18, 0.02]), atol=1.5)
        chosen = {f"{value:.9f}" for value in part.train.table["noise"]}
        assert before <= chosen <= set(ids)
        before = chosen
        assert part.test is task.test and part.validation is task.validation
    rows = [task.subset(20, seed=seed).train.table.index.tolist() for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]
    for size in (2, 101):
        with pytest.raises(ValueError, match=f"a subset needs 3 to 100 labels, not {size}"):
            task.subset(size)


def test_summary(make_task):
    summary = make_task().summary()
    assert list(summary.index) == ["train", "validation", "test"]
    assert (summary["examples"] == 24).all() and (summary["groups"] == 12).all()
    np.testing.assert_allclose(summary["level 2"], 0.333)
