"""Read weights in PyTorch's old file format, without PyTorch and without trusting the file."""

import io
import pickle
from collections import OrderedDict

import numpy as np


def read_arrays(content):
    """Return the arrays of a `.pth` file that `torch.save` wrote before PyTorch 1.6.

    The format is three pickles of header, a pickle of the tensors' shapes and places, one of the
    storages' names, then the raw numbers of each storage after its length (8 bytes).

    Args:
        content: bytes of the whole file, a flat dictionary of tensors.

    Returns:
        {name: ndarray}, views of `content`.

    Raises:
        pickle.UnpicklingError: the file names a class or function that no weights need, or is
            no pickle.
        ValueError: a tensor lies outside of its storage.
    """
    stream = io.BytesIO(content)
    *_, tensors, keys = (_ArrayUnpickler(stream).load() for _ in range(5))
    kinds = {key: np.dtype(kind) for (key, kind), *_ in tensors.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        storages[key] = stream.read(count * kinds[key].itemsize)
    arrays = {}
    for name, ((key, _), offset, shape, steps) in tensors.items():
        size = kinds[key].itemsize
        strides = [size * step for step in steps]
        arrays[name] = np.ndarray(shape, kinds[key], storages[key], size * offset, strides)
    return arrays


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of arrays; any other class in the file raises UnpicklingError."""

    allowed = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
        # its first four arguments: storage, offset, shape, steps
        ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: parts[:4],
    }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")
        return self.allowed[module, name]

    def persistent_load(self, identity):
        _, kind, key, *_ = identity
        return key, kind
