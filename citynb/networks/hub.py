"""SavedModels as TF Hub serves them, in Keras 3."""

import dataclasses
import difflib
import pathlib

import keras
import numpy as np
import tensorflow as tf

from citynb import downloads
from citynb.files import models_folder

OFFLINE = (
    'Offline choices that need no download: citynb.backbone("city_resnet") and '
    'citynb.backbone("efficientnet_lite0")'
)


@dataclasses.dataclass(frozen=True)
class HubModel:
    """Where a SavedModel comes from, and what it must be. Saved files may only name these.

    `address` is a web address in the TF Hub protocol, or a folder inside `models/`. `sha256` pins
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
    "city_resnet_hub": HubModel(
        "city_resnet/saved_model",
        "b5e31299bf701ee588ebabf0418346fe1a11b26a7fa979a746ede02dc4d360a9",
        256,
    ),
}


def build(name, images, pretrained):
    """Return the SavedModel `name` as a Keras model; see `citynb.networks.backbone`."""
    layer = HubLayer(name, pretrained=pretrained, name=f"{name}_layer")
    fixed = layer.spec.shape[1:3]
    if images.shape[1] is None and fixed.is_fully_defined():
        images = keras.Input((*fixed, 3), name="images")
    return keras.Model(images, layer(images), name=name)


def locate(name):
    """Return the verified folder of a SavedModel in `HUB_MODELS`, downloading it if need be.

    Raises:
        ValueError: a file of a shipped model is missing, changed or one too many.
        citynb.downloads.DownloadError: it had to be downloaded and could not be.
    """
    model = HUB_MODELS[name]
    if _is_web(model):
        return downloads.fetch(source(name))
    folder = models_folder() / model.address
    if not folder.is_dir() or downloads.digest(folder) != model.sha256:
        raise ValueError(
            f"{name}: {folder} is not the SavedModel whose sha256 is pinned in "
            f"citynb.networks.HUB_MODELS: {_difference(folder)}. Restore it from the repository."
        )
    return folder


def source(name):
    """Return the `citynb.downloads.Source` of a SavedModel on the web."""
    model = HUB_MODELS[name]
    return downloads.Source(
        name,
        f"{model.address}?tf-hub-format=compressed",
        model.sha256,
        unpack=True,
        check=lambda folder: load(folder, model.features),
        way_out=f"{OFFLINE}.",
        file=f"{name}.tar.gz",
    )


def load(folder, features=None):
    """Load a reusable SavedModel that returns features.

    Args:
        folder: path of a SavedModel that you trust; it is code.
        features: int, how many it must return; None takes any.

    Returns:
        (the loaded object, tf.TensorSpec of its images, number of features).

    Raises:
        ValueError: it is damaged, or not of this form.
    """
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
        source: a name in `citynb.networks.HUB_MODELS`, or the path of a SavedModel folder that
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
        loaded, self.spec, self.features = load(_folder(self.source))
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
        if not self.spec.shape.is_compatible_with(inputs.shape):
            raise ValueError(
                f"{self.source} takes images {tuple(self.spec.shape)}, got {tuple(inputs.shape)}."
            )
        return keras.KerasTensor((inputs.shape[0], self.features), dtype=self.compute_dtype)

    def call(self, inputs, training=None):
        # A Python bool: it selects one of the functions that the SavedModel holds.
        update = bool(training and self.trainable and not self.freeze_batch_norm)
        features = self._loaded(tf.cast(inputs, self.spec.dtype), training=update, **self.arguments)
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
                "A HubLayer is restored only from a name in citynb.networks.HUB_MODELS "
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


def _folder(source):
    """Return the folder of a `HubLayer`'s source, a name in `HUB_MODELS` or a path."""
    if source in HUB_MODELS:
        return locate(source)
    if not pathlib.Path(source).is_dir():
        near = difflib.get_close_matches(source, HUB_MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"HubLayer({source!r}) is neither a name in citynb.networks.HUB_MODELS "
            f"({', '.join(HUB_MODELS)}) nor a folder that exists.{hint}"
        )
    return pathlib.Path(source)


def _is_web(model):
    return model.address.startswith(("http:", "https:"))


def _difference(folder):
    """Say which files of a shipped SavedModel are missing, changed or too many."""
    sums, expected = folder.parent / "SHA256SUMS", {}
    for line in sums.read_text().splitlines() if sums.is_file() else ():
        sha256, file = line.split(maxsplit=1)
        if file.startswith(f"{folder.name}/"):
            expected[file.removeprefix(f"{folder.name}/")] = sha256
    there = {
        path.relative_to(folder).as_posix(): downloads.digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if not there:
        return "the folder is missing or empty"
    kinds = {
        "missing": [file for file in expected if file not in there],
        "changed": [file for file in expected if there.get(file, expected[file]) != expected[file]],
        "not part of it, delete": [file for file in there if expected and file not in expected],
    }
    return "; ".join(f"{kind}: {', '.join(files)}" for kind, files in kinds.items() if files) or (
        f"it holds {', '.join(there)}"
    )


SOURCES = tuple(source(name) for name, model in HUB_MODELS.items() if _is_web(model))
