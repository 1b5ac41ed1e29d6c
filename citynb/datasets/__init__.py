"""The book's datasets: one module each, with a `load` that makes the `CityTask`.

A module may offer more: what reads the raw table, the limits of its levels. What a dataset is
stands in its card, `data/<name>/card.md`.
"""

import difflib
import importlib
import pkgutil

from citynb.files import data_folder, verify


def load(name, **options):
    """Load one of the book's datasets as a `CityTask`.

    Args:
        name: str, a module of `citynb.datasets`: `"i94"` (hourly volume on an interstate),
            `"junctions"` (simulated aerial views of road junctions), `"signals"` (detectors of
            traffic signals), `"travel_times"` (seconds on six road segments), `"air"` (beside a
            motorway), `"police_stops"` (as recorded), `"land_use"` (from building plans).
        **options: what that module's `load` takes, for example `horizon=3` (hours) for `i94`, or
            `label="now"` for `junctions`; its docstring says which there are.

    Returns:
        CityTask.

    Raises:
        ValueError: no dataset has this name (the message says the nearest), or a file is
            not the one that its checksum names.
    """
    return dataset(name).load(**options)


def dataset(name):
    """Return the module of a dataset, after a check of its files.

    Its `FOLDER` is the Path of the files; functions such as `read` give the raw table, and
    constants the limits of the levels.

    Args:
        name: str, as in `citynb.load`.

    Raises:
        ValueError: no dataset has this name (the message says the nearest), or a file is
            not the one that its checksum names.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known:
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"There is no dataset {name!r}; did you mean {nearest!r}? "
            f"Choose one of {', '.join(known)}."
        )
    if (folder := data_folder() / name).is_dir():  # what is fetched is verified by its loader
        verify(folder)
    return importlib.import_module(f"{__name__}.{name}")
