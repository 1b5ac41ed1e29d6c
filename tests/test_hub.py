"""TF Hub, truly: a SavedModel served as TF Hub serves it, fine-tuned inside Keras 3, and every way
in which a download fails."""

import errno
import multiprocessing
import os
import pathlib
import shutil
import signal
import tarfile
import tempfile
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from hub_server import HubServer, pack, save_reusable, tiny_resnet

from citynb import HubLayer, backbone, backbones, downloads

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
def hub(archive, cache, monkeypatch):
    """A running server, and the backbone `tiny_hub` that comes from it."""
    with HubServer(archive) as server:
        model = backbones.HubModel(server.handle, None, 16)
        monkeypatch.setitem(backbones.HUB_MODELS, NAME, model)
        monkeypatch.setitem(backbones._BUILDERS, NAME, backbones._saved_model)
        yield server


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


def test_fresh_weights(hub, native):
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


def test_keras_file_round_trip(hub, tmp_path):
    images, labels = batches()
    model = classifier(HubLayer(NAME, freeze_batch_norm=False))
    model.fit(images, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded.predict(images), model.predict(images), atol=1e-6)
    assert loaded.layers[1].freeze_batch_norm is False
    loaded.fit(images, labels, verbose=0)  # with the optimizer's state
    assert loaded.optimizer.iterations == 2
    assert len(hub.requests) == 2  # one download: the handle and where it redirects


def test_clone_has_weights_of_its_own_and_pretrained_values(hub):
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
    monkeypatch.setattr(backbones, "data_folder", lambda: tmp_path)
    model = backbones.HubModel("shipped", downloads.digest(saved_model))
    monkeypatch.setitem(backbones.HUB_MODELS, "shipped", model)
    assert HubLayer("shipped").features == 16
    (folder / "note.txt").write_text("one more file")
    with pytest.raises(ValueError, match="shipped: .*does not match its sha256"):
        HubLayer("shipped")
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="restore it from the repository"):
        HubLayer("shipped")


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


def test_complete(hub, cache, capsys):
    model = backbone(NAME, image_size=64)
    assert model.name == NAME and model.output_shape == (None, 16)
    assert hub.requests[1] == "/storage/model.tar.gz"
    printed = capsys.readouterr().out
    checksum = next(word for word in printed.replace(",", "").split() if len(word) == 64)
    assert checksum in (cache / f"{NAME}.json").read_text()
    names = sorted(path.name for path in cache.iterdir())
    assert names == [f".{NAME}.lock", NAME, f"{NAME}.json"]
    assert backbone(NAME) and len(hub.requests) == 2  # the second comes from the cache


@pytest.mark.parametrize("status", [403, 404, 503])
def test_http_errors(hub, cache, status):
    hub.answers, hub.forever = [status], True
    refused(cache, f"the server answered {status}")
    assert len(hub.requests) == (downloads.ATTEMPTS if status == 503 else 1)


def test_a_busy_server_is_asked_again(hub):
    hub.answers = [503, 429]
    assert backbone(NAME).output_shape == (None, 16)


def test_connection_cut_halfway(hub, cache):
    hub.cut = len(hub.content) // 2
    refused(cache, rf"connection was cut after {hub.cut} of {len(hub.content)} bytes")
    hub.cut = None
    assert backbone(NAME)


def test_stalled_server(hub, cache, monkeypatch):
    hub.stall = True
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    monkeypatch.setattr(downloads.fetch, "__defaults__", (False, None, "", 0.2))
    started = time.monotonic()
    refused(cache, r"the server stalled for 0.2 seconds \(2 attempts\)")
    assert time.monotonic() - started < 5


def test_nobody_answers(hub, cache):
    hub.server.shutdown()
    hub.server.server_close()
    refused(cache, "no connection")


def test_corrupted_archive(hub, cache):
    middle = len(hub.content) // 2
    hub.content = hub.content[:middle] + bytes(64) + hub.content[middle + 64 :]
    refused(cache, "the archive is damaged")


def test_archive_that_is_no_archive(hub, cache):
    hub.content = b"<html>please log in</html>" * 100
    refused(cache, "it is no archive but begins with b'<html>please log")


def test_archive_cut_at_a_member_border(hub, cache, saved_model):
    hub.content = pack(saved_model, skip=["variables.data-00000-of-00001"])
    refused(cache, "the SavedModel is damaged")


def test_archive_nested_too_deep(hub, cache, saved_model):
    hub.content = pack(saved_model, below="model/")
    refused(cache, r"no saved_model.pb at the top of content, but \['model'\]")


def test_flipped_weight_byte(hub, cache, saved_model, tmp_path):
    broken = shutil.copytree(saved_model, tmp_path / "broken")
    weights = broken / "variables" / "variables.data-00000-of-00001"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    hub.content = pack(broken)
    refused(cache, "the SavedModel is damaged")


def test_another_model_than_promised(hub, cache, tmp_path):
    hub.content = pack(save_reusable(tiny_resnet(width=4), tmp_path / "other"))
    refused(cache, "it returns 8 features instead of 16")


@pytest.fixture(params=["with filters", "before Python 3.11.4"])
def any_tarfile(request, monkeypatch):
    """Extract as this Python does, and as one does whose tarfile has no filters."""
    if request.param != "with filters":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    elif not hasattr(tarfile, "data_filter"):
        pytest.skip("this Python's tarfile has no filters")


def test_an_archive_is_unpacked_by_any_tarfile(hub, cache, any_tarfile):
    assert backbone(NAME).output_shape == (None, 16)
    assert (cache / NAME / "saved_model.pb").stat().st_mode & 0o777 == 0o644


def test_a_link_out_of_the_folder(hub, cache, tmp_path, any_tarfile):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        link = tarfile.TarInfo("saved_model.pb")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    hub.content = (tmp_path / "evil.tar").read_bytes()
    refused(cache, "the archive is damaged")


def test_paths_that_leave_the_folder(hub, cache, tmp_path, any_tarfile):
    (tmp_path / "evil.txt").write_text("evil")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(tmp_path / "evil.txt", "../../escaped.txt")
    hub.content = (tmp_path / "evil.tar").read_bytes()
    refused(cache, "the archive is damaged .*outside")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_wrong_checksum(hub, cache, monkeypatch):
    pinned = backbones.HubModel(hub.handle, "0" * 64, 16)
    monkeypatch.setitem(backbones.HUB_MODELS, NAME, pinned)
    refused(cache, f"wrong checksum: expected sha256 {'0' * 64}, received")


def test_a_later_download_must_match_the_first(hub, cache, saved_model):
    backbone(NAME)
    shutil.rmtree(cache / NAME)
    hub.content = pack(saved_model, skip=["fingerprint.pb"])
    with pytest.raises(downloads.DownloadError, match="the file has changed: the first download"):
        backbone(NAME)
    assert not (cache / NAME).exists()
    (cache / f"{NAME}.json").unlink()  # the way out that the message names
    assert backbone(NAME)


def test_a_cache_that_was_changed_is_not_used(hub, cache):
    backbone(NAME)
    (cache / NAME / "saved_model.pb").write_bytes(b"something else")
    with pytest.raises(downloads.DownloadError, match="has changed since it was verified; delete"):
        backbone(NAME)
    assert len(hub.requests) == 2


def test_a_folder_without_its_record_is_not_trusted(hub, cache):
    (cache / NAME).mkdir(parents=True)
    (cache / NAME / "saved_model.pb").write_bytes(b"half a model")
    assert backbone(NAME) and len(hub.requests) == 2


def _hold(cache, started):
    with downloads._lock(pathlib.Path(cache) / NAME):
        tempfile.mkdtemp(prefix=f".{NAME}-", dir=cache)  # what a killed download leaves
        started.set()
        time.sleep(60)


def test_stale_lock(hub, cache, monkeypatch):
    """A process that dies while it downloads holds nobody up; one that lives is waited for."""
    cache.mkdir()
    context = multiprocessing.get_context("fork")
    started = context.Event()
    other = context.Process(target=_hold, args=(cache, started))
    other.start()
    try:
        assert started.wait(10)
        monkeypatch.setattr(downloads, "LOCK_WAIT", 0.3)
        with pytest.raises(downloads.DownloadError, match="another process has been fetching"):
            backbone(NAME)
        os.kill(other.pid, signal.SIGKILL)
        other.join(10)
        assert (cache / f".{NAME}.lock").exists() and len(list(cache.iterdir())) == 2
        assert backbone(NAME)  # within 0.3 seconds of waiting
        assert not list(cache.glob(f".{NAME}-*"))
    finally:
        other.kill()


def test_read_only_cache(hub, monkeypatch):
    root = os.geteuid() == 0  # to whom nothing is read-only
    folder = pathlib.Path(tempfile.mkdtemp(prefix="citynb-read-only-"))
    folder.chmod(0o555)
    monkeypatch.setenv("CITYNB_CACHE", str(folder))
    try:
        if root:
            os.seteuid(65534)
        refused(folder, "no permission to write in .*; set CITYNB_CACHE to another folder")
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        assert backbone(NAME)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        if root:
            os.seteuid(65534)
        assert backbone(NAME)  # complete, so reading is enough
    finally:
        if root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_cache_that_is_a_file(hub, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CITYNB_CACHE", str(tmp_path / "file"))
    with pytest.raises(downloads.DownloadError, match="tiny_hub could not be fetched"):
        backbone(NAME)


def test_no_space(hub, cache, monkeypatch):
    usage = shutil.disk_usage(cache.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(cache, "no space left in")
    monkeypatch.undo()


def test_no_space_halfway(hub, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    refused(cache, "no space left in")


def test_a_plain_file_with_a_pinned_checksum(hub, cache, capsys):
    """The same door serves the datasets that are fetched at run time."""
    import hashlib

    pin = hashlib.sha256(hub.content).hexdigest()
    address = f"{hub.handle}?tf-hub-format=compressed"
    path = downloads.fetch(address, pin, "counts.csv")
    assert path == cache / "counts.csv" and path.read_bytes() == hub.content
    assert downloads.fetch(address, pin, "counts.csv") == path and len(hub.requests) == 2
    assert capsys.readouterr().out == ""
    with pytest.raises(downloads.DownloadError, match="wrong checksum"):  # the pin moved on
        downloads.fetch(address, "1" * 64, "counts.csv")


def test_https_is_never_left(hub, monkeypatch):
    """A redirect from https to http is refused: an unpinned file must not travel unprotected."""
    reply = downloads.urllib.request.urlopen

    def secure(request, timeout):
        request.full_url = request.full_url.replace("https://", "http://")
        return reply(request, timeout=timeout)

    monkeypatch.setattr(downloads.urllib.request, "urlopen", secure)
    address = hub.handle.replace("http:", "https:") + "?tf-hub-format=compressed"
    with pytest.raises(downloads.DownloadError, match="redirected to an unprotected address"):
        downloads.fetch(address, None, "counts.csv")
