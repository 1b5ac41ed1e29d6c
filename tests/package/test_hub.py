"""TF Hub, truly: a SavedModel served as TF Hub serves it, and fine-tuned inside Keras 3."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from hub_server import HubServer, pack, save_reusable, tiny_resnet

from citynb import downloads, networks
from citynb.networks import HUB_MODELS, HubLayer, HubModel, backbone, hub

NAME = "tiny_hub"


@pytest.fixture(scope="module")
def native():
    keras.utils.set_random_seed(0)
    return tiny_resnet()


@pytest.fixture(scope="module")
def saved_model(native, tmp_path_factory):
    return save_reusable(native, tmp_path_factory.mktemp("hub") / "saved_model")


@pytest.fixture(scope="module")
def archive(saved_model):
    return pack(saved_model)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def server(archive, cache, monkeypatch):
    """A running server, and the backbone `tiny_hub` that comes from it."""
    with HubServer(archive) as running:
        model = HubModel(running.handle, None, 16)
        monkeypatch.setitem(HUB_MODELS, NAME, model)
        monkeypatch.setitem(networks.NETWORKS, NAME, hub.build)
        yield running


def batches(seed=0, n=32):
    """Pictures whose class is the brighter half: easy, and the same for every test."""
    images = np.random.default_rng(seed).random((n, 32, 32, 3), dtype="float32")
    labels = np.arange(n) % 2
    images[labels == 1, :, 16:] *= 0.3
    return images, labels


def classifier(layer, optimizer="adam", **options):
    images = keras.Input((32, 32, 3))
    logits = keras.layers.Dense(2, dtype="float32", name="head")(layer(images))
    model = keras.Model(images, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, **options)
    return model


def statistics(layer):
    return [v.numpy() for v in layer.weights if "moving" in v.name]


# --- The layer ---------------------------------------------------------------------------------


def test_features_equal_the_native_model(native, saved_model):
    images, _ = batches()
    layer = HubLayer(saved_model)
    np.testing.assert_allclose(layer(images), native(images, training=False), atol=1e-5)
    assert layer.count_params() == native.count_params()
    shared = zip(layer._shared, layer._loaded.variables, strict=True)
    assert all(ours.value is theirs for ours, theirs in shared)
    names = {v.name for v in layer.weights}
    assert {"stem_kernel", "preact_bn_gamma", "preact_bn_moving_mean"} <= names
    assert len(names) == len(layer.weights)


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        keras.optimizers.Adam(3e-3),
        keras.optimizers.AdamW(3e-3),
        keras.optimizers.RMSprop(1e-3),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_fine_tuning_moves_every_kernel_and_lowers_the_loss(saved_model, optimizer):
    keras.utils.set_random_seed(0)
    images, labels = batches()
    layer = HubLayer(saved_model)
    model = classifier(layer, optimizer)
    before, held = [v.numpy() for v in layer.trainable_weights], statistics(layer)
    losses = model.fit(images, labels, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    # the bias of a convolution moves too, since BatchNorm runs on its stored statistics
    after = [v.numpy() for v in layer.trainable_weights]
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(held, statistics(layer), strict=True))
    # what Keras trained is what the SavedModel computes with
    np.testing.assert_allclose(layer(images), layer._loaded(images, training=False), atol=1e-6)


def test_batch_norm_statistics_move_only_when_asked(saved_model):
    images, labels = batches()
    for asked, trainable in ((True, True), (True, False), (False, True)):
        layer = HubLayer(saved_model, freeze_batch_norm=not asked, trainable=trainable)
        model = classifier(layer)
        before = statistics(layer)
        assert len(before) == 4
        model(images, training=False)
        same = [np.array_equal(a, b) for a, b in zip(before, statistics(layer), strict=True)]
        assert all(same)
        model.fit(images, labels, verbose=0)
        same = [np.array_equal(a, b) for a, b in zip(before, statistics(layer), strict=True)]
        assert same == [not (asked and trainable)] * 4


def test_a_frozen_layer_trains_nothing_and_counts_nothing(saved_model):
    images, labels = batches()
    layer = HubLayer(saved_model)
    layer.trainable = False
    model = classifier(layer)
    before = layer.get_weights()
    model.fit(images, labels, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))
    assert layer.trainable_weights == [] and len(model.trainable_weights) == 2
    model(images)
    assert model.losses == []
    layer.trainable = True
    assert len(model.trainable_weights) == 2 + len(layer._loaded.trainable_variables)


def test_regularization_losses_count(saved_model, native):
    images, labels = batches()
    model = classifier(HubLayer(saved_model))
    kernels = [v.numpy() for v in native.trainable_variables if len(v.shape) == 4]
    expected = sum(1e-3 * np.sum(kernel**2) / 2 for kernel in kernels)
    model(images)
    assert len(model.losses) == 3
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-4)
    data = model.loss(labels, model(images)).numpy()
    assert model.evaluate(images, labels, verbose=0) == pytest.approx(data + expected, rel=1e-4)


def test_mixed_precision(saved_model):
    images, labels = batches()
    for policy in ("mixed_bfloat16", "mixed_float16"):
        keras.utils.set_random_seed(0)
        layer = HubLayer(saved_model, dtype=policy)
        model = classifier(layer)
        assert layer(images).dtype == tf.as_dtype(policy.removeprefix("mixed_"))
        assert {v.dtype for v in layer.weights} == {"float32"}
        losses = model.fit(images, labels, epochs=3, verbose=0).history["loss"]
        assert losses[-1] < losses[0]


def test_summary_counts(saved_model, native):
    lines = []
    classifier(HubLayer(saved_model)).summary(print_fn=lambda text, **_: lines.append(text))
    head = 16 * 2 + 2
    moving = sum(int(np.prod(v.shape)) for v in native.non_trainable_variables)
    text = "\n".join(lines)
    assert f"Total params: {native.count_params() + head:,}" in text
    assert f"Trainable params: {native.count_params() - moving + head:,}" in text
    assert f"Non-trainable params: {moving}" in text


def test_export_holds_the_tuned_weights(saved_model, tmp_path):
    images, labels = batches()
    model = classifier(HubLayer(saved_model))
    model.fit(images, labels, verbose=0)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(images), model.predict(images, verbose=0), atol=1e-5)


def test_arguments_reach_the_saved_model(tmp_path):
    """TF Hub's ResNets take `batch_norm_momentum`."""
    scale = tf.Variable(1.0)

    @tf.function
    def call(inputs, training=False, batch_norm_momentum=0.99):
        return scale * batch_norm_momentum * tf.reduce_mean(inputs, [1, 2])

    spec = tf.TensorSpec((None, None, None, 3))
    for training in (True, False):
        call.get_concrete_function(spec, training, tf.TensorSpec(()))
    module = tf.train.Checkpoint(variables=[scale], trainable_variables=[scale])
    module.__call__ = call
    tf.saved_model.save(module, str(tmp_path / "model"))
    layer = HubLayer(tmp_path / "model", arguments={"batch_norm_momentum": 0.5})
    np.testing.assert_allclose(layer(np.ones((2, 4, 4, 3), "float32")), np.full((2, 3), 0.5))


def test_fresh_weights(server, native):
    pretrained = backbone(NAME)
    keras.utils.set_random_seed(0)
    fresh = backbone(NAME, weights=None)
    assert fresh.count_params() == pretrained.count_params()
    layer = fresh.layers[-1]
    kernels = [v.numpy() for v in layer.weights if len(v.shape) == 4]
    assert all(np.unique(kernel).size == kernel.size for kernel in kernels)
    assert np.std(kernels[1]) == pytest.approx(np.sqrt(2 / (9 * 8)), rel=0.1)
    for variable in layer.weights:
        if len(variable.shape) == 1:
            start = float("gamma" in variable.name or "variance" in variable.name)
            assert np.all(variable.numpy() == start)


def test_wrong_pictures_are_refused_before_training(saved_model):
    with pytest.raises(ValueError, match=r"takes images \(None, None, None, 3\)"):
        HubLayer(saved_model)(keras.Input((32, 32, 1)))


def test_resnet50_of_keras_in_hub_form_counts_right(tmp_path):
    """The article's architecture: 23,564,800 parameters, 45,440 of them statistics."""
    native = keras.applications.ResNet50V2(
        include_top=False, weights=None, pooling="avg", input_shape=(64, 64, 3)
    )
    layer = HubLayer(save_reusable(native, tmp_path / "resnet", l2=0.0), trainable=True)
    picture = np.random.default_rng(0).random((1, 64, 64, 3), dtype="float32")
    assert layer.count_params() == 23_564_800
    assert sum(int(np.prod(v.shape)) for v in layer.trainable_weights) == 23_519_360
    np.testing.assert_allclose(layer(picture), native(picture, training=False), atol=1e-4)


# --- Saving and loading ------------------------------------------------------------------------


def test_keras_file_round_trip(server, tmp_path):
    images, labels = batches()
    model = classifier(HubLayer(NAME, freeze_batch_norm=False))
    model.fit(images, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded.predict(images), model.predict(images), atol=1e-6)
    assert loaded.layers[1].freeze_batch_norm is False
    loaded.fit(images, labels, verbose=0)  # with the optimizer's state
    assert loaded.optimizer.iterations == 2
    assert len(server.requests) == 2  # one download: the handle and where it redirects


def test_clone_has_weights_of_its_own_and_pretrained_values(server):
    images, labels = batches()
    layer = HubLayer(NAME)
    pretrained, model = layer.get_weights(), classifier(layer)
    model.fit(images, labels, verbose=0)
    clone = keras.models.clone_model(model)
    cloned = clone.layers[1].get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(pretrained, cloned, strict=True))
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone(images), model(images), atol=1e-6)
    clone.layers[1].set_weights(pretrained)
    assert not np.array_equal(layer.get_weights()[0], pretrained[0])


def test_a_keras_file_cannot_choose_which_code_runs(saved_model, tmp_path):
    model = classifier(HubLayer(saved_model))
    model.save(tmp_path / "model.keras")
    for safe_mode in (True, False):
        with pytest.raises(Exception, match="not from .*saved_model.*which code runs"):
            keras.models.load_model(tmp_path / "model.keras", safe_mode=safe_mode)


def test_a_model_of_the_repository_must_match_its_checksum(saved_model, tmp_path, monkeypatch):
    folder = shutil.copytree(saved_model, tmp_path / "shipped")
    monkeypatch.setattr(hub, "models_folder", lambda: tmp_path)
    model = HubModel("shipped", downloads.digest(saved_model))
    monkeypatch.setitem(HUB_MODELS, "shipped", model)
    assert HubLayer("shipped").features == 16
    (folder / "note.txt").write_text("one more file")
    with pytest.raises(ValueError, match="shipped: .*it holds .*note.txt.*Restore it from the rep"):
        HubLayer("shipped")
    files = sorted(path for path in saved_model.rglob("*") if path.is_file())
    (tmp_path / "SHA256SUMS").write_text(
        "".join(
            f"{downloads.digest(f)}  shipped/{f.relative_to(saved_model).as_posix()}\n"
            for f in files
        )
    )
    with pytest.raises(ValueError, match="HUB_MODELS: not part of it, delete: note.txt. Restore"):
        HubLayer("shipped")
    (folder / "note.txt").unlink()
    (folder / "fingerprint.pb").write_bytes(b"other bytes")
    (folder / "variables" / "variables.index").unlink()
    expected = "missing: variables/variables.index; changed: fingerprint.pb. Restore"
    with pytest.raises(ValueError, match=expected):
        HubLayer("shipped")
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="the folder is missing or empty. Restore it from the rep"):
        HubLayer("shipped")


def test_a_misspelled_source_gets_the_nearest_name():
    with pytest.raises(
        ValueError, match="nor a folder that exists. Did you mean 'city_resnet_hub'"
    ):
        HubLayer("city_resnt")
    with pytest.raises(ValueError, match=r"neither a name in .*resnet50v2_hub.*exists\.$"):
        HubLayer("/no/such/folder")


# --- The download ------------------------------------------------------------------------------


def refused(cache, match):
    """The backbone is refused with one complete message, and the cache holds nothing of it."""
    with pytest.raises(downloads.DownloadError, match=match) as caught:
        backbone(NAME)
    message = str(caught.value)
    assert message.startswith(f"{NAME} could not be fetched from http://127.0.0.1")
    assert 'backbone("city_resnet")' in message and 'backbone("efficientnet_lite0")' in message
    assert "\n" not in message
    left = sorted(path.name for path in cache.rglob("*")) if cache.is_dir() else []
    assert left in ([], [f".{NAME}.lock"])


def test_complete(server, cache, capsys):
    model = backbone(NAME, image_size=64)
    assert model.name == NAME and model.output_shape == (None, 16)
    assert server.requests[1] == "/storage/model.tar.gz"
    printed = capsys.readouterr().out
    checksum = next(word for word in printed.replace(",", "").split() if len(word) == 64)
    assert checksum in (cache / f"{NAME}.json").read_text()
    names = sorted(path.name for path in cache.iterdir())
    assert names == [f".{NAME}.lock", NAME, f"{NAME}.json"]
    assert backbone(NAME) and len(server.requests) == 2  # the second comes from the cache


def test_archive_cut_at_a_member_border(server, cache, saved_model):
    server.content = pack(saved_model, skip=["variables.data-00000-of-00001"])
    refused(cache, "the SavedModel is damaged")


def test_archive_nested_too_deep(server, cache, saved_model):
    server.content = pack(saved_model, below="model/")
    refused(cache, r"no saved_model.pb at the top of content, but \['model'\]")


def test_flipped_weight_byte(server, cache, saved_model, tmp_path):
    broken = shutil.copytree(saved_model, tmp_path / "broken")
    weights = broken / "variables" / "variables.data-00000-of-00001"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    server.content = pack(broken)
    refused(cache, "the SavedModel is damaged")


def test_another_model_than_promised(server, cache, tmp_path):
    server.content = pack(save_reusable(tiny_resnet(width=4), tmp_path / "other"))
    refused(cache, "it returns 8 features instead of 16")


def test_wrong_checksum(server, cache, monkeypatch):
    pinned = HubModel(server.handle, "0" * 64, 16)
    monkeypatch.setitem(HUB_MODELS, NAME, pinned)
    refused(cache, f"wrong checksum: expected sha256 {'0' * 64}, received")
