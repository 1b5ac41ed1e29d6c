"""Split: arrays, memory maps and files in batches, in an order that the seed and epoch decide."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from citynb.tasks import CityTask, Split
from citynb.tasks.split import as_float, batch_rows


def make(inputs, name="toy.train"):
    rows = np.arange(len(inputs))
    return Split(inputs, rows % 3, rows, pd.DataFrame({"row": rows}), name)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).uniform(size=(10, 4, 5, 3)).astype(np.float32)


@pytest.fixture
def memory_map(tmp_path, pictures):
    np.save(tmp_path / "pictures.npy", pictures)
    return np.load(tmp_path / "pictures.npy", mmap_mode="r")


class Counted:
    """Inputs that note which rows were read."""

    def __init__(self, inputs):
        self.inputs, self.shape, self.dtype, self.seen = inputs, inputs.shape, inputs.dtype, []

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, rows):
        self.seen.extend(np.atleast_1d(rows).tolist())
        return self.inputs[rows]


def test_the_order_is_a_function_of_seed_and_epoch(pictures):
    split = make(pictures)
    np.testing.assert_array_equal(split.order(), np.arange(10))
    np.testing.assert_array_equal(split.order(None, 5), np.arange(10))
    orders = [split.order(seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({*map(tuple, orders)}) == 4
    assert orders == [split.order(seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    batches = batch_rows(10, 4, seed=1, epoch=1)
    assert [len(rows) for rows in batches] == [4, 3, 3]
    assert np.concatenate(batches).tolist() == orders[3]


@pytest.mark.parametrize("kind", ["array", "bytes", "memory map", "own"])
def test_batches(pictures, memory_map, kind):
    inputs = {
        "array": pictures,
        "bytes": (pictures * 255).astype(np.uint8),
        "memory map": memory_map,
        "own": Counted(pictures),
    }[kind]
    stored = inputs.inputs if kind == "own" else np.asarray(inputs)
    dataset = make(inputs).batches(4, seed=3, epoch=2)
    assert [spec.shape.as_list() for spec in dataset.element_spec] == [[None, 4, 5, 3], [None], []]
    assert dataset.element_spec[0].dtype == stored.dtype and dataset.cardinality() == 3
    for _ in range(2):  # a second pass gives the same
        for (batch, labels, size), rows in zip(dataset, batch_rows(10, 4, 3, 2), strict=True):
            np.testing.assert_array_equal(batch, stored[rows])
            np.testing.assert_array_equal(labels, rows % 3)
            assert labels.dtype == tf.int64 and size.dtype == tf.int32 and size == len(rows)


def test_replicas_share_each_batch(pictures):
    split = make(pictures)
    pieces = list(split.batches(4, seed=0, replicas=3))
    assert [int(size) for *_, size in pieces] == [4, 4, 4, 3, 3, 3, 3, 3, 3]
    assert [len(labels) for _, labels, _ in pieces] == [2, 1, 1, 1, 1, 1, 1, 1, 1]
    whole = [np.concatenate([pieces[3 * i + j][0] for j in range(3)]) for i in range(3)]
    for given, (batch, *_) in zip(whole, split.batches(4, seed=0), strict=True):
        np.testing.assert_array_equal(given, batch)
    assert [len(labels) for _, labels, _ in make(pictures[:1]).batches(4, replicas=2)] == [1, 0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "^toy.train: example 7 holds NaN"),
        (3.0, r"^toy.train: inputs span .* to 3 in example 7; pictures lie in \[0, 1\]"),
        (-1.0, "^toy.train: inputs span -1 to .* in example 7"),
    ],
)
def test_values_that_are_not_in_memory_are_checked_in_batches(tmp_path, pictures, value, message):
    pictures[7, 1, 1, 1] = value
    np.save(tmp_path / "bad.npy", pictures)
    split = make(np.load(tmp_path / "bad.npy", mmap_mode="r"))
    split.check("abc")  # the values are not looked at yet
    with pytest.raises(ValueError, match=message):
        split.read(np.arange(5, 9))
    for replicas in (1, 2):
        with pytest.raises(ValueError, match=message), split.reading():
            list(split.batches(3, seed=0, replicas=replicas))
    with pytest.raises(ValueError, match=message):
        make(pictures).check("abc")  # an array is checked at once


def test_fit_names_the_example(pictures):
    import keras

    pictures[7] = np.nan
    split = make(Counted(pictures))
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="^toy.train: example 7 holds NaN"), split.reading():
        model.fit(split.batches(3).map(lambda x, y, size: (x, y)), verbose=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="other"), split.reading():
        raise tf.errors.InvalidArgumentError(None, None, "an other error stays what it is")


def test_inputs_that_break_their_promise(pictures):
    class Liar(Counted):
        def __getitem__(self, rows):
            return self.inputs[rows, :2]

    with pytest.raises(ValueError, match=r"promise float32 of \(2, 4, 5, 3\) .* gave .*\(2, 2, 5"):
        make(Liar(pictures)).read(np.arange(2))


def test_take(pictures, memory_map):
    counted = Counted(pictures)
    for inputs in (pictures, memory_map, counted):
        split = make(inputs)
        for rows in (np.array([5, 2]), split.labels == 1, slice(2, 4)):
            taken = split.take(rows)
            if inputs is counted:
                assert counted.seen == []
            np.testing.assert_array_equal(taken.read(np.arange(len(taken))), pictures[rows])
            np.testing.assert_array_equal(np.asarray(taken.inputs), pictures[rows])
            np.testing.assert_array_equal(taken.take([1]).inputs[:], pictures[rows][[1]])
            np.testing.assert_array_equal(taken.labels, split.labels[rows])
            np.testing.assert_array_equal(taken.groups, split.groups[rows])
            np.testing.assert_array_equal(taken.table["row"], split.groups[rows])
            assert taken.name == split.name
            counted.seen.clear()


def test_a_table_is_made_when_it_is_asked_for(pictures):
    made = []

    def brightness(inputs):
        made.append(len(inputs))
        return pd.DataFrame({"brightness": np.asarray(inputs[:]).mean((1, 2, 3))})

    rows = np.arange(10)
    split = Split(pictures, rows % 3, rows, brightness)
    split.check("abc")
    part = split.named("other").take(rows[:4])
    assert made == [] and part.name == "other"
    np.testing.assert_allclose(part.table["brightness"], pictures[:4].mean((1, 2, 3)))
    assert part.table is part.table and made == [4]
    assert len(split.table) == 10 and made == [4, 10]


def test_a_task_on_memory_maps(memory_map):
    parts = [make(memory_map).take(np.arange(i, 10, 3)) for i in range(3)]
    parts = [Split(p.inputs, np.arange(len(p)) % 2, p.groups, p.table) for p in parts]
    task = CityTask("maps", *parts, class_names=("a", "b"), split_by="row")
    assert task.train.name == "maps.train" and task.input_shape == (4, 5, 3)
    assert "maps.test: 3 examples of (4, 5, 3) float32" in repr(task.test)
    subset = task.subset(3)
    assert subset.test is task.test and subset.train.inputs.shape == (3, 4, 5, 3)
    assert len(list(subset.train.batches(2))) == 2


def test_as_float():
    stored = np.array([[0, 51, 255]], np.uint8)
    for batch in (stored, tf.constant(stored)):
        floats = as_float(batch)
        assert floats.dtype == np.float32
        np.testing.assert_allclose(floats, [[0, 0.2, 1]], rtol=1e-6)
        assert as_float(floats) is floats
