"""Step 0: open every notebook the same way. Explained on the page *How to read this book*."""

import os
import sys

BACKENDS = ("jax", "torch", "openvino")  # other than TensorFlow


def check_backend(name):
    """Refuse any Keras backend but TensorFlow.

    Raises:
        RuntimeError: `name` is another backend; the message says how to choose TensorFlow.
    """
    if name != "tensorflow":
        raise RuntimeError(
            f"Keras is set to the backend {name!r}, but citynb trains models of TensorFlow Hub, "
            "which need TensorFlow. Set the environment variable KERAS_BACKEND=tensorflow (it "
            'wins over "backend" in ~/.keras/keras.json) and start Python or the kernel again.'
        )


if "keras" not in sys.modules:  # a wish comes too late once Keras has chosen
    check_backend(os.environ.get("KERAS_BACKEND") or "tensorflow")
# ruff: noqa: E402
try:
    import keras
except ModuleNotFoundError as missing:
    if missing.name in BACKENDS:  # chosen in keras.json
        check_backend(missing.name)
    raise
import tensorflow as tf

MINIMUM_TENSORFLOW = (2, 20)
MINIMUM_KERAS = (3, 13)
COLAB_GPU_MENU = "Runtime > Change runtime type > T4 GPU > Save"


def start(seed=0):
    """Seed everything, choose a profile, set the figure style, and say so in one line.

    The `cpu` profile is what the committed outputs show and what the tests run: small
    pictures, every notebook within a minute on two cores. The `gpu` profile runs the
    same cells with larger pictures and the full data. The environment variable
    `CITYNB_PROFILE` overrides the choice.

    Args:
        seed: int, the seed of Python, NumPy and the network's initial weights.

    Returns:
        str, the profile: `"cpu"` or `"gpu"`.

    Raises:
        ValueError: `CITYNB_PROFILE` names a profile that does not exist.
    """
    from citynb.notebook import use_book_style

    gpus = tf.config.list_physical_devices("GPU")
    profile = os.environ.get("CITYNB_PROFILE") or ("gpu" if gpus else "cpu")
    if profile not in ("cpu", "gpu"):
        raise ValueError(
            f"CITYNB_PROFILE is {profile!r}; choose 'cpu' or 'gpu', or unset it to let "
            "the machine decide."
        )

    keras.utils.set_random_seed(seed)
    tf.get_logger().setLevel("ERROR")  # its advice on retracing is for long-lived servers
    use_book_style()
    device = "GPU" if gpus else "CPU"
    line = (
        f"Python {sys.version_info.major}.{sys.version_info.minor}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}; "
        f"device {device}, profile {profile}, seed {seed}."
    )
    if not gpus and "COLAB_RELEASE_TAG" in os.environ:
        line += f" This Colab has no GPU: {COLAB_GPU_MENU}, then run all cells again."
    print(line)
    return profile


def check_versions():
    """Refuse libraries that are too old, and other backends, before one fails with a riddle.

    Raises:
        RuntimeError: TensorFlow or Keras is too old, or Keras runs on another backend; the
            message names the way out.
    """
    for library, version, minimum in (
        ("TensorFlow", tf.__version__, MINIMUM_TENSORFLOW),
        ("Keras", keras.__version__, MINIMUM_KERAS),
    ):
        if tuple(int(part) for part in version.split(".")[:2]) < minimum:
            raise RuntimeError(
                f"{library} {version} is too old for citynb: {'.'.join(map(str, minimum))} or "
                "newer is needed. On Colab, choose Runtime > Disconnect and delete runtime to get "
                "the current image; elsewhere, run `make book` or `pip install -r "
                "requirements.txt` in a fresh environment."
            )
    check_backend(keras.config.backend())
