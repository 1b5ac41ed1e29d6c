"""The shipped `city_resnet`: the form TensorFlow Hub serves, and the accuracy that its card prints."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from citynb.networks.city_resnet import load_weights, network
from models.city_resnet import train
from simulation.labels import column

tf = pytest.importorskip("tensorflow")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "models" / "city_resnet"


@pytest.fixture()
def served():
    return tf.saved_model.load(str(FOLDER / "saved_model"))


@pytest.fixture(scope="module")
def sample():
    with np.load(ROOT / "data" / "junctions" / "source_sample.npz") as archive:
        return dict(archive)


def test_files_match_their_checksums():
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    apart = ("card.md", "train.py", "SHA256SUMS")
    files = [
        path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in str(path)
    ]
    assert {str(path.relative_to(FOLDER)) for path in files} - {*apart} == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_size():
    files = [path for path in (FOLDER / "saved_model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    assert max(path.stat().st_size for path in files) < 4 * 2**20


def test_the_form_of_a_reusable_saved_model(served):
    assert len(served.trainable_variables) > 20
    assert len(served.variables) > len(served.trainable_variables)
    kernels = [v for v in served.trainable_variables if len(v.shape) == 4]
    assert len(served.regularization_losses) == len(kernels)
    penalty = sum(float(loss()) for loss in served.regularization_losses)
    by_hand = sum(float(tf.reduce_sum(v**2)) for v in kernels)
    assert penalty == pytest.approx(2e-5 * by_hand, rel=1e-3)


def test_any_size_gives_a_feature_vector(served):
    for height, width in ((96, 96), (64, 64), (128, 160)):
        features = served(np.random.default_rng(0).random((2, height, width, 3), np.float32))
        assert features.shape == (2, 256)
        assert np.isfinite(features).all()


def test_batch_norm_moves_in_training_only(served, sample):
    images = sample["frames"][:16].astype(np.float32) / 255
    means = [v for v in served.variables if "moving_mean" in v.name]
    before = [v.numpy() for v in means]
    served(images, training=False)
    assert all(np.array_equal(v, b) for v, b in zip(means, before))
    served(images, training=True)
    assert not any(np.array_equal(v, b) for v, b in zip(means, before))


def test_every_weight_gets_a_gradient(served, sample):
    images = sample["frames"][:8].astype(np.float32) / 255
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(served(images, training=True) ** 2)
    assert all(g is not None for g in tape.gradient(loss, served.trainable_variables))


def test_the_shipped_weights_give_the_recorded_accuracy(served, sample):
    recorded = json.loads((FOLDER / "results.json").read_text())["scores"][
        "shipped sample / level_ahead"
    ]
    images = sample["frames"].astype(np.float32) / 255
    features = np.concatenate([served(images[i : i + 120]) for i in range(0, len(images), 120)])
    with np.load(FOLDER / "level_head.npz") as head:
        level = (features @ head["kernel"] + head["bias"]).argmax(1)
    assert len(images) == recorded["n"]
    # One picture on the edge between two levels may fall the other way on another processor.
    assert np.mean(level == sample["level_ahead"]) == pytest.approx(
        recorded["network"], abs=1.5 / len(images)
    )


def test_both_forms_give_the_same_features(served, sample):
    model = train.features_of(network())
    load_weights(model, FOLDER / "weights.npz")
    images = sample["frames"][:64].astype(np.float32) / 255
    assert np.allclose(model(images, training=False), served(images), atol=1e-5)


def test_the_weights_are_converted_from_the_saved_model(tmp_path, capsys):
    """Twice the same bytes, and those that are shipped."""
    shutil.copytree(FOLDER / "saved_model", tmp_path / "saved_model")
    train.convert(tmp_path)
    assert (tmp_path / "weights.npz").read_bytes() == (FOLDER / "weights.npz").read_bytes()


def test_a_short_pretraining_exports_both_forms(tmp_path, sample):
    """Three steps on the shipped sample: the loop runs, and what it writes reads back."""
    n = len(sample["frames"])
    density = column(sample["table"], "density")
    data = {
        **{name: sample[name] for name in ("frames", "table", *train.LABELS)},
        "density_now": density,
        "density_ahead": density,
        "cells_now": np.zeros((n, 12, 12, 2), np.uint8),
        "cells_ahead": np.zeros((n, 12, 12), np.float16),
    }
    body, model, center, scale, steps = train.pretrain(data, steps=3)
    assert steps == 3 and center.shape == scale.shape == (7,)
    train.export(body, tmp_path)
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    again = train.features_of(network())
    load_weights(again, tmp_path / "weights.npz")
    images = sample["frames"][:4].astype(np.float32) / 255
    expected = train.features_of(body)(images, training=False)
    assert np.allclose(again(images, training=False), expected, atol=1e-5)
    assert np.allclose(served(images), expected, atol=1e-5)
    predicted = train.predict(model, sample["frames"][:4])
    assert {name: predicted[name].shape for name in train.LABELS} == dict.fromkeys(
        train.LABELS, (4, 4)
    )
