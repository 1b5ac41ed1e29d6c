"""One part of a task: inputs that may lie on disk, labels, groups, and a table for trees."""

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tensorflow as tf

CHUNK = 1024  # examples looked at together when the values of an array are checked


class _Table:
    """A field that holds a table, or the function that makes it when it is first asked for."""

    def __get__(self, split, owner=None):
        if split is None:
            raise AttributeError("table has no default")
        if callable(split.__dict__["_table"]):
            split.__dict__["_table"] = split.__dict__["_table"](split.inputs)
        return split.__dict__["_table"]

    def __set__(self, split, table):
        split.__dict__["_table"] = table


class Rows:
    """Some rows of inputs that are not in memory, read when they are asked for.

    Args:
        inputs: anything with `shape`, `dtype` and `[rows]`.
        rows: int array (n,).
    """

    def __init__(self, inputs, rows):
        self.inputs, self.rows = inputs, rows
        self.shape, self.dtype = (len(rows), *inputs.shape[1:]), inputs.dtype

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return np.asarray(self.inputs[self.rows[rows]])

    def __array__(self, dtype=None, copy=None):
        """Read all rows into memory."""
        return np.asarray(self[:], dtype)


@dataclass(frozen=True, eq=False)
class Split:
    """One of the three parts of a task: n examples.

    Attributes:
        inputs: (n, height, width, channels), anything with `shape`, `dtype` and `[rows]` (an int
            array in, a batch out): an array, a memory map, `pictures.PictureFiles`. Either
            float32 in [0, 1], or uint8, whose 0 to 255 stand for 0 to 1.
        labels: int64 array (n,), class indices from 0.
        groups: array (n,), the unit that examples share (a day, a junction, a tile
            block). No group stands in two splits, and intervals resample groups.
        table: DataFrame (n, features) in plain units, what a model for tables may see. A function
            from `inputs` to such a DataFrame may be given instead; it runs when the table is first
            asked for, so that pictures on disk are not read before somebody needs it.
        name: str, what errors call the split; a task gives its own, such as `"i94.train"`.

    Raises:
        ValueError: from `check` and `read`, which a `CityTask` calls: what is wrong, and where.
    """

    inputs: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    table: pd.DataFrame | Callable = _Table()
    name: str = "split"

    def __post_init__(self):
        for field in ("labels", "groups"):
            object.__setattr__(self, field, np.asarray(getattr(self, field)))
        object.__setattr__(self, "_failures", [])  # what went wrong inside of `batches`

    def __len__(self):
        return len(self.labels)

    def __repr__(self):
        return f"<{self.name}: {len(self)} examples of {self.inputs.shape[1:]} {self.inputs.dtype}>"

    def named(self, name):
        """Return the same split under another name."""
        return Split(self.inputs, self.labels, self.groups, self.__dict__["_table"], name)

    def take(self, rows):
        """Return the split with only these rows (int or bool array), in this order.

        Rows of an array are copied; those of everything else stay where they are until a batch
        is read.
        """
        rows = np.arange(len(self))[rows]
        if type(self.inputs) is np.ndarray:
            inputs = self.inputs[rows]
        elif isinstance(self.inputs, np.ndarray) or not hasattr(self.inputs, "take"):
            inputs = Rows(self.inputs, rows)
        else:
            inputs = self.inputs.take(rows)
        table = self.__dict__["_table"]
        table = table if callable(table) else table.iloc[rows]
        return Split(inputs, self.labels[rows], self.groups[rows], table, self.name)

    def order(self, seed=None, epoch=0):
        """Return the order of the examples in an epoch, an int array (n,).

        It is a function of the seed and the epoch and of nothing else, so that a training that
        was interrupted goes on in the same order. Without a seed it is 0, 1, 2, ...
        """
        return _order(len(self), seed, epoch)

    def read(self, rows):
        """Return inputs as they are stored, checked.

        Args:
            rows: int array (b,).

        Returns:
            array (b, height, width, channels).

        Raises:
            ValueError: a value is NaN or outside of [0, 1], or a picture cannot be read; the
                message names the split and the row, or the file.
        """
        batch = np.asarray(self.inputs[rows])
        wanted = (len(rows), *self.inputs.shape[1:])
        if batch.shape != wanted or batch.dtype != self.inputs.dtype:
            raise ValueError(
                f"{self.name}: the inputs promise {self.inputs.dtype} of {wanted} for "
                f"{len(rows)} rows, but gave {batch.dtype} of {batch.shape}."
            )
        self._check_values(batch, rows)
        return batch

    def batches(self, batch_size, seed=None, epoch=0, replicas=1, epochs=1):
        """Return a `tf.data.Dataset` of (inputs, labels, size) over one epoch, or several.

        Batches are read in parallel and ahead of their use, but always come in the same order.
        TensorFlow wraps what goes wrong in them; `with split.reading():` unwraps it.

        Args:
            batch_size: int, the most examples in a batch. All batches are equal to one example.
            seed: int or None, see `order`.
            epoch: int, the first one.
            replicas: int. Each batch comes in so many consecutive pieces, one for each device of
                a `tf.distribute` strategy; the last pieces of a small batch may be empty.
            epochs: int, how many follow one another without a break; each has its own order.

        Returns:
            Dataset of inputs (b, height, width, channels) in the type in which they are stored,
            labels int64 (b,), and size, int32: the examples in the whole batch, over all pieces.

        Raises:
            ValueError: as `read`, when a batch is taken inside of `reading`.
        """

        def read(rows):
            try:
                return self.read(rows)
            except Exception as error:
                self._failures.append(error)
                raise

        return stream(read, self.inputs, self.labels, batch_size, seed, epoch, replicas, epochs)

    @contextlib.contextmanager
    def reading(self):
        """Raise what went wrong while `batches` were read as it was, not in TensorFlow's wrapping.

        For example `with task.train.reading(): model.fit(task.train.batches(32, seed=0))`.

        Raises:
            ValueError: as `read`.
        """
        self._failures.clear()
        try:
            yield
        except tf.errors.OpError as error:
            if not self._failures:
                raise
            text = str(error)  # batches after the bad one may have failed as well
            told = [failure for failure in self._failures if str(failure) in text]
            raise (told or self._failures)[0] from None

    def digest(self):
        """Return a checksum of the labels and of all pictures: of the files, where they are files."""
        total = hashlib.sha256(f"{self.inputs.shape} {self.inputs.dtype}".encode())
        total.update(np.ascontiguousarray(self.labels))
        if hasattr(self.inputs, "digest"):
            total.update(self.inputs.digest().encode())
        else:
            for start in range(0, len(self), CHUNK):
                rows = np.arange(start, min(start + CHUNK, len(self)))
                total.update(np.ascontiguousarray(self.inputs[rows]))
        return total.hexdigest()

    def check(self, class_names):
        """Check all that is known without reading pictures, and the values of plain arrays.

        The values of memory maps and files are checked batch by batch, when they are read.

        Raises:
            ValueError: an array has the wrong rank, dtype, range or length, holds NaN, a label has
                no class name, an example has no group, or there are no examples.
        """
        where, inputs, labels, table = self.name, self.inputs, self.labels, self.__dict__["_table"]
        if len(labels) == 0:
            raise ValueError(f"{where} has no examples. Widen its bounds or check the filter.")
        for wanted in ("shape", "dtype"):
            if not hasattr(inputs, wanted):
                raise ValueError(
                    f"{where}: inputs are a {type(inputs).__name__} without {wanted}; give an array, "
                    "a memory map, or anything with shape, dtype and [rows]."
                )
        sizes = {inputs.shape[0] if inputs.shape else 0, len(labels), len(self.groups)}
        sizes |= set() if callable(table) else {len(table)}
        if len(sizes) != 1:
            raise ValueError(
                f"{where}: inputs, labels, groups and table differ in length: {sizes}."
            )
        if len(inputs.shape) != 4:
            raise ValueError(
                f"{where}: inputs have the shape {inputs.shape}; pictures need four axes, "
                "(examples, height, width, channels). For one grey channel use inputs[..., None]."
            )
        if inputs.dtype not in (np.float32, np.uint8):
            raise ValueError(
                f"{where}: inputs are {inputs.dtype}; pictures are float32 in [0, 1], or uint8 from "
                "0 to 255. Use inputs.astype('float32') or inputs.astype('uint8')."
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
            raise ValueError(
                f"{where}: labels are {labels.dtype} of the shape {labels.shape}; they are class "
                "indices, integers of the shape (examples,)."
            )
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(
                f"{where}: labels run from {labels.min()} to {labels.max()}, but there are "
                f"{len(class_names)} class names {class_names}. Name every class."
            )
        if self.groups.ndim != 1:
            raise ValueError(
                f"{where}: groups have the shape {self.groups.shape}, not (examples,)."
            )
        if (empty := pd.isna(self.groups)).any():
            raise ValueError(
                f"{where}: example {empty.argmax()} has no group (NaN or None). Give every example "
                "one; an example that shares nothing is a group of its own."
            )
        if type(inputs) is np.ndarray:
            for start in range(0, len(labels), CHUNK):
                chunk = inputs[start : start + CHUNK]
                self._check_values(chunk, range(start, start + len(chunk)))

    def _check_values(self, batch, rows):
        if batch.dtype == np.uint8 or batch.size == 0:
            return
        if 0 <= batch.min() and batch.max() <= 1:  # NaN fails both
            return
        low, high = batch.min((1, 2, 3)), batch.max((1, 2, 3))
        bad = int(np.argmin((low >= 0) & (high <= 1)))
        if np.isnan(low[bad]):
            raise ValueError(
                f"{self.name}: example {rows[bad]} holds NaN. Fill or drop it before making the "
                "task."
            )
        raise ValueError(
            f"{self.name}: inputs span {low[bad]:.3g} to {high[bad]:.3g} in example {rows[bad]}; "
            "pictures lie in [0, 1]. Divide by 255 or by the capacity first."
        )


def _order(examples, seed, epoch):
    if seed is None:
        return np.arange(examples)
    return np.random.default_rng([seed, epoch]).permutation(examples)


def batch_rows(examples, batch_size, seed=None, epoch=0):
    """Return the rows of each batch of an epoch, a list of int arrays; see `Split.order`.

    No batch is larger than `batch_size`, and all are equal to one example, so that the last does
    not weigh more than the others.
    """
    return np.array_split(_order(examples, seed, epoch), math.ceil(examples / batch_size))


def stream(read, inputs, labels, batch_size, seed=None, epoch=0, replicas=1, epochs=1):
    """Return a `tf.data.Dataset` of (inputs, labels, size), see `Split.batches`.

    Args:
        read: function from rows (int array) to their inputs.
        inputs: what `read` reads from, for its `shape` (n, ...) and its `dtype`.
        labels: int array (n,).
        batch_size, seed, epoch, replicas, epochs: as in `Split.batches`.
    """
    steps = math.ceil(len(labels) / batch_size) * replicas

    @functools.lru_cache(maxsize=2)  # around the end of an epoch both are read
    def pieces(number):
        batches = batch_rows(len(labels), batch_size, seed, number)
        return [(p, len(rows)) for rows in batches for p in np.array_split(rows, replicas)]

    def numbers(step):
        number, place = divmod(step, steps)
        rows, size = pieces(epoch + int(number))[place]
        return read(rows), labels[rows].astype(np.int64), np.int32(size)

    def tensors(step):
        dtypes = (tf.as_dtype(inputs.dtype), tf.int64, tf.int32)
        batch, targets, size = tf.numpy_function(numbers, [step], dtypes)
        batch.set_shape((None, *inputs.shape[1:]))
        targets.set_shape((None,))
        size.set_shape(())
        return batch, targets, size

    # Two at a time: pictures of one batch are decoded in parallel already, and each batch that
    # waits takes memory.
    return tf.data.Dataset.range(steps * epochs).map(tensors, num_parallel_calls=2).prefetch(2)


def as_float(batch):
    """Return inputs (tensor or array) as float32 in [0, 1]: bytes over 255, floats as they are."""
    if batch.dtype != np.uint8:
        return batch
    floats = tf.cast(batch, tf.float32) if tf.is_tensor(batch) else batch.astype(np.float32)
    return floats / 255
