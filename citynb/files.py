"""Where the shipped files lie, in a checkout and in an installed wheel, and their checksums."""

import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_folder():
    """Return the Path of the datasets: `data/` of the checkout, or the installed copy."""
    return _shipped("_data", "data")


def models_folder():
    """Return the Path of the book's own weights: `models/` of the checkout, or the installed copy."""
    return _shipped("_models", "models")


def results_folder():
    """Return the Path of stored results: `experiments/results/`, or the installed copy."""
    return _shipped("_results", "experiments/results")


def _shipped(installed, in_checkout):
    inside = _PACKAGE / installed  # first, since site-packages may hold a foreign data folder
    return inside if inside.is_dir() else _PACKAGE.parent / in_checkout


def verify(folder):
    """Check every file that a shipped folder's `SHA256SUMS` names.

    Args:
        folder: path, for example `data_folder() / "i94"`.

    Raises:
        ValueError: the list, or a file of it, is missing, or a file has other bytes.
    """
    folder = Path(folder)
    if folder.is_relative_to(_PACKAGE):
        way_out = "Install citynb again."
    else:
        tracked = folder
        if folder.is_relative_to(_PACKAGE.parent):
            tracked = folder.relative_to(_PACKAGE.parent)
        way_out = f"Get it back with `git checkout -- {tracked.as_posix()}`."
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        raise ValueError(f"{sums} is missing. {way_out}")
    for line in sums.read_text().splitlines():
        expected, file = line.split(maxsplit=1)
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{path} is missing. {way_out}")
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise ValueError(
                f"{path} is damaged: its sha256 is {found[:12]}…, not {expected[:12]}…. {way_out}"
            )
