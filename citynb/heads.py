"""Change the head, and decide what may move. Step 3 of the workflow."""

import keras


def classifier(backbone, num_classes, *, input_shape=None, dropout=0.0, seed=0):
    """Put a new head on a backbone: features in, one logit for each class out.

    Args:
        backbone: keras.Model from pictures (batch, height, width, 3) in [0, 1] to features
            (batch, d), as `citynb.backbone` returns it.
        num_classes: int, 2 or more.
        input_shape: (height, width, 3) of the task's pictures when it differs from the
            backbone's; they are then enlarged without smoothing (nearest pixel).
        dropout: float in [0, 1), the share of features dropped while training.
        seed: int, the seed of the head's initial weights and of its dropout.

    Returns:
        keras.Model from pictures (batch, height, width, 3) to logits (batch, num_classes).
        Its last layer is called `head`; the layer before is the backbone.

    Raises:
        ValueError: fewer than two classes, pictures of another number of channels, or a
            backbone that returns maps instead of vectors.
    """
    if num_classes < 2:
        raise ValueError(f"classifier() needs two classes or more, not {num_classes}.")
    if len(backbone.output_shape) != 2:
        raise ValueError(
            f"{backbone.name} returns {backbone.output_shape}; a head takes features "
            "(batch, d). End it with keras.layers.GlobalAveragePooling2D()."
        )
    wanted = backbone.input_shape[1:]
    shape = tuple(input_shape or wanted)
    if len(shape) != 3 or shape[-1] != wanted[-1]:
        raise ValueError(
            f"{backbone.name} takes pictures (height, width, {wanted[-1]}), not {shape}. "
            "Repeat a grey channel with np.repeat(pictures, 3, axis=-1)."
        )
    inputs = keras.Input(shape, name="pictures")
    pictures = inputs
    if shape != wanted:
        if None in wanted[:2]:
            raise ValueError(
                f"{backbone.name} has no fixed picture size to enlarge {shape} to; "
                "choose one with citynb.backbone(name, image_size=64)."
            )
        # Not keras.layers.Resizing: its `training=True` by default leaks into the layers behind
        # it (Keras 3.15), so that model(pictures) would run BatchNorm in training mode.
        pictures = keras.ops.image.resize(inputs, wanted[:2], interpolation="nearest")
    head = keras.Sequential(
        [
            keras.Input(backbone.output_shape[1:]),
            keras.layers.Dropout(dropout, seed=seed),
            keras.layers.Dense(
                num_classes,
                kernel_initializer=keras.initializers.GlorotUniform(seed),
                dtype="float32",  # the softmax loses digits in half precision
                name="logits",
            ),
        ],
        name="head",
    )
    return keras.Model(inputs, head(backbone(pictures)), name=f"{backbone.name}_classifier")


def freeze(layer, *, batch_norm_only=False):
    """Freeze a layer or model, or let its weights train and freeze only BatchNorm.

    Calling a backbone with `training=False` inside a functional model does not hold: `fit`
    passes its own `training=True` down, and the moving statistics move (Keras 3.13 to
    3.15). `trainable = False` on the BatchNormalization layers themselves holds, because
    Keras then runs them in inference mode.

    Args:
        layer: keras.Layer or keras.Model; changed in place. Compile the model after it.
        batch_norm_only: bool. False freezes everything. True makes all weights trainable but
            those of BatchNorm, whose statistics then stay as they were pretrained. A Hub model
            hides its layers: there the statistics stay, and scale and shift train along.

    Returns:
        The same layer.

    Raises:
        AttributeError: `layer` is not a Keras layer.
    """
    for part in all_layers(layer):
        is_batch_norm = isinstance(part, keras.layers.BatchNormalization)
        part.trainable = batch_norm_only and not is_batch_norm
        if batch_norm_only and hasattr(part, "freeze_batch_norm"):
            part.freeze_batch_norm = True  # a Hub model hides its BatchNorm layers
    return layer


def unfreeze(layer):
    """Let every weight of a layer or model train, and let BatchNorm's statistics move."""
    for part in all_layers(layer):
        part.trainable = True
        if hasattr(part, "freeze_batch_norm"):
            part.freeze_batch_norm = False


def all_layers(layer):
    """Return a layer and every layer inside of it, parents first.

    Keras has no public way to the layers inside of a layer that is no model, and a BatchNorm that
    was missed there would move in silence; this is the only place that takes the private one.
    """
    return layer._flatten_layers()
