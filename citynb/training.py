"""Step 4: train, the head first and then the whole network. Explained on *Train*."""

import json
import os
import time
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
            learning_rate, loss (training, mean over the epoch), and, where measured,
            validation_loss and validation_accuracy.
        seconds: float, wall-clock time of both phases, the tracing included.
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
            layer; used in the second phase.
        validate: bool, measure the validation split after each epoch of the second phase.
        seed: int, the order of the batches.
        checkpoint: folder for the state after each epoch, written whole or not at all. A
            training that was interrupted goes on from there and ends with the same weights.
        progress: bool, show a progress bar.

    Returns:
        TrainingRun.

    Raises:
        ValueError: an argument is unknown, the head has another number of classes than the
            task, the pictures do not fit, or the checkpoint is of another model or run.
        FloatingPointError: the loss is not finite; the weights are those of the step before.
        OSError: the checkpoint's folder cannot be written.
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
    head = model.get_layer("head")
    if model.output_shape[-1] != task.num_classes:
        raise ValueError(
            f"The head has {model.output_shape[-1]} outputs, but {task.name} has "
            f"{task.num_classes} classes {task.class_names}. Build it with "
            "citynb.classifier(backbone, task.num_classes)."
        )
    _check_pictures(model, task.train.inputs)

    started = time.perf_counter()
    state = _Checkpoint(checkpoint, model, {**settings, "examples": len(task.train)})
    state.resume()
    backbone = keras.Model(model.input, head.input)
    common = dict(batch_size=batch_size, seed=seed, progress=progress, state=state)
    common |= dict(optimizer=optimizer, schedule=schedule, weight_decay=weight_decay)

    if head_epochs and not state.past("head", head_epochs):
        freeze(backbone)
        head.trainable = True
        features = backbone.predict(task.train.inputs, batch_size=256, verbose=0)
        _train(
            head,
            features,
            task.train.labels,
            phase="head",
            epochs=head_epochs,
            learning_rate=head_learning_rate,
            **common,
        )
    if epochs:
        if batch_norm == "frozen":
            freeze(backbone, batch_norm_only=True)
        else:
            backbone.trainable = True
        head.trainable = True
        anchors = backbone.trainable_variables if l2_sp else []
        _train(
            model,
            task.train.inputs,
            task.train.labels,
            phase="network",
            epochs=epochs,
            learning_rate=learning_rate,
            validation=task.validation if validate else None,
            anchors=[(v, tf.constant(state.starts.get(v.path, v.numpy()))) for v in anchors],
            l2_sp=l2_sp,
            augment=augment,
            **common,
        )
    return TrainingRun(
        history=pd.DataFrame(state.history),
        seconds=time.perf_counter() - started,
        settings=settings,
    )


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
            0.0, max(1, steps * epochs - warmup), warmup_target=learning_rate, warmup_steps=warmup
        )
    if optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=weight_decay or None)
    else:
        optimizer = keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    variables = model.trainable_variables
    optimizer.build(variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    signature = [tf.TensorSpec([None, *inputs.shape[1:]]), tf.TensorSpec([None], labels.dtype)]

    @tf.function(input_signature=signature)  # one graph, also for the smaller last batch
    def step(batch, targets):
        with tf.GradientTape() as tape:
            loss = cross_entropy(targets, model(batch, training=True))
            loss += sum(tf.cast(extra, loss.dtype) for extra in model.losses)
            if anchors:
                distance = [tf.nn.l2_loss(v.value - start) for v, start in anchors]
                loss += l2_sp * tf.add_n(distance)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        if tf.math.is_finite(loss):  # else the weights stay as they were
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    first = state.begin(phase, optimizer)
    bar = tqdm(total=epochs * steps, initial=first * steps, desc=phase, disable=not progress, mininterval=1)
    try:
        for epoch in range(first, epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(labels))
            losses = []
            for rows in np.array_split(order, steps):
                batch = tf.convert_to_tensor(inputs[rows])
                if augment is not None:
                    batch = augment(batch)
                loss = float(step(batch, tf.convert_to_tensor(labels[rows])))
                if not np.isfinite(loss):
                    raise FloatingPointError(
                        f"The loss is {loss} in phase {phase!r}, epoch {epoch + 1}, step "
                        f"{len(losses) + 1} of {steps}, at learning rate "
                        f"{float(optimizer.learning_rate):.2g}. {_blame(model, batch)} "
                        "The weights are those of the step before."
                    )
                losses.append(loss)
                bar.update()
                bar.set_postfix(epoch=f"{epoch + 1}/{epochs}", loss=f"{loss:.3f}", refresh=False)
            row = {"phase": phase, "epoch": epoch + 1, "loss": float(np.mean(losses))}
            row["learning_rate"] = float(optimizer.learning_rate)
            if validation is not None:
                logits = model.predict(validation.inputs, batch_size=256, verbose=0)
                row["validation_loss"] = float(cross_entropy(validation.labels, logits))
                row["validation_accuracy"] = float((logits.argmax(-1) == validation.labels).mean())
            state.finish(row, optimizer)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(
            f"Stopped in phase {phase!r}, epoch {epoch + 1} of {epochs}. "
            + (
                f"Call fine_tune() again with checkpoint={str(state.folder)!r} to go on."
                if state.folder
                else "Give fine_tune() a checkpoint folder to be able to go on next time."
            )
        )
        raise
    finally:
        bar.close()


class _Checkpoint:
    """The state after the newest epoch: variables, optimizer, history, in one file."""

    def __init__(self, folder, model, settings):
        self.folder = Path(folder) if folder else None
        self.model = model
        # Compare through JSON, so that what was written equals what is asked.
        self.identity = json.loads(
            json.dumps(
                {
                    "settings": settings,
                    "variables": [[v.path, list(v.shape)] for v in model.variables],
                },
                default=str,
            )
        )
        self.history = []
        self.optimizer_values = None
        self.starts = {}
        if self.folder:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / ".write").touch()
                (self.folder / ".write").unlink()
            except OSError as error:
                raise OSError(
                    f"The checkpoint folder {self.folder} cannot be written ({error.strerror}). "
                    "Choose another with checkpoint=, or leave it out."
                ) from error
            # L2-SP pulls towards the weights before the first epoch, also after a resume.
            self.starts = {v.path: v.numpy() for v in model.variables}

    @property
    def file(self):
        return self.folder / "state.npz"

    def resume(self):
        """Load the newest state, if there is one."""
        if not self.folder or not self.file.exists():
            return
        try:
            with np.load(self.file, allow_pickle=False) as saved:
                arrays = {key: saved[key] for key in saved.files}
            meta = json.loads(str(arrays["meta"]))
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise ValueError(
                f"{self.file} is not a checkpoint of citynb ({error}). Remove it, or choose "
                "another checkpoint folder."
            ) from error
        for part, what in (("variables", "model"), ("settings", "training run")):
            if meta["identity"][part] != self.identity[part]:
                raise ValueError(
                    f"{self.file} belongs to another {what}: "
                    f"{_first_difference(meta['identity'][part], self.identity[part])}. "
                    "Choose another checkpoint folder, or remove this one to start again."
                )
        for index, variable in enumerate(self.model.variables):
            self.starts[variable.path] = arrays[f"start_{index}"]
            variable.assign(arrays[f"variable_{index}"])
        self.history = meta["history"]
        self.optimizer_values = [
            arrays[f"optimizer_{index}"] for index in range(meta["optimizer_variables"])
        ]

    def past(self, phase, epochs):
        """Say whether this phase ended before the newest state."""
        return self._done(phase) >= epochs or (phase == "head" and self._done("network") > 0)

    def begin(self, phase, optimizer):
        """Give the optimizer its saved state and return the first epoch to run."""
        done = self._done(phase)
        if done and self.optimizer_values:
            for variable, value in zip(optimizer.variables, self.optimizer_values, strict=True):
                variable.assign(value)
        return done

    def finish(self, row, optimizer):
        """Record an epoch; write the whole state, or leave the one before."""
        self.history.append(row)
        if not self.folder:
            return
        arrays = {f"variable_{i}": v.numpy() for i, v in enumerate(self.model.variables)}
        arrays |= {f"start_{i}": self.starts[v.path] for i, v in enumerate(self.model.variables)}
        arrays |= {f"optimizer_{i}": v.numpy() for i, v in enumerate(optimizer.variables)}
        meta = {"identity": self.identity, "history": self.history}
        meta["optimizer_variables"] = len(optimizer.variables)
        unfinished = self.file.with_suffix(".part.npz")
        np.savez(unfinished, meta=json.dumps(meta), **arrays)
        os.replace(unfinished, self.file)

    def _done(self, phase):
        return sum(row["phase"] == phase for row in self.history)


def _first_difference(saved, wanted):
    pairs = zip(saved, wanted) if isinstance(saved, list) else (
        ((key, saved[key]), (key, wanted.get(key))) for key in saved
    )
    for one, other in pairs:
        if one != other:
            return f"it has {one}, this one has {other}"
    return f"it has {len(saved)} entries, this one has {len(wanted)}"


def _check_pictures(model, pictures):
    wanted = model.input_shape[1:]
    if pictures.ndim != 4 or any(w not in (None, s) for w, s in zip(wanted, pictures.shape[1:])):
        raise ValueError(
            f"{model.name} takes pictures {wanted}, the task has {pictures.shape[1:]}. "
            "Build the model with citynb.classifier(backbone, num_classes, "
            "input_shape=task.input_shape)."
        )


def _blame(model, batch):
    """Say where the first number that is not finite stands: the data, a weight, or the loss."""
    if not np.isfinite(batch.numpy()).all():
        return "The batch itself holds NaN or infinity; look at the data and the augmentation."
    for variable in model.variables:
        if not np.isfinite(np.asarray(variable.numpy(), np.float64)).all():
            return f"The weight {variable.path} is not finite; it was so before this run."
    return "Data and weights are finite, so the step was too large: lower the learning rate."
