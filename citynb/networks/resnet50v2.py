"""ResNet-50 v2 from `keras.applications`, its weights from Keras' own storage."""

import hashlib

import keras

from citynb import downloads
from citynb.networks.hub import OFFLINE

FILE = "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5"
MD5 = "fac2f116257151a9d068a22e544a4917"  # the only checksum that Keras publishes


def build(name, images, pretrained):
    """Build ResNet-50 v2 (He et al. 2016, arXiv 1603.05027); see `citynb.networks.backbone`."""
    scaled = keras.layers.Rescaling(2.0, offset=-1.0, name="scale")(images)
    model = keras.applications.ResNet50V2(
        include_top=False, weights=None, input_tensor=scaled, pooling="avg"
    )
    model = keras.Model(images, model.output, name=name)  # one tensor in, not a list of one
    if pretrained:
        model.load_weights(downloads.fetch(SOURCE))
    return model


def check(path):
    """Refuse a file that is not the one Keras publishes; its recorded sha256 does the rest."""
    if hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() != MD5:
        raise ValueError("its md5 is not the one that Keras publishes")


SOURCE = downloads.Source(
    FILE,
    f"https://storage.googleapis.com/tensorflow/keras-applications/resnet/{FILE}",
    check=check,
    way_out=f"{OFFLINE}.",
)
SOURCES = (SOURCE,)
