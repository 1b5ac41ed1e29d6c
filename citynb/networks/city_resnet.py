"""`city_resnet`: the small ResNet pretrained on simulated traffic, with every layer visible."""

import keras
import numpy as np
from keras import layers, ops

from citynb.files import models_folder, verify

L2 = 2e-5  # of the pretraining, on every kernel


@keras.saving.register_keras_serializable(package="citynb")
class Standardize(layers.Layer):
    """Bring each picture to zero mean and unit contrast: night and fog are low in contrast."""

    def call(self, images):
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        spread = ops.sqrt(ops.mean(ops.square(images - mean), axis=(1, 2, 3), keepdims=True))
        return (images - mean) / (spread + 0.05)


def network(width=24, blocks=(1, 2, 2, 1), images=None):
    """Build a small ResNet v2 (pre-activation, He et al. 2016), fully convolutional, untrained.

    Args:
        width: int, channels of the stem.
        blocks: residual blocks in each of the four stages.
        images: the keras.Input, (batch, height, width, 3) in [0, 1]; None for one of open size.

    Returns:
        keras.Model from `images` to two outputs: the layer `features` (batch, 256 at width 24),
        and the map (batch, height / 8, width / 8, 96) from which vehicles are counted. Kernels
        carry the L2 of the pretraining.
    """

    def conv(x, filters, size, strides, name):
        return layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(L2),
            name=name,
        )(x)

    def activate(x, name):
        x = layers.BatchNormalization(momentum=0.98, epsilon=1e-5, name=f"{name}_norm")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    images = keras.Input((None, None, 3), name="images") if images is None else images
    # float32: a half-precision mean over a whole picture loses digits
    x = conv(Standardize(dtype="float32", name="standardize")(images), width, 5, 2, "stem")
    filters = (width, 2 * width, 4 * width, 20 * width // 3)
    for stage, (f, n) in enumerate(zip(filters, blocks, strict=True)):
        if stage == 3:
            cells = activate(x, "cells")  # stride 8: one value for 8 m of road
        for block in range(n):
            name = f"stage{stage + 1}_block{block + 1}"
            strides = 2 if block == 0 and stage else 1
            y, short = activate(x, f"{name}_1"), x
            if strides == 2 or x.shape[-1] != f:
                short = conv(y, f, 1, strides, f"{name}_shortcut")
            y = activate(conv(y, f, 3, strides, f"{name}_1_conv"), f"{name}_2")
            x = layers.Add(name=f"{name}_add")([short, conv(y, f, 3, 1, f"{name}_2_conv")])
    # Averages at two scales: the finer one keeps the number of vehicles, the coarser one blurs it.
    fine = layers.GlobalAveragePooling2D(name="cells_mean")(cells)
    coarse = layers.GlobalAveragePooling2D(name="last_mean")(activate(x, "last"))
    features = layers.Concatenate(name="features")([fine, coarse])
    return keras.Model(images, [features, cells], name="city_resnet")


def build(name, images, pretrained):
    """Return the model `name` from `images` to features; see `citynb.networks.backbone`.

    Raises:
        ValueError: the shipped weights are damaged, or those of another network.
    """
    model = keras.Model(images, network(images=images).get_layer("features").output, name=name)
    if pretrained:
        folder = models_folder() / "city_resnet"
        verify(folder)
        load_weights(model, folder / "weights.npz")
    return model


def load_weights(model, file):
    """Set all variables of a model from an `.npz` file whose sorted keys follow their order.

    Raises:
        ValueError: the file holds other shapes, or is no `.npz` file of plain arrays.
        FileNotFoundError: it is not there.
    """
    with np.load(file, allow_pickle=False) as stored:
        arrays = [stored[key] for key in sorted(stored.files)]
    given, wanted = [a.shape for a in arrays], [tuple(v.shape) for v in model.variables]
    if given != wanted:
        raise ValueError(
            f"{file} holds the weights of another network than {model.name}: {len(given)} arrays "
            f"for {len(wanted)} variables, or other shapes. Restore it from the repository."
        )
    model.set_weights(arrays)
