"""All that the next epoch depends on, in one file, so that a training survives any stop."""

import contextlib
import hashlib
import json
import os
import time
import weakref
from pathlib import Path

import numpy as np

from citynb.heads import all_layers

try:
    import fcntl
except ImportError:  # Windows has no such lock: two trainings in one folder are not told apart
    fcntl = None

# A model in this process: the checksums of its weights when its training began and was left.
_left = weakref.WeakKeyDictionary()


class Checkpoint:
    """The state of a training in `folder/state.npz`, or nowhere when `folder` is None.

    Keras' own BackupAndRestore writes weights in place and knows neither where L2-SP pulls to nor
    whose state it is. This file is replaced as a whole, and it is refused when it belongs to other
    pictures, start weights, settings or another network. Variables are told apart by their order,
    name and shape, not by their path: a notebook that builds the same network again gets other
    paths. A context manager: inside, no other process may use the folder.

    Args:
        folder: path or None.
        model: keras.Model that is trained; its weights now are the start, unless this process
            began the training of the same object and was interrupted.
        variables: list of keras.Variable, all that training moves and all it depends on.
        anchors: list of arrays, where L2-SP pulls to.
        settings: dict of the training's arguments.
        splits: dict, name to the Split that is trained on or validated with.

    Raises:
        ValueError: the file is damaged or of another training, or the folder is in use.
        OSError: the folder cannot be read or written.
    """

    def __init__(self, folder, *, model, variables, anchors, settings, splits):
        self.file = Path(folder) / "state.npz" if folder else None
        self.model, self.variables = model, variables
        self.anchors = anchors  # the weights before the first epoch
        self.history = []
        self.optimizer_values = ()
        self.started = time.perf_counter()
        self._lock, self.start = None, None
        self._settings, self._splits = settings, splits

    def __enter__(self):
        if not self.file:
            return self
        self._acquire()
        try:
            digests = {
                f"{name} {what}": value
                for name, split in self._splits.items()
                for what, value in (("examples", len(split)), ("pictures", split.digest()))
            }
            policies = {layer.dtype_policy.name for layer in all_layers(self.model)}
            # Through JSON, so that what was written equals what is asked.
            identity = {
                "network": {f"variable {i}": [v.name, *v.shape] for i, v in enumerate(self.variables)}
                | {"precision": sorted(policies)},
                "training run": self._settings,
                "data": digests,
            }
            self.identity = json.loads(json.dumps(identity, default=str))
            self.start = _digest(self.model)
            if self.file.exists():
                self._load()
            else:  # also the start, to which an interrupted first epoch returns
                self.save()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.start:
            _left[self.model] = self.start, _digest(self.model)
        if self._lock:
            self._lock.close()  # which releases it
            self._lock = None

    def seconds(self):
        return time.perf_counter() - self.started

    def done(self, phase):
        """Return the number of epochs of this phase that are in the history."""
        return sum(row["phase"] == phase for row in self.history)

    def begin(self, phase, optimizer):
        """Give the optimizer its saved state, if it is of this phase; return the first epoch."""
        if self.done(phase):
            for variable, value in zip(optimizer.variables, self.optimizer_values, strict=True):
                variable.assign(value)
        return self.done(phase)

    def save(self, optimizer=None):
        """Write the whole state, or leave the one before."""
        if not self.file:
            return
        parts = {
            "variable": self.variables,
            "anchor": self.anchors,
            "optimizer": optimizer.variables if optimizer else (),
        }
        arrays = {
            f"{part} {i}": np.asarray(value)
            for part, values in parts.items()
            for i, value in enumerate(values)
        }
        meta = {"identity": self.identity, "start": self.start, "now": _digest(self.model)}
        meta |= {"history": self.history, "seconds": self.seconds()}
        unfinished = self.file.with_name("state.part")
        try:
            with unfinished.open("wb") as stream:
                np.savez(stream, meta=json.dumps(meta), **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(unfinished, self.file)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            saved = f"epoch {len(self.history) - 1}" if self.history else "nothing"
            raise self._not_written(error, f" Saved so far: {saved}.") from error

    def _not_written(self, error, saved=""):
        return OSError(
            f"The checkpoint {self.file} cannot be written ({error.strerror or error}).{saved} "
            "Make room or allow it, or choose another folder with checkpoint=, and call fine_tune() "
            "again."
        )

    def _acquire(self):
        """Lock the folder; the system releases it when this process dies, so none goes stale."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self.file.exists() and not os.access(self.file.parent, os.W_OK):
                return  # to read a finished training is fine; saving will say what is wrong
            self._lock = open(self.file.with_name("lock"), "w")
        except OSError as error:
            raise self._not_written(error) from error
        try:
            if fcntl:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.__exit__()
            raise ValueError(
                f"Another training is using the checkpoint folder {self.file.parent}. Wait for it, "
                "or choose another folder with checkpoint=."
            ) from None
        except OSError:  # a network drive without locks
            pass

    def _load(self):
        try:
            with np.load(self.file, allow_pickle=False) as saved:
                arrays = {key: saved[key] for key in saved.files}
            meta = json.loads(str(arrays.pop("meta")))
            identity, self.history = meta["identity"], meta["history"]
            start, now = meta["start"], meta["now"]
            self.started -= meta["seconds"]
            # The file keeps the order in which save() wrote.
            values, anchors, optimizer_values = (
                [array for key, array in arrays.items() if key.startswith(part)]
                for part in ("variable", "anchor", "optimizer")
            )
        except PermissionError as error:
            raise PermissionError(
                f"The checkpoint {self.file} cannot be read ({error.strerror}). Allow it, or "
                "choose another folder with checkpoint=."
            ) from error
        except Exception as error:  # a damaged zip file raises errors of a dozen kinds
            raise ValueError(
                f"{self.file} is damaged or not a checkpoint of fine_tune() ({error}). Remove it "
                "to start again, or choose another folder with checkpoint=."
            ) from error
        way_out = "Remove it to start again, or choose another folder with checkpoint=."
        for part, wanted in self.identity.items():
            found = identity[part]
            for key in {**found, **wanted}:
                if found.get(key) != wanted.get(key):
                    raise ValueError(
                        f"{self.file} belongs to another {part}: its {key} is {found.get(key)!r}, "
                        f"here it is {wanted.get(key)!r}. {way_out}"
                    )
        # A network that was interrupted on the way, or is trained already, is the same one.
        same = self.start in (start, now) or _left.get(self.model) == (start, self.start)
        if not same:
            raise ValueError(
                f"{self.file} began with other weights than {self.model.name} has now. Build the "
                "network as before: from the same pretrained weights, with the same seed "
                f"(keras.utils.set_random_seed). {way_out}"
            )
        if [value.shape for value in values] != [tuple(v.shape) for v in self.variables]:
            raise ValueError(f"{self.file} is damaged: it lacks some of the weights. {way_out}")
        self.start, self.anchors, self.optimizer_values = start, anchors, optimizer_values
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)


def _digest(model):
    """Return a checksum of a model's weights; the states of random layers are not among them."""
    total = hashlib.sha256()
    for weight in model.get_weights():
        total.update(np.ascontiguousarray(weight))
    return total.hexdigest()
