"""Small networks without pretraining: for tables drawn as pictures, and as from-scratch controls."""

import keras


def small_resnet(input_shape, width=32, blocks=3):
    """Build a small ResNet v2 (pre-activation, He et al. 2016) that keeps where each pixel is.

    Args:
        input_shape: (height, width, channels), a few pixels each way, such as 7 days x 24 hours.
        width: int, channels of every convolution.
        blocks: int, residual blocks of two 3 x 3 convolutions.

    Returns:
        keras.Model to features (batch, height * width of the picture * `width`).
    """
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(width, 3, padding="same")(inputs)
    for _ in range(blocks):
        branch = x
        for _ in range(2):
            branch = keras.layers.BatchNormalization()(branch)
            branch = keras.layers.ReLU()(branch)
            branch = keras.layers.Conv2D(width, 3, padding="same")(branch)
        x = keras.layers.Add()([x, branch])
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    # Flattening keeps where a pixel is; averaging would forget which hour is now.
    return keras.Model(inputs, keras.layers.Flatten()(x), name="small_resnet")


def small_network(input_shape, width=16):
    """Build two convolutions with BatchNorm, from small pictures of a table to features.

    Args:
        input_shape: (height, width, channels), a few pixels each way.
        width: int, channels of a convolution.

    Returns:
        keras.Model to features (batch, height * width of the picture * `width`). Flattening
        keeps where a pixel is.
    """
    x = inputs = keras.Input(input_shape)
    for _ in range(2):
        x = keras.layers.Conv2D(width, 3, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    return keras.Model(inputs, keras.layers.Flatten()(x), name="small_network")


def small_photo_network(input_shape, widths=(16, 32, 64, 64)):
    """Build a few strided convolutions, averaged at the end: photos to features, from scratch.

    Args:
        input_shape: (height, width, channels); each convolution halves height and width.
        widths: channels of the convolutions.

    Returns:
        keras.Model to features (batch, widths[-1]).
    """
    x = inputs = keras.Input(input_shape)
    for width in widths:
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    features = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, features, name="small_photo_network")
