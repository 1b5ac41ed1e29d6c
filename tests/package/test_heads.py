"""classifier() and freeze(): shapes, and that what is frozen stays, also under fit()."""

import keras
import numpy as np
import pytest

import citynb

PICTURES = np.random.default_rng(0).uniform(size=(16, 8, 8, 3)).astype(np.float32)
LABELS = np.arange(16) % 3


def test_classifier(make_model):
    model = make_model(classes=3)
    logits = model.predict(PICTURES, verbose=0)
    assert logits.shape == (16, 3)
    assert np.abs(logits.sum(-1) - 1).max() > 1e-3  # logits, no softmax
    body, head = model.layers[-2:]
    assert (body.name, head.name) == ("tiny", "head")
    np.testing.assert_allclose(head(body(PICTURES)), logits, atol=1e-5)


def test_small_pictures_are_enlarged_by_whole_pixels(make_model, values, tmp_path):
    body = make_model().layers[-2]
    model = citynb.classifier(body, 3, input_shape=(4, 2, 3))
    small = PICTURES[:, :4, :2]
    large = small.repeat(2, axis=1).repeat(4, axis=2)
    features = keras.Model(model.input, model.get_layer("head").input)
    before = values(body)
    np.testing.assert_allclose(features(small), body(large), atol=1e-5)  # and no training mode
    for path, value in values(body).items():
        np.testing.assert_array_equal(value, before[path])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(again(small), model(small), atol=1e-6)


def test_the_seed_decides_the_head(make_model):
    body = make_model().layers[-2]
    kernels = [
        citynb.classifier(body, 3, seed=s).get_layer("head").get_weights()[0] for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.allclose(kernels[0], kernels[2])


def test_logits_keep_float32_in_half_precision(make_model):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make_model()
    finally:
        keras.config.set_dtype_policy("float32")
    assert (model.layers[-2].output.dtype, model.output.dtype) == ("bfloat16", "float32")


def test_classifier_refuses(make_model):
    body = make_model().layers[-2]
    with pytest.raises(ValueError, match="needs two classes or more, not 1"):
        citynb.classifier(body, 1)
    with pytest.raises(ValueError, match="tiny takes pictures .* not .8, 8, 1.*np.repeat"):
        citynb.classifier(body, 3, input_shape=(8, 8, 1))
    with pytest.raises(ValueError, match="not .8, 8."):
        citynb.classifier(body, 3, input_shape=(8, 8))
    maps = keras.Model(body.input, body.get_layer("norm").output, name="maps")
    with pytest.raises(ValueError, match="maps returns .*GlobalAveragePooling2D"):
        citynb.classifier(maps, 3)
    wide = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(ValueError, match="no fixed picture size.*image_size=64"):
        citynb.classifier(wide, 3, input_shape=(8, 8, 3))


def moved_by_fit(model, values):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = values(model)
    model.fit(PICTURES, LABELS, epochs=1, verbose=0)
    return {
        path.split("/", 1)[-1]
        for path, value in values(model).items()
        if not np.array_equal(value, before[path]) and "seed" not in path
    }


def test_what_moves_under_fit(make_model, values):
    head = {"logits/kernel", "logits/bias"}
    conv, norm = {"kernel", "bias"}, {"gamma", "beta"}
    statistics = {"moving_mean", "moving_variance"}
    model = make_model()
    assert moved_by_fit(model, values) == head | conv | norm | statistics
    assert citynb.freeze(model.layers[-2], batch_norm_only=True) is model.layers[-2]
    assert moved_by_fit(model, values) == head | conv
    citynb.freeze(model.layers[-2])
    assert moved_by_fit(model, values) == head
    citynb.freeze(model.layers[-2], batch_norm_only=True)
    assert moved_by_fit(model, values) == head | conv


def test_freeze_reaches_batch_norm_in_nested_models(make_model, values):
    model = make_model()
    citynb.freeze(model, batch_norm_only=True)
    assert moved_by_fit(model, values) == {"logits/kernel", "logits/bias", "kernel", "bias"}
    norm = keras.layers.BatchNormalization()
    citynb.freeze(norm, batch_norm_only=True)
    assert not norm.trainable
