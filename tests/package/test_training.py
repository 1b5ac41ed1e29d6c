"""fine_tune(): what moves, by how much, what stops it, and that it goes on where it stopped."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hub_server import save_reusable, tiny_resnet
from PIL import Image

import citynb
from citynb.tasks.pictures import PARTS, PictureFiles
from citynb.training.step import GuardedAdam, Trainer

QUIET = dict(progress=False, validate=False)
FULL = dict(QUIET, batch_size=24, schedule="constant", weight_decay=0.0)  # one step an epoch


def assert_same(found, wanted, but=(), **tolerance):
    for (path, one), other in zip(found.items(), wanted.values(), strict=True):
        if not any(part in path for part in but):
            np.testing.assert_allclose(one, other, err_msg=path, **(tolerance or {"atol": 1e-6}))


# --- What is computed -------------------------------------------------------------------------


def test_head_phase_equals_training_the_head_of_the_frozen_network(make_task, make_model, values):
    task, model, usual = make_task(), make_model(), make_model()
    before = values(model)
    citynb.fine_tune(
        model, task, head_epochs=4, epochs=0, optimizer="sgd", head_learning_rate=0.5, **FULL
    )
    citynb.freeze(usual.layers[-2])
    usual.compile(
        keras.optimizers.SGD(0.5, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for _ in range(4):
        usual.train_on_batch(task.train.inputs, task.train.labels)
    assert_same(values(model), values(usual), but=["seed"], rtol=1e-5, atol=1e-6)
    for path, value in values(model).items():
        assert np.array_equal(value, before[path]) == ("head" not in path)


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_batch_norm(make_task, make_model, values, batch_norm):
    model = make_model()
    before = values(model)
    citynb.fine_tune(model, make_task(), head_epochs=1, epochs=1, batch_norm=batch_norm, **QUIET)
    for path, value in values(model).items():
        if any(part in path for part in ("gamma", "beta", "moving")):
            assert np.array_equal(value, before[path]) == (batch_norm == "frozen"), path
        elif "seed" not in path:
            assert not np.array_equal(value, before[path]), path


@pytest.mark.slow
def test_batch_norm_of_a_hub_model(make_task, tmp_path, values):
    save_reusable(tiny_resnet(4), tmp_path)
    pictures = keras.Input((8, 8, 3))
    body = keras.Model(pictures, citynb.HubLayer(tmp_path, name="hub")(pictures))
    model = citynb.classifier(body, 3)
    for batch_norm, moves in (("frozen", False), ("train", True)):
        before = values(model)
        citynb.fine_tune(
            model, make_task(), head_epochs=0, epochs=1, batch_norm=batch_norm, **QUIET
        )
        for path, value in values(model).items():
            if "moving" in path:
                assert np.array_equal(value, before[path]) != moves, path


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_a_second_call_trains_what_the_first_froze(make_task, make_model, values, batch_norm):
    model, task = make_model(), make_task()
    citynb.fine_tune(model, task, head_epochs=1, epochs=0, **QUIET)
    before = values(model)
    citynb.fine_tune(model, task, head_epochs=0, epochs=1, batch_norm=batch_norm, **QUIET)
    for path, value in values(model).items():
        norm = any(part in path for part in ("gamma", "beta", "moving"))
        if "seed" not in path:
            moves = not norm or batch_norm == "train"
            assert np.array_equal(value, before[path]) != moves, path


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_is_decoupled_and_on_kernels_only(make_task, make_model, values, optimizer):
    ends = []
    for decay in (0.0, 0.1):
        model = make_model()
        before = values(model)
        options = {**FULL, "optimizer": optimizer, "weight_decay": decay, "batch_norm": "train"}
        citynb.fine_tune(model, make_task(), head_epochs=0, epochs=1, learning_rate=0.2, **options)
        ends.append(values(model))
    for path, value in before.items():
        shrunk = 0.2 * 0.1 * value if "kernel" in path else 0 * value
        np.testing.assert_allclose(ends[0][path] - ends[1][path], shrunk, atol=2e-6, err_msg=path)


def test_l2_sp_balances_the_gradient(make_task):
    """Where training ends, gradient + l2_sp * (w - w_start) = 0 in a linear backbone."""
    keras.utils.set_random_seed(0)
    task = make_task()
    linear = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    model = citynb.classifier(linear, 3)
    (start, _) = linear.get_weights()
    citynb.fine_tune(
        model,
        task,
        head_epochs=0,
        epochs=150,
        optimizer="sgd",
        learning_rate=0.02,
        l2_sp=5.0,
        **FULL,
    )
    with tf.GradientTape() as tape:
        logits = model(task.train.inputs, training=False)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
            task.train.labels, logits
        )
    gradient = tape.gradient(loss, linear.trainable_variables[0].value).numpy()
    moved = linear.get_weights()[0] - start
    assert np.abs(moved).max() > 1e-3
    np.testing.assert_allclose(moved, -gradient / 5.0, atol=0.02 * np.abs(moved).max())


@pytest.mark.slow
def test_schedules(make_task, make_model):
    run = dict(head_epochs=0, learning_rate=0.01, **{**QUIET, "batch_size": 8})  # 3 steps an epoch
    cosine = citynb.fine_tune(make_model(), make_task(), epochs=10, **run).history
    done = 3 * np.arange(1, 11)  # of 30 steps, 3 to warm up
    wanted = 0.005 * (1 + np.cos(np.pi * (done - 3) / 27))
    np.testing.assert_allclose(cosine["learning_rate"], wanted, atol=1e-7)
    constant = citynb.fine_tune(make_model(), make_task(), epochs=2, schedule="constant", **run)
    np.testing.assert_allclose(constant.history["learning_rate"], 0.01)


def test_the_first_step_of_the_cosine_counts(make_task, make_model, values):
    model, task = make_model(), make_task()
    before = values(model)
    options = {**FULL, "schedule": "cosine"}
    citynb.fine_tune(model, task, head_epochs=0, epochs=1, learning_rate=0.1, **options)
    assert np.abs(values(model)["conv/kernel"] - before["conv/kernel"]).max() > 0.01


@pytest.mark.slow
def test_it_learns_and_tells(make_task, make_model, capsys):
    task, model = make_task(examples=60), make_model(dropout=0.1)
    run = citynb.fine_tune(
        model, task, head_epochs=60, epochs=4, learning_rate=1e-2, head_learning_rate=0.05
    )
    history = run.history
    assert list(history["phase"]) == ["head"] * 60 + ["network"] * 4
    assert list(history["epoch"]) == [*range(1, 61), 1, 2, 3, 4]
    assert history["loss"].iloc[-1] < 0.8 * history["loss"].iloc[0]
    report = citynb.evaluate(model, task, "validation")
    assert report.accuracy > 0.6
    assert history["validation_accuracy"].iloc[-1] == pytest.approx(report.accuracy)
    assert run.seconds > 0 and run.settings["learning_rate"] == 1e-2
    shown = capsys.readouterr().err
    assert "head" in shown and "network" in shown and "epoch=4/4" in shown


@pytest.mark.slow
def test_one_seed_one_result(make_task, make_model, values):
    ends = []
    for seed in (1, 1, 2):
        model = make_model(dropout=0.5)
        options = dict(QUIET, batch_size=5, epochs=1, seed=seed)
        citynb.fine_tune(model, make_task(), head_epochs=1, learning_rate=0.01, **options)
        ends.append(values(model)["conv/kernel"])
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.allclose(ends[0], ends[2], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(make_task, make_model, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = make_model()
        run = citynb.fine_tune(
            model,
            make_task(),
            head_epochs=2,
            epochs=3,
            head_learning_rate=0.1,
            learning_rate=0.02,
            **FULL,
        )
    finally:
        keras.config.set_dtype_policy("float32")
    loss = run.history["loss"].to_numpy()
    assert np.isfinite(loss).all() and loss[-1] < loss[0]


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"optimizer": "adam"}, "optimizer is 'adam'; choose one of sgd, adamw"),
        ({"schedule": "linear"}, "schedule is 'linear'; choose one of cosine, constant"),
        ({"batch_norm": True}, "batch_norm is True; choose one of frozen, train"),
        ({"epochs": -1}, "epochs is -1; it must be a whole number, 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number, 1 or more"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
        ({"learning_rate": np.nan}, "learning_rate is nan"),
        ({"l2_sp": np.inf}, "l2_sp is inf"),
    ],
)
def test_refuses_arguments(make_task, make_model, argument, message):
    with pytest.raises(ValueError, match=message):
        citynb.fine_tune(make_model(), make_task(), **argument)


def test_refuses_models_that_do_not_fit(make_task, make_model):
    with pytest.raises(ValueError, match=r"head has 4 outputs, but toy has 3 classes \('level 0'"):
        citynb.fine_tune(make_model(classes=4), make_task())
    with pytest.raises(ValueError, match=r"takes pictures \(8, 8, 3\), the task has \(8, 9, 3\)"):
        citynb.fine_tune(make_model(), make_task(shape=(8, 9, 3)))
    with pytest.raises(ValueError, match="tiny has no layer called 'head'"):
        citynb.fine_tune(make_model().layers[-2], make_task())


# --- What goes wrong on the way ---------------------------------------------------------------


class Watched(keras.layers.Layer):
    """An augmentation that counts its calls, tells somebody, and spoils the n-th batch."""

    def __init__(self, tell, broken=-1, layer=None):
        super().__init__()
        self.tell, self.broken, self.layer = tell, broken, layer
        self.calls = self.add_weight(shape=(), dtype="int32", trainable=False, name="calls")

    def call(self, pictures):
        self.calls.assign_add(1)

        def tell(call):
            self.tell(int(call))

        with tf.control_dependencies([tf.numpy_function(tell, [self.calls.value], [])]):
            pictures = tf.identity(pictures)
        if self.layer is not None:
            pictures = self.layer(pictures, training=True)
        nan = tf.cast(np.nan, pictures.dtype)
        return tf.where(self.calls.value == self.broken, nan, pictures)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_nan_stops_at_once_and_leaves_the_step_before(make_task, make_model, values, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model, seen = make_model(dropout=0.5), {}
        watched = Watched(lambda call: seen.setdefault(call, values(model)), broken=3)
    finally:
        keras.config.set_dtype_policy("float32")
    options = dict(QUIET, batch_size=5, batch_norm="train", augment=watched)
    message = (
        "loss is nan.*'network', epoch 1, step 3 of 5, at learning rate 0.05.*"
        r"example \d+ holds NaN.*augmentation.*step before"
    )
    with pytest.raises(FloatingPointError, match=message):
        citynb.fine_tune(
            model, make_task(), head_epochs=0, schedule="constant", learning_rate=0.05, **options
        )
    assert list(seen) == [1, 2, 3]  # the count, too, is that before the bad step
    after = values(model)
    for path, value in seen[3].items():  # statistics of BatchNorm, too
        if "seed" not in path:
            np.testing.assert_array_equal(after[path], value, err_msg=path)
        else:  # the dropout of the third step may have drawn before the look at it
            assert after[path].tolist() == [0, 2]
    assert not np.array_equal(seen[3]["conv/kernel"], seen[1]["conv/kernel"])


def test_the_optimizer_keeps_its_slots_after_a_bad_step(make_task, make_model):
    """Two good steps and a bad one leave the optimizer where two good steps do."""
    pictures = make_task().train.inputs.copy()
    ends = []
    for broken in (False, True):
        network = make_model()
        trainer = Trainer(network)
        optimizer = GuardedAdam(0.01, 1e-3)
        optimizer.build(network.trainable_variables)
        trainer.compile(optimizer, jit_compile=False)
        batches = [pictures[:8], pictures[8:16], np.full_like(pictures[:8], np.nan)]
        for batch in batches[: 2 + broken]:
            trainer.train_step((tf.constant(batch), tf.constant(np.arange(8) % 3), tf.constant(8)))
        ends.append([variable.numpy() for variable in optimizer.variables])
        assert int(trainer.bad_step) == (2 if broken else -1)
    for clean, latched in zip(*ends, strict=True):
        np.testing.assert_array_equal(clean, latched)


def test_a_step_that_loss_scaling_skips_is_not_bad(make_task, make_model):
    """A scale too large for half precision is lowered step by step; training then goes on."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = make_model()
    finally:
        keras.config.set_dtype_policy("float32")
    trainer, task = Trainer(network), make_task()
    optimizer = keras.optimizers.LossScaleOptimizer(GuardedAdam(0.01, 0.0), initial_scale=2.0**30)
    optimizer.build(network.trainable_variables)
    trainer.compile(optimizer, jit_compile=False, auto_scale_loss=False)
    before = network.get_weights()
    trainer.fit(task.train.batches(4, seed=0), epochs=4, verbose=0)
    assert int(trainer.bad_step) == -1 and float(optimizer.dynamic_scale) < 2.0**30
    assert not np.array_equal(before[0], network.get_weights()[0])


def test_nan_in_validation_is_named(make_task, make_model):
    task = make_task()
    broken = task.validation.inputs.copy()
    broken[3] = 0.0  # brightness 0 becomes NaN in a network that divides by it
    pictures = keras.Input((8, 8, 3))
    mean = keras.ops.mean(pictures, (1, 2))
    body = keras.Model(pictures, keras.layers.Dense(4)(mean / keras.ops.sum(mean, 1, True)))
    model = citynb.classifier(body, 3)
    task = replace(task, validation=replace(task.validation, inputs=broken))
    with pytest.raises(FloatingPointError, match="loss on the validation split is not finite"):
        citynb.fine_tune(model, task, head_epochs=0, epochs=1, progress=False)


def test_a_step_too_large_is_named(make_task, make_model, values):
    model = make_model()
    with pytest.raises(FloatingPointError, match="step before was too large: lower the learning"):
        citynb.fine_tune(model, make_task(), head_epochs=0, learning_rate=1e30, **FULL)
    assert all(np.isfinite(value).all() for value in values(model).values())


def test_a_head_step_that_overflows_stops(make_task, make_model, values, tmp_path):
    """The last step of an epoch leaves no loss that could tell; the weights themselves are asked."""
    model = make_model()
    norm = model.layers[-2].get_layer("norm")
    norm.gamma.assign(1e3 * norm.gamma)  # large features, and so a large gradient
    with pytest.raises(FloatingPointError, match="phase 'head'"):
        citynb.fine_tune(
            model, make_task(), head_epochs=1, epochs=0, head_learning_rate=3.4e38,
            checkpoint=tmp_path, **{**FULL, "optimizer": "sgd"},
        )  # fmt: skip
    with np.load(tmp_path / "state.npz") as saved:
        assert all(np.isfinite(saved[key]).all() for key in saved.files if key != "meta")


def test_a_broken_weight_is_named(make_task, make_model):
    model = make_model()
    model.layers[-2].get_layer("conv").bias.assign(np.full(6, np.nan))
    message = "features of training example 0 are not finite. The weight conv/bias is not finite"
    with pytest.raises(FloatingPointError, match=message):
        citynb.fine_tune(model, make_task(), **QUIET)


# --- Interruption and resumption --------------------------------------------------------------

LONG = dict(
    head_epochs=2, epochs=2, batch_size=8, optimizer="sgd", learning_rate=0.05, l2_sp=2.0,
    head_learning_rate=0.1, batch_norm="train", **QUIET,
)  # fmt: skip


class Flips(Watched):
    """A random augmentation with a state, that stops the program in its n-th batch."""

    def __init__(self, stop_at=None, how=None):
        flip = keras.layers.RandomFlip(seed=3)
        super().__init__(lambda call: how() if call == stop_at else None, layer=flip)


def press_stop():
    os.kill(os.getpid(), signal.SIGINT)  # what Jupyter's stop button sends


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def uninterrupted(make_task, make_model):
    model = make_model(dropout=0.5)
    run = citynb.fine_tune(model, make_task(), augment=Flips(), **LONG)
    return {v.path: v.numpy() for v in model.variables}, run.history


def finish(folder, uninterrupted, make_task, values, model):
    """Resume; the weights and the history must be those of the training that never stopped."""
    run = citynb.fine_tune(model, make_task(), augment=Flips(), checkpoint=folder, **LONG)
    for (path, value), wanted in zip(values(model).items(), uninterrupted[0].values(), strict=True):
        np.testing.assert_array_equal(value, wanted, err_msg=path)
    pd.testing.assert_frame_equal(run.history, uninterrupted[1], check_exact=True)
    assert sorted(path.name for path in Path(folder).iterdir()) == ["lock", "state.npz"]
    return run


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 5])  # in the network's first and second epoch of 3 steps
def test_resume_in_the_same_notebook(
    make_task, make_model, values, uninterrupted, tmp_path, stop_at
):
    model, flips = make_model(dropout=0.5), Flips(stop_at, press_stop)
    with pytest.raises(KeyboardInterrupt) as stopped:
        citynb.fine_tune(model, make_task(), augment=flips, checkpoint=tmp_path, **LONG)
    note = f"Stopped in phase 'network', epoch {1 + stop_at // 3} of 2. Call fine_tune() again with"
    assert stopped.value.__notes__[0].startswith(note)
    # The same model, its weights somewhere between two epochs: the anchors of L2-SP are in
    # the file, not in the model.
    finish(tmp_path, uninterrupted, make_task, values, model)
    with np.load(tmp_path / "state.npz") as saved:
        before = json.loads(str(saved["meta"]))["seconds"]
    again = finish(tmp_path, uninterrupted, make_task, values, make_model(dropout=0.5))
    assert again.seconds > before  # the time before the interruption counts


@pytest.mark.slow
def test_resume_after_kill(make_task, make_model, values, uninterrupted, tmp_path):
    """A second process dies by SIGKILL in its second network epoch; this one goes on."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1:4]\n"
        "import citynb, conftest, test_training as t\n"
        "task, model = conftest.make_task.__wrapped__()(), conftest.make_model.__wrapped__()(dropout=0.5)\n"
        "citynb.fine_tune(model, task, augment=t.Flips(5, t.kill), checkpoint=sys.argv[4], **t.LONG)\n"
    )
    here = Path(__file__).resolve()
    child = subprocess.run(
        [sys.executable, "-c", code, here.parent, *here.parents[1:3], tmp_path], capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    finish(tmp_path, uninterrupted, make_task, values, make_model(dropout=0.5))


@pytest.mark.slow
def test_full_disk(make_task, make_model, values, uninterrupted, tmp_path):
    """The file system takes the start, but not the larger state after the head's first epoch."""
    task, model = make_task(), make_model(dropout=0.5)
    citynb.fine_tune(
        model,
        task,
        augment=Flips(),
        checkpoint=tmp_path / "probe",
        **{**LONG, "head_epochs": 0, "epochs": 0},
    )
    size = (tmp_path / "probe" / "state.npz").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "full"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(OSError, match="state.npz cannot be written .*Make room") as failed:
            citynb.fine_tune(model, task, augment=Flips(), checkpoint=folder, **LONG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Saved so far: epoch 0" in str(failed.value)
    finish(folder, uninterrupted, make_task, values, model)


def test_no_folder_to_write(make_task, make_model, values, tmp_path):
    model = make_model()
    before = values(model)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written .Not a directory.*checkpoint="):
        citynb.fine_tune(model, make_task(), checkpoint=tmp_path / "file" / "folder", **QUIET)
    locked = Path("/proc/citynb") if os.geteuid() == 0 else tmp_path / "locked" / "folder"
    if os.geteuid():
        locked.parent.mkdir(mode=0o500)
    with pytest.raises(OSError, match=f"{locked}/state.npz cannot be written"):
        citynb.fine_tune(model, make_task(), checkpoint=locked, **QUIET)
    assert_same(values(model), before)  # refused before any training


@pytest.fixture(scope="module")
def checkpoint(make_task, make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    citynb.fine_tune(make_model(), make_task(), head_epochs=1, epochs=0, checkpoint=folder, **QUIET)
    return folder / "state.npz"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 4}, r"another network: its variable \d+ is \['kernel', 6, 3\], here it is"),
        ({"seed": 5}, "another training run: its seed is 0, here it is 5"),
        ({"head_epochs": 2}, "its head_epochs is 1, here it is 2"),
        ({"examples": 30}, "belongs to another data: its training examples is 24, here it is 30"),
        ({"augment": tf.identity}, "its augmentation is None, here it is 'function'"),
    ],
)
def test_checkpoint_of_something_else(make_task, make_model, values, checkpoint, change, message):
    options = {"head_epochs": 1, "epochs": 0, **QUIET, **change}
    shape = {key: options.pop(key) for key in ("classes", "examples") if key in options}
    model = make_model(classes=shape.get("classes", 3))
    before = values(model)
    with pytest.raises(ValueError, match=message):
        citynb.fine_tune(model, make_task(**shape), checkpoint=checkpoint.parent, **options)
    assert_same(values(model), before)


@pytest.mark.parametrize("damage", ["cut", "bytes", "text", "other", "empty"])
def test_damaged_checkpoint(make_task, make_model, values, checkpoint, tmp_path, damage):
    content, file = checkpoint.read_bytes(), tmp_path / "state.npz"
    middle = content.index(b"variable 0.npy") + 200
    flipped = content[:middle] + bytes(255 - b for b in content[middle : middle + 50])
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    file.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "bytes": flipped + content[len(flipped) :],
            "text": b"not a checkpoint",
            "other": (tmp_path / "other.npz").read_bytes(),
            "empty": b"",
        }[damage]
    )
    model = make_model()
    before = values(model)
    with pytest.raises(ValueError, match="state.npz is damaged or not a checkpoint.*Remove it"):
        citynb.fine_tune(model, make_task(), head_epochs=1, epochs=0, checkpoint=tmp_path, **QUIET)
    assert_same(values(model), before)


def test_checkpoint_of_other_pictures(make_task, make_model, checkpoint):
    """The same labels, and one pixel of one picture is another."""
    task = make_task()
    inputs = task.train.inputs.copy()
    inputs[5, 0, 0, 0] += 0.001
    other = replace(task, train=replace(task.train, inputs=inputs))
    with pytest.raises(ValueError, match="belongs to another data: its training pictures is"):
        citynb.fine_tune(
            make_model(), other, head_epochs=1, epochs=0, checkpoint=checkpoint.parent, **QUIET
        )


def test_checkpoint_of_other_start_weights(make_task, make_model, values, checkpoint):
    model = make_model(seed=7)
    before = values(model)
    with pytest.raises(ValueError, match="began with other weights than tiny_classifier has now"):
        citynb.fine_tune(
            model, make_task(), head_epochs=1, epochs=0, checkpoint=checkpoint.parent, **QUIET
        )
    assert_same(values(model), before)


def test_two_trainings_in_one_folder(make_task, make_model, tmp_path):
    told = []

    def second(_):
        with pytest.raises(ValueError, match="Another training is using the checkpoint folder"):
            citynb.fine_tune(make_model(), make_task(), checkpoint=tmp_path, **QUIET)
        told.append(True)

    def first_call(call):
        if call == 1:
            second(call)

    citynb.fine_tune(
        make_model(), make_task(), head_epochs=0, epochs=1, augment=Watched(first_call),
        checkpoint=tmp_path, **QUIET,
    )  # fmt: skip
    assert told


# --- Precision, augmentation, devices, and data larger than memory --------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_augmentation_in_half_precision(make_task, make_model, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model, flip = make_model(), keras.layers.RandomFlip(seed=0)
        run = citynb.fine_tune(model, make_task(), head_epochs=1, epochs=1, augment=flip, **QUIET)
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(run.history["loss"]).all()


def test_a_gradient_that_is_never_finite_stops_half_precision(make_task, values):
    """The loss is finite, and no scale of it would help."""

    @tf.custom_gradient
    def broken(x):
        return tf.identity(x), lambda upstream: upstream * np.nan

    class Broken(keras.layers.Layer):
        def call(self, x):
            return broken(x)

    keras.config.set_dtype_policy("mixed_float16")
    try:
        pictures = keras.Input((8, 8, 3))
        x = Broken()(keras.layers.Conv2D(4, 3)(pictures))
        body = keras.Model(pictures, keras.layers.GlobalAveragePooling2D()(x))
        model = citynb.classifier(body, 3)
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(FloatingPointError, match="it or its gradient is not finite"):
        citynb.fine_tune(model, make_task(), head_epochs=0, epochs=60, **QUIET)


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float64"])
def test_other_precisions_are_refused_at_once(make_task, make_model, values, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = make_model()
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(ValueError, match=f"computes in {policy}; fine_tune.. trains in float32"):
        citynb.fine_tune(model, make_task(), **QUIET)


def test_an_augmentation_that_changes_the_shape_is_one_sentence(make_task, make_model):
    with pytest.raises(ValueError, match=r"augment turns pictures \(None, 8, 8, 3\) into") as caught:
        citynb.fine_tune(
            make_model(), make_task(), head_epochs=0, epochs=1,
            augment=keras.layers.CenterCrop(4, 4), **QUIET,
        )  # fmt: skip
    assert len(str(caught.value)) < 250


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "memory map", "files"])
def test_pictures_that_are_not_in_memory_train_alike(make_task, make_model, values, tmp_path, kind):
    task = make_task()
    pictures = {p: (getattr(task, p).inputs * 255).round().astype("uint8") for p in PARTS}

    def stored(part):
        if kind == "files":
            paths = [tmp_path / f"{part}{i}.png" for i in range(len(pictures[part]))]
            for path, picture in zip(paths, pictures[part], strict=True):
                Image.fromarray(picture).save(path)
            return PictureFiles(paths, (8, 8))
        if kind == "memory map":
            np.save(tmp_path / f"{part}.npy", pictures[part])
            return np.load(tmp_path / f"{part}.npy", mmap_mode="r")
        return pictures[part]

    ends = []
    for inputs in (lambda part: (pictures[part] / 255).astype("float32"), stored):
        parts = {p: replace(getattr(task, p), inputs=inputs(p)) for p in PARTS}
        model = make_model()
        citynb.fine_tune(model, replace(task, **parts), head_epochs=2, epochs=2, progress=False)
        ends.append(values(model))
    assert_same(*ends, atol=1e-6)


def test_features_beyond_the_memory_limit_lie_in_a_file(make_task, make_model, values, monkeypatch):
    ends = []
    for limit in (2**30, 0):
        monkeypatch.setattr(citynb.training, "FEATURES_IN_MEMORY", limit)
        model = make_model()
        citynb.fine_tune(model, make_task(), head_epochs=3, epochs=0, **QUIET)
        ends.append(values(model))
    assert_same(*ends, atol=0)


def test_features_that_a_kill_left_are_written_over_and_nothing_else(
    make_task, make_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(citynb.training, "FEATURES_IN_MEMORY", 0)
    (tmp_path / "features-of-mine").mkdir()
    (tmp_path / citynb.training.FEATURES_FILE).write_bytes(b"left behind")
    citynb.fine_tune(make_model(), make_task(), head_epochs=1, checkpoint=tmp_path, **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "features-of-mine",
        "lock",
        "state.npz",
    ]


def test_checkpoint_of_another_picture_size_or_precision(make_task, make_model, tmp_path):
    task, files = make_task(), tmp_path / "pictures"
    files.mkdir()
    for number in range(24):
        picture = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(picture).save(files / f"{number}.png")
    paths = sorted(files.iterdir())

    def run(policy="float32", size=8):
        parts = {p: replace(getattr(task, p), inputs=PictureFiles(paths, (size, size))) for p in PARTS}
        keras.config.set_dtype_policy(policy)
        try:
            keras.utils.set_random_seed(0)
            pictures = keras.Input((None, None, 3))
            x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(pictures))
            model = citynb.classifier(keras.Model(pictures, x), 3)
        finally:
            keras.config.set_dtype_policy("float32")
        citynb.fine_tune(
            model, replace(task, **parts), head_epochs=1, epochs=0, checkpoint=tmp_path / "c", **QUIET
        )

    run()
    with pytest.raises(ValueError, match="another data: its training pictures"):
        run(size=12)
    with pytest.raises(ValueError, match="another network: its precision is"):
        run("mixed_bfloat16")


def test_a_picture_that_cannot_be_read_is_named(make_task, make_model, tmp_path):
    task = make_task()
    paths = [tmp_path / f"{i}.jpg" for i in range(24)]
    for path in paths:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    train = replace(task.train, inputs=PictureFiles(paths, (8, 8)))
    parts = {p: replace(getattr(task, p), inputs=np.zeros((24, 8, 8, 3), np.uint8)) for p in PARTS}
    task = replace(task, **{**parts, "train": train})
    content = paths[7].read_bytes()
    paths[7].write_bytes(content[: len(content) // 2])
    for epochs in (dict(head_epochs=1, epochs=0), dict(head_epochs=0, epochs=1)):
        with pytest.raises(ValueError, match="7.jpg"):
            citynb.fine_tune(make_model(), task, **epochs, **QUIET)


TWO_DEVICES = """
import contextlib, sys
import numpy as np, tensorflow as tf, keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path[:0] = sys.argv[1:]
import citynb, conftest
from dataclasses import replace
task = conftest.make_task.__wrapped__()(examples=49)  # batches of 7, 4 and 3 to a device
task = replace(task, validation=task.validation.take(range(7)))
runs = []
for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = conftest.make_model.__wrapped__()()
    run = citynb.fine_tune(
        model, task, head_epochs=2, epochs=3, batch_size=8, learning_rate=0.01, l2_sp=0.5,
        progress=False,
    )
    runs.append(run.history.drop(columns="phase").to_numpy(float))
np.testing.assert_allclose(*runs, atol=1e-5)
try:
    with strategy.scope():
        citynb.fine_tune(
            model, task, head_epochs=0, epochs=1, batch_size=8, learning_rate=1e30, progress=False
        )
except FloatingPointError as error:
    print("stopped:", error)
assert all(np.isfinite(v.numpy()).all() for v in model.trainable_variables)
"""


@pytest.mark.slow
def test_two_devices_give_the_losses_of_one(tmp_path):
    """A process of its own: how many devices there are is fixed when TensorFlow starts."""
    here = Path(__file__).resolve()
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TWO_DEVICES, here.parents[1], here.parents[2]],
        capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert "stopped: The loss is" in child.stdout and "lower the learning rate" in child.stdout
