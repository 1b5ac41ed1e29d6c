"""Where the shipped files lie, in a checkout and in an installed package, and their checksums."""

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def data_folder():
    """Return the Path of the datasets: `data/` of the checkout, or the installed copy."""
    return _folder("_data", "data")


def models_folder():
    """Return the Path of the shipped networks: `models/` of the checkout, or the installed copy."""
    return _folder("_models", "models")


def results_folder():
    """Return the Path of the experiments' results."""
    return _folder("_results", "experiments/results")


def verify(folder):
    """Check every file that a folder's `SHA256SUMS` lists.

    Raises:
        ValueError: a file is missing or has other bytes.
    """
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        expected, file = line.split(maxsplit=1)
        path = folder / file
        if not path.exists():
            raise ValueError(f"{path} is missing. Restore it from the repository.")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{path} is damaged. Restore it from the repository.")


def _folder(installed, checkout):
    inside = PACKAGE / installed  # first, since site-packages may hold a foreign data folder
    return inside if inside.is_dir() else PACKAGE.parent / checkout
