"""Run a network over a split that need not fit into memory."""

import numpy as np
import tensorflow as tf

from citynb.tasks.split import as_float

PIXELS_A_BATCH = 2**22  # that a forward pass holds at once: 256 pictures of 128 x 128


def outputs(network, split, file=None):
    """Return what a network gives for every example of a split, in order.

    The network runs in inference mode: dropout is off, BatchNorm uses its statistics.

    Args:
        network: keras.Model from pictures (batch, height, width, c) in [0, 1] to vectors
            (batch, d).
        split: Split; pictures are read batch by batch.
        file: path of a `.npy` file to write the result to instead of into memory, or None.

    Returns:
        float32 array (n, d): an ndarray, or a memory map of `file`.

    Raises:
        ValueError: a picture cannot be read or holds values outside of [0, 1].
    """
    shape = (len(split), network.output_shape[-1])
    if file is None:
        found = np.empty(shape, np.float32)
    else:
        found = np.lib.format.open_memmap(file, "w+", np.float32, shape)

    # A GPU gains from XLA; on a CPU it is slower.
    @tf.function(jit_compile=bool(tf.config.list_physical_devices("GPU")), reduce_retracing=True)
    def forward(pictures):
        return tf.cast(network(as_float(pictures), training=False), tf.float32)

    row = 0
    with split.reading():
        for pictures, _, size in split.batches(batch_size_for(split)):
            found[row : row + int(size)] = forward(pictures)
            row += int(size)
    return found


def batch_size_for(split):
    """Return how many examples a forward pass takes at once, by the size of one: 16 to 256."""
    return int(np.clip(PIXELS_A_BATCH // np.prod(split.inputs.shape[1:3]), 16, 256))
