"""Train: the head first, then the whole network. Step 4 of the workflow."""

import contextlib
import numbers
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from citynb.heads import all_layers, freeze, unfreeze
from citynb.inference import batch_size_for, outputs
from citynb.tasks.split import as_float, batch_rows, stream
from citynb.training.checkpoint import Checkpoint
from citynb.training.step import GuardedAdam, GuardedSGD, Trainer

OPTIMIZERS = {"sgd": GuardedSGD, "adamw": GuardedAdam}
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
FEATURES_IN_MEMORY = 2**30  # bytes; more of them are kept in a file
FEATURES_FILE = "features.part.npy"  # in the checkpoint's folder while the head trains
STEPS_AT_ONCE = 16  # the most that run before Python looks again


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
    `batch_norm="train"` is training from scratch. Both phases are `keras.Model.fit` with the
    step of `citynb.training.step`: XLA on a GPU, mixed precision and several devices
    (a model built in the scope of a `tf.distribute.MirroredStrategy`) come from Keras.

    Args:
        model: keras.Model as `citynb.classifier` returns it; trained in place.
        task: CityTask; its test split is not read.
        head_epochs, epochs: int, passes over the training set in the two phases.
        batch_size: int, pictures a step, over all devices.
        optimizer: `"sgd"` (momentum 0.9, as in the article) or `"adamw"`.
        learning_rate, head_learning_rate: float, the peak of each phase.
        schedule: `"cosine"` (a tenth of the steps to warm up, then to zero) or `"constant"`.
        weight_decay: float, decoupled (Loshchilov and Hutter 2019), on kernels only.
        l2_sp: float, pulls the backbone's weights back to where they started: adds
            l2_sp / 2 * ||w - w_start||^2 to the loss (Li et al. 2018, L2-SP).
        batch_norm: `"frozen"` keeps pretrained statistics; `"train"` lets them move.
        augment: keras.Layer on pictures (batch, height, width, 3), or a function made of
            TensorFlow operations; runs inside the step of the second phase. The random state
            of a layer is in the checkpoint.
        validate: bool, measure the validation split after each epoch of the second phase.
        seed: int, the order of the batches.
        checkpoint: folder for the state at the start and after each epoch, written whole or
            not at all. Called again after an interruption, with the same arguments, the
            training goes on from there and ends with the same weights, bit for bit.
        progress: bool, show a progress bar.

    Returns:
        TrainingRun.

    Raises:
        ValueError: an argument is unknown or out of range, the model has no head, the head
            has another number of classes than the task, the pictures do not fit, or the
            checkpoint is damaged, in use, or of another model, data or run.
        FloatingPointError: the loss, its gradient, a feature, a weight or the validation loss
            is not finite. The message says where; the weights are those of the step before, but
            as the last step left them where that step itself overflowed.
        OSError: the checkpoint's folder cannot be read or written.
    """
    settings = {
        key: value
        for key, value in locals().items()
        if key not in ("model", "task", "checkpoint", "progress", "augment")
    }
    _check_arguments(settings)
    settings["seed"] = seed = int(seed)  # a NumPy integer would be another text in the checkpoint
    _check_model(model, task)

    head = model.get_layer("head")
    backbone = keras.Model(model.input, head.input)
    pulled = backbone.variables if l2_sp else []
    with Checkpoint(
        checkpoint,
        model=model,
        variables=[*model.variables, *getattr(augment, "variables", ())],
        anchors=[variable.numpy() for variable in pulled],
        settings={**settings, "augmentation": augment and type(augment).__name__},
        splits={"training": task.train} | ({"validation": task.validation} if validate else {}),
    ) as state:
        common = dict(
            batch_size=batch_size, optimizer=optimizer, schedule=schedule,
            weight_decay=weight_decay, seed=seed, state=state, progress=progress,
        )  # fmt: skip
        if state.done("head") < head_epochs and not state.done("network"):
            freeze(backbone)
            head.trainable = True
            with _room_for(4 * len(task.train) * head.input.shape[-1], checkpoint) as file:
                features = outputs(backbone, task.train, file)
                _check_features(features, model, task.train)
                _fit(
                    head,
                    _Features(features, task.train.labels),
                    phase="head",
                    epochs=head_epochs,
                    learning_rate=head_learning_rate,
                    strategy=model.distribute_strategy,
                    **common,
                )
        if epochs:
            head.trainable = True
            if batch_norm == "frozen":
                freeze(backbone, batch_norm_only=True)
            else:
                unfreeze(backbone)
            _fit(
                model,
                task.train,
                phase="network",
                epochs=epochs,
                learning_rate=learning_rate,
                strategy=model.distribute_strategy,
                validation=task.validation if validate else None,
                augment=augment,
                l2_sp=l2_sp,
                anchors=[(v, a) for v, a in zip(pulled, state.anchors, strict=True) if v.trainable],
                **common,
            )
        return TrainingRun(pd.DataFrame(state.history), state.seconds(), settings)


@contextlib.contextmanager
def _room_for(size, checkpoint):
    """Yield where features of so many bytes shall lie: None is memory, a path is a file.

    The file is gone afterwards; one that a killed training left in the checkpoint is written over.
    """
    with contextlib.ExitStack() as stack:
        file = Path(checkpoint) / FEATURES_FILE if checkpoint else None
        if file:
            stack.callback(file.unlink, missing_ok=True)
        if size <= FEATURES_IN_MEMORY:
            yield None
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="citynb-"))
            yield file or Path(folder) / FEATURES_FILE


def _fit(
    network, split, *, phase, epochs, batch_size, learning_rate, optimizer, schedule, weight_decay,
    seed, state, progress, strategy, validation=None, augment=None, l2_sp=0.0, anchors=(),
):  # fmt: skip
    """Run one phase: `keras.Model.fit` with our step, from the epoch that the state says."""
    steps = -(-len(split) // batch_size)
    rate = learning_rate
    if schedule == "cosine":
        warmup = max(1, steps * epochs // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            learning_rate / warmup,  # not zero, which would waste the first step
            max(1, steps * epochs - warmup),
            warmup_target=learning_rate,
            warmup_steps=warmup,
        )
    replicas = strategy.num_replicas_in_sync
    if len(split) // steps < replicas:
        raise ValueError(
            f"Batches of {len(split) // steps} examples cannot be shared by {replicas} devices; "
            "choose a larger batch_size."
        )
    with strategy.scope():
        trainer = Trainer(network, augment=augment, l2_sp=l2_sp, anchors=anchors)
        momentum = {"momentum": 0.9} if optimizer == "sgd" else {}
        optimizer = OPTIMIZERS[optimizer](rate, weight_decay, **momentum)
        if any(part.dtype_policy.name == "mixed_float16" for part in all_layers(network)):
            # Small gradients would vanish in half precision.
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(network.trainable_variables)
        first = state.begin(phase, optimizer)
        trainer.compile(
            optimizer,
            # XLA gains on a GPU and loses on a CPU.
            jit_compile=bool(tf.config.list_physical_devices("GPU")),
            steps_per_execution=1 if replicas > 1 else _steps_at_once(steps),
            auto_scale_loss=False,
        )

    epoch = [first]  # that `fit` is in
    # One dataset for all epochs: to begin a new one in each would cost small networks dear.
    datasets = [split.batches(batch_size, seed, first, replicas, epochs - first)]
    if validation is not None:
        datasets.append(validation.batches(batch_size_for(validation), replicas=replicas))
    if replicas > 1:
        datasets = [
            strategy.distribute_datasets_from_function(lambda _, dataset=dataset: dataset)
            for dataset in datasets
        ]
    bar = tqdm(
        total=epochs * steps, initial=first * steps, desc=phase, disable=not progress, mininterval=1
    )

    def seen(rows):
        """The pictures as the bad step saw them: the random state is again that before it."""
        return trainer.augmented(as_float(tf.constant(split.read(rows)))).numpy()

    def after_steps(step, logs):
        bar.update((epoch[0] * steps + step + 1) - bar.n)
        bar.set_postfix(epoch=f"{epoch[0] + 1}/{epochs}", loss=f"{logs['loss']:.3f}", refresh=False)
        if logs["bad_step"] >= 0:
            rows = batch_rows(len(split), batch_size, seed, epoch[0])[int(logs["bad_step"])]
            raise FloatingPointError(
                f"The loss is {logs['bad_loss']:.3g} and it or its gradient is not finite, in "
                f"phase {phase!r}, epoch {epoch[0] + 1}, step {int(logs['bad_step']) + 1} of "
                f"{steps}, at learning rate {_rate(optimizer):.2g}. "
                f"{_blame(network, seen(rows), rows)} The weights are those of the step before."
            )

    def after_epoch(_, logs):
        row = {"phase": phase, "epoch": epoch[0] + 1, "loss": float(logs["loss"])}
        row["learning_rate"] = _rate(optimizer)
        if validation is not None:
            row["validation_loss"] = float(logs["val_loss"])
            row["validation_accuracy"] = float(logs["val_accuracy"])
        broken = [v.path for v in network.variables if not _finite(v)]
        if broken or not np.isfinite(list(row.values())[2:]).all():
            what = f"The weight {broken[0]}" if broken else "The loss on the validation split"
            raise FloatingPointError(
                f"{what} is not finite after phase {phase!r}, epoch {epoch[0] + 1}: the last steps "
                f"were too large at learning rate {learning_rate:.2g}, or a picture of validation "
                "is broken. Lower the rate, and start again from the pretrained weights."
            )
        state.history.append(row)
        state.save(optimizer)

    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda number, _: epoch.__setitem__(0, number) or trainer.step.assign(0),
        on_train_batch_end=after_steps,
        on_epoch_end=after_epoch,
    )
    train, *held_out = datasets
    unwrapped = [part.reading() for part in (split, validation) if part is not None]
    try:
        with contextlib.ExitStack() as stack:
            for reading in unwrapped:  # an error in a picture is raised as it was
                stack.enter_context(reading)
            if first < epochs:
                trainer.fit(
                    train, validation_data=held_out[0] if held_out else None, epochs=epochs,
                    initial_epoch=first, steps_per_epoch=steps, shuffle=False, verbose=0,
                    callbacks=[watch],
                )  # fmt: skip
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(
            f"Stopped in phase {phase!r}, epoch {epoch[0] + 1} of {epochs}. "
            + (
                f"Call fine_tune() again with checkpoint={str(state.file.parent)!r} to go on."
                if state.file
                else "Give fine_tune() a checkpoint folder to be able to go on next time."
            )
        )
        raise
    finally:
        bar.close()


class _Features:
    """Cached features (n, d), given to the training as a split gives its pictures."""

    def __init__(self, features, labels):
        self.features, self.labels = features, labels

    def __len__(self):
        return len(self.labels)

    def read(self, rows):
        return np.asarray(self.features[rows])

    def batches(self, *order):
        return stream(self.read, self.features, self.labels, *order)

    def reading(self):
        return contextlib.nullcontext()


def _check_arguments(settings):
    for name, known in (
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("batch_norm", ("frozen", "train")),
    ):
        if settings[name] not in known:
            raise ValueError(f"{name} is {settings[name]!r}; choose one of {', '.join(known)}.")
    for name, least in (("head_epochs", 0), ("epochs", 0), ("batch_size", 1), ("seed", 0)):
        value = settings[name]
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number, {least} or more.")
    for name in ("learning_rate", "head_learning_rate", "weight_decay", "l2_sp"):
        value = settings[name]
        if not isinstance(value, numbers.Real) or not 0 <= value < np.inf:
            raise ValueError(f"{name} is {value!r}; it must be finite and 0 or more.")


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
    for layer in all_layers(model):
        if layer.dtype_policy.name not in PRECISIONS:
            raise ValueError(
                f"The layer {layer.name} computes in {layer.dtype_policy.name}; fine_tune() trains "
                f"in {', '.join(PRECISIONS)}. Call keras.config.set_dtype_policy('float32') "
                "and build the model again."
            )


def _check_features(features, model, split):
    for rows in np.array_split(np.arange(len(features)), -(-len(features) // 4096)):
        bad = ~np.isfinite(features[rows]).all(1)
        if bad.any():
            row = rows[bad.argmax()]
            raise FloatingPointError(
                f"The backbone's features of training example {row} are not finite. "
                f"{_blame(model, as_float(split.read(np.array([row]))), [row])}"
            )


def _blame(model, batch, rows):
    """Say where the first number that is not finite stands: a picture, a weight, or the step.

    Args:
        model: keras.Model whose weights are those of the step before.
        batch: float array (batch, ...), as the network saw it.
        rows: int array (batch,), the examples' places in the split.
    """
    bad = ~np.isfinite(batch).reshape(len(batch), -1).all(1)
    if bad.any():
        return (
            f"Training example {rows[np.argmax(bad)]} holds NaN or infinity as the network sees "
            "it; look at the data and at the augmentation."
        )
    for variable in model.variables:
        if not _finite(variable):
            return f"The weight {variable.path} is not finite; it was so before this step."
    return "Data and weights are finite, so the step before was too large: lower the learning rate."


def _finite(variable):
    return bool(np.isfinite(np.asarray(variable, np.float64)).all())


def _steps_at_once(steps):
    """Return how many steps run in one call: as many as possible, and a whole part of an epoch."""
    return max(n for n in range(1, STEPS_AT_ONCE + 1) if steps % n == 0)


def _rate(optimizer):
    """Return the learning rate of the next step; the outer optimizer of loss scaling has none."""
    return float(getattr(optimizer, "inner_optimizer", optimizer).learning_rate)
