"""Step 4: train, the head first and then the whole network. Explained on *Train*."""

import contextlib
import json
import os
import time
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from citynb.heads import freeze

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "constant")


@dataclass
class TrainingRun:
    """What a training did.

    Attributes:
        history: DataFrame, a row for each epoch: phase ("head" or "network"), epoch,
            learning_rate (at the epoch's end), loss (training, mean over the steps), and,
            where measured, validation_loss and validation_accuracy.
        seconds: float, wall-clock time of both phases, the tracing included, and of the
            epochs before an interruption.
        settings: dict, the arguments that led here.
    """

    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    seconds: float = 0.0
    settings: dict = field(default_factory=dict)


def fine_tune(
    model,
    task,
    *,
    head_epochs=20,
    epochs=5,
    batch_size=32,
    optimizer="adamw",
    learning_rate=1e-4,
    head_learning_rate=3e-3,
    schedule="cosine",
    weight_decay=1e-4,
    l2_sp=0.0,
    batch_norm="frozen",
    augment=None,
    validate=True,
    seed=0,
    checkpoint=None,
    progress=True,
):
    """Train the head on frozen features, then the whole network (Kumar et al. 2022, LP-FT).

    The first phase computes the backbone's features once and trains the head on them, so an
    epoch costs what a logistic regression costs. The second phase trains everything, with
    BatchNorm frozen unless asked. `epochs=0` is feature extraction; `head_epochs=0` with
    `batch_norm="train"` is training from scratch.

    Args:
        model: keras.Model as `citynb.classifier` returns it; trained in place.
        task: CityTask; its test split is not read.
        head_epochs, epochs: int, passes over the training set in the two phases.
        batch_size: int, pictures a step.
        optimizer: `"sgd"` (momentum 0.9, as in the article) or `"adamw"`.
        learning_rate, head_learning_rate: float, the peak of each phase.
        schedule: `"cosine"` (a tenth of the steps to warm up, then to zero) or `"constant"`.
        weight_decay: float, decoupled (Loshchilov and Hutter 2019), on kernels only.
        l2_sp: float, pulls the backbone's weights back to where they started: adds
            l2_sp / 2 * ||w - w_start||^2 to the loss (Li et al. 2018, L2-SP).
        batch_norm: `"frozen"` keeps pretrained statistics; `"train"` lets them move.
        augment: a function of pictures (batch, height, width, 3), for example a Keras
            layer; used in the second phase. The random state of a layer is in the
            checkpoint; that of another function is not.
        validate: bool, measure the validation split after each epoch of the second phase.
        seed: int, the order of the batches.
        checkpoint: folder for the state at the start and after each epoch, written whole or
            not at all. Called again after an interruption, with the same arguments, the
            training goes on from there and ends with the same weights.
        progress: bool, show a progress bar.

    Returns:
        TrainingRun.

    Raises:
        ValueError: an argument is unknown or out of range, the model has no head, the head
            has another number of classes than the task, the pictures do not fit, or the
            checkpoint is damaged or of another model or run.
        FloatingPointError: the loss, its gradient or a feature is not finite. The message
            says where; the weights are those of the step before.
        OSError: the checkpoint's folder cannot be read or written.
    """
    settings = {
        key: value
        for key, value in locals().items()
        if key not in ("model", "task", "checkpoint", "progress", "augment")
    }
    for name, value, known in (
        ("optimizer", optimizer, OPTIMIZERS),
        ("schedule", schedule, SCHEDULES),
        ("batch_norm", batch_norm, ("frozen", "train")),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}.")
    for name, value, least in (
        ("head_epochs", head_epochs, 0),
        ("epochs", epochs, 0),
        ("batch_size", batch_size, 1),
        ("learning_rate", learning_rate, 0),
        ("head_learning_rate", head_learning_rate, 0),
        ("weight_decay", weight_decay, 0),
        ("l2_sp", l2_sp, 0),
    ):
        if not least <= value < np.inf:
            raise ValueError(f"{name} is {value!r}; it must be finite and {least} or more.")
    _check_model(model, task)

    head = model.get_layer("head")
    backbone = keras.Model(model.input, head.input)
    pulled = backbone.variables if l2_sp else []
    data = f"{task.name}, {len(task.train)} examples, crc {zlib.crc32(task.train.labels):08x}"
    state = _Checkpoint(
        checkpoint,
        variables=[*model.variables, *getattr(augment, "variables", ())],
        anchors=[variable.numpy() for variable in pulled],
        settings={**settings, "data": data, "augmentation": augment is not None},
    )
    common = dict(batch_size=batch_size, seed=seed, progress=progress, state=state)
    common |= dict(optimizer=optimizer, schedule=schedule, weight_decay=weight_decay)

    if state.done("head") < head_epochs and not state.done("network"):
        freeze(backbone)
        head.trainable = True
        features = backbone.predict(task.train.inputs, batch_size=256, verbose=0)
        if not np.isfinite(features).all():
            row = int(np.argwhere(~np.isfinite(features))[0][0])
            raise FloatingPointError(
                f"The backbone's features of training example {row} are not finite. "
                f"{_blame(model, task.train.inputs[row : row + 1], [row])}"
            )
        _train(
            head,
            features.astype(np.float32),  # a backbone in half precision gives half precision
            task.train.labels,
            phase="head",
            epochs=head_epochs,
            learning_rate=head_learning_rate,
            **common,
        )
    if epochs:
        head.trainable = True
        if batch_norm == "frozen":
            freeze(backbone, batch_norm_only=True)
        else:
            for layer in backbone._flatten_layers():
                layer.trainable = True
                if hasattr(layer, "freeze_batch_norm"):  # a Hub model has its own switch
                    layer.freeze_batch_norm = False
        _train(
            model,
            task.train.inputs,
            task.train.labels,
            phase="network",
            epochs=epochs,
            learning_rate=learning_rate,
            validation=task.validation if validate else None,
            anchors=[(v, a) for v, a in zip(pulled, state.anchors, strict=True) if v.trainable],
            l2_sp=l2_sp,
            augment=augment,
            **common,
        )
    return TrainingRun(pd.DataFrame(state.history), state.seconds(), settings)


def _train(
    model, inputs, labels, *, phase, epochs, batch_size, learning_rate, optimizer, schedule,
    weight_decay, seed, progress, state, validation=None, anchors=(), l2_sp=0.0, augment=None,
):  # fmt: skip
    """Run one phase: the loop of page *Train*, with checks for what goes wrong in practice."""
    steps = -(-len(labels) // batch_size)
    rate = learning_rate
    if schedule == "cosine":
        warmup = max(1, steps * epochs // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            learning_rate / warmup,  # not zero, which would waste the first step
            max(1, steps * epochs - warmup),
            warmup_target=learning_rate,
            warmup_steps=warmup,
        )
    if optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=weight_decay or None)
    else:
        optimizer = keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    variables = model.trainable_variables
    # A kernel has two axes or more; biases and the scales of BatchNorm do not decay.
    optimizer.exclude_from_weight_decay([v for v in variables if len(v.shape) < 2])
    scales_loss = model.dtype_policy.name == "mixed_float16"
    if scales_loss:  # small gradients would vanish in half precision
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    signature = [tf.TensorSpec([None, *inputs.shape[1:]]), tf.TensorSpec([None], labels.dtype)]

    @tf.function(input_signature=signature)  # one graph, also for the smaller last batch
    def step(batch, targets):
        # The forward pass already moves BatchNorm's statistics and the seeds of dropout.
        before = [tf.identity(v.value) for v in model.non_trainable_variables]
        with tf.GradientTape() as tape:
            loss = cross_entropy(targets, model(batch, training=True))
            loss += sum(tf.cast(extra, loss.dtype) for extra in model.losses)
            if anchors:
                distance = [tf.nn.l2_loss(v.value - start) for v, start in anchors]
                loss += l2_sp * tf.add_n(distance)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        finite = tf.math.is_finite(loss)
        if not scales_loss:  # else the optimizer leaves such a step out and lowers the scale
            finite &= tf.math.is_finite(tf.linalg.global_norm(gradients))
        if finite:
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        else:
            for variable, value in zip(model.non_trainable_variables, before, strict=True):
                variable.assign(value)
        return loss, finite

    epoch = first = state.begin(phase, optimizer)
    bar = tqdm(
        total=epochs * steps,
        initial=first * steps,
        desc=phase,
        disable=not progress,
        mininterval=1,
    )
    try:
        for epoch in range(first, epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(labels))
            losses = []
            for rows in np.array_split(order, steps):
                batch = tf.convert_to_tensor(inputs[rows])
                if augment is not None:
                    batch = augment(batch)
                loss, finite = step(batch, tf.convert_to_tensor(labels[rows]))
                if not finite:
                    raise FloatingPointError(
                        f"The loss is {float(loss):.3g} and it or its gradient is not finite, in "
                        f"phase {phase!r}, epoch {epoch + 1}, step {len(losses) + 1} of {steps}, "
                        f"at learning rate {float(optimizer.learning_rate):.2g}. "
                        f"{_blame(model, batch.numpy(), rows)} "
                        "The weights are those of the step before."
                    )
                losses.append(float(loss))
                bar.update()
                bar.set_postfix(
                    epoch=f"{epoch + 1}/{epochs}", loss=f"{losses[-1]:.3f}", refresh=False
                )
            row = {"phase": phase, "epoch": epoch + 1, "loss": float(np.mean(losses))}
            row["learning_rate"] = float(optimizer.learning_rate)
            if validation is not None:
                logits = model.predict(validation.inputs, batch_size=256, verbose=0)
                row["validation_loss"] = float(cross_entropy(validation.labels, logits))
                row["validation_accuracy"] = float((logits.argmax(-1) == validation.labels).mean())
            state.history.append(row)
            state.save(optimizer)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(
            f"Stopped in phase {phase!r}, epoch {epoch + 1} of {epochs}. "
            + (
                f"Call fine_tune() again with checkpoint={str(state.file.parent)!r} to go on."
                if state.file
                else "Give fine_tune() a checkpoint folder to be able to go on next time."
            )
        )
        raise
    finally:
        bar.close()


class _Checkpoint:
    """All that the next epoch depends on, in one file, so that a training survives any stop.

    Variables are told apart by their order, name and shape, not by their path: a notebook
    that builds the same network again gets other paths.
    """

    def __init__(self, folder, variables, anchors, settings):
        self.file = Path(folder) / "state.npz" if folder else None
        self.variables = variables
        self.anchors = anchors  # where L2-SP pulls to: the weights before the first epoch
        self.history = []
        self.optimizer_values = ()
        self.started = time.perf_counter()
        # Through JSON, so that what was written equals what is asked.
        identity = {
            "model": {f"variable {i}": [v.name, *v.shape] for i, v in enumerate(variables)},
            "training run": settings,
        }
        self.identity = json.loads(json.dumps(identity, default=str))
        if self.file and self.file.exists():
            self._load()
        else:  # also the start, to which an interrupted first epoch returns
            self.save()

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
        meta = {"identity": self.identity, "history": self.history, "seconds": self.seconds()}
        unfinished = self.file.with_name("state.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as stream:
                np.savez(stream, meta=json.dumps(meta), **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(unfinished, self.file)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            saved = f"epoch {len(self.history) - 1}" if self.history else "nothing"
            raise OSError(
                f"The checkpoint {self.file} cannot be written ({error.strerror or error}). "
                f"Saved so far: {saved}. Make room, or choose another folder with checkpoint=, "
                "and call fine_tune() again."
            ) from error

    def _load(self):
        try:
            with np.load(self.file, allow_pickle=False) as saved:
                arrays = {key: saved[key] for key in saved.files}
            meta = json.loads(str(arrays.pop("meta")))
            identity, self.history = meta["identity"], meta["history"]
            self.started -= meta["seconds"]
        except PermissionError as error:
            raise PermissionError(
                f"The checkpoint {self.file} cannot be read ({error.strerror}). Allow it, or "
                "choose another folder with checkpoint=."
            ) from error
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{self.file} is damaged or not a checkpoint of fine_tune() ({error}). Remove it "
                "to start again, or choose another folder with checkpoint=."
            ) from error
        for part, wanted in self.identity.items():
            found = identity[part]
            for key in {**found, **wanted}:
                if found.get(key) != wanted.get(key):
                    raise ValueError(
                        f"{self.file} belongs to another {part}: its {key} is {found.get(key)!r}, "
                        f"here it is {wanted.get(key)!r}. Remove it to start again, or choose "
                        "another folder with checkpoint=."
                    )
        # The file keeps the order in which save() wrote.
        values, self.anchors, self.optimizer_values = (
            [array for key, array in arrays.items() if key.startswith(part)]
            for part in ("variable", "anchor", "optimizer")
        )
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)


def _check_model(model, task):
    if "head" not in (layer.name for layer in model.layers):
        raise ValueError(
            f"{model.name} has no layer called 'head'. Build it with "
            "citynb.classifier(backbone, task.num_classes), or name its last layer so."
        )
    if model.output_shape[-1] != task.num_classes:
        raise ValueError(
            f"The head has {model.output_shape[-1]} outputs, but {task.name} has "
            f"{task.num_classes} classes {task.class_names}. Build it with "
            "citynb.classifier(backbone, task.num_classes)."
        )
    wanted, found = model.input_shape[1:], task.input_shape
    if len(wanted) != len(found) or any(
        w not in (None, f) for w, f in zip(wanted, found, strict=True)
    ):
        raise ValueError(
            f"{model.name} takes pictures {wanted}, the task has {found}. Build the model with "
            "citynb.classifier(backbone, task.num_classes, input_shape=task.input_shape)."
        )


def _blame(model, batch, rows):
    """Say where the first number that is not finite stands: a picture, a weight, or the step."""
    bad = ~np.isfinite(batch).reshape(len(batch), -1).all(1)
    if bad.any():
        return (
            f"Training example {rows[np.argmax(bad)]} holds NaN or infinity as the network sees "
            "it; look at the data and at the augmentation."
        )
    for variable in model.variables:
        if not np.isfinite(variable.numpy().astype(np.float64)).all():
            return f"The weight {variable.path} is not finite; it was so before this step."
    return "Data and weights are finite, so the step before was too large: lower the learning rate."
