"""start(): one line, the same numbers each time, and a clear word about what is too old."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf

import citynb
from citynb.session import check_versions


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.delenv("CITYNB_PROFILE", raising=False)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    with plt.rc_context():
        yield


def test_says_one_line_and_returns_the_profile(capsys):
    profile = citynb.start(seed=7)
    assert profile == ("gpu" if tf.config.list_physical_devices("GPU") else "cpu")
    (line,) = capsys.readouterr().out.splitlines()
    for part in (tf.__version__, keras.__version__, f"profile {profile}", "seed 7"):
        assert part in line


def test_seeds_everything():
    draws = []
    for seed in (3, 3, 4):
        citynb.start(seed)
        legacy = np.random.rand()  # noqa: NPY002 - the generator that libraries draw from
        draws.append([legacy, *keras.random.normal((2,)).numpy(), *tf.random.normal((2,))])
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.isclose(draws[0], draws[2]).any()


def test_profile_can_be_chosen(monkeypatch):
    monkeypatch.setenv("CITYNB_PROFILE", "gpu")
    assert citynb.start() == "gpu"
    monkeypatch.setenv("CITYNB_PROFILE", "tpu")
    with pytest.raises(ValueError, match="CITYNB_PROFILE is 'tpu'; choose 'cpu' or 'gpu'"):
        citynb.start()


def test_colab_without_gpu_is_told_the_menu(monkeypatch, capsys):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    citynb.start()
    assert "Runtime > Change runtime type > T4 GPU > Save" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("library", "version", "needed"), [(tf, "2.19.1", "2.20"), (keras, "3.9.2", "3.13")]
)
def test_too_old(monkeypatch, library, version, needed):
    monkeypatch.setattr(library, "__version__", version)
    message = f"{re.escape(version)} is too old for citynb: {needed} or newer is needed.*Runtime > "
    with pytest.raises(RuntimeError, match=message):
        check_versions()


@pytest.mark.parametrize("version", ["2.20.0", "2.21.0-rc1", "2.100.0", "3.0.1"])
def test_new_enough(monkeypatch, version):
    monkeypatch.setattr(tf, "__version__", version)
    check_versions()


def test_a_library_too_old_to_import_citynb_is_named(tmp_path):
    """The check comes before whatever an old library lacks: here it lacks everything."""
    (tmp_path / "tensorflow.py").write_text("__version__ = '2.12.0'\n")
    (tmp_path / "keras.py").write_text("__version__ = '2.12.0'\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(citynb.__file__).parents[1])])
    found = subprocess.run(
        [sys.executable, "-c", "import citynb"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert "RuntimeError: TensorFlow 2.12.0 is too old for citynb" in found.stderr


def import_citynb(**environment):
    return subprocess.run(
        [sys.executable, "-c", "import citynb"],
        env={**os.environ, "PYTHONPATH": str(Path(citynb.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    ).stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_another_backend_is_refused_at_import(name, tmp_path):
    """From the environment, and from Keras' own file, whether that backend is installed or not."""
    message = f"RuntimeError: Keras is set to the backend {name!r}"
    (tmp_path / "keras.json").write_text(json.dumps({"backend": name}))
    for choice in (
        {"KERAS_BACKEND": name},
        {"KERAS_BACKEND": "", "KERAS_HOME": str(tmp_path)},
    ):
        found = import_citynb(**choice)
        assert found.startswith(message) and "KERAS_BACKEND=tensorflow" in found


def test_a_backend_chosen_before_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
        check_versions()
