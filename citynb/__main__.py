"""`python -m citynb fetch [names]`: bring what the book does not ship, and say what was done.

Files are those that a module of `citynb.datasets` or `citynb.networks` names in its `SOURCES`.
"""

import argparse
import difflib
import importlib
import pkgutil
import sys

from citynb import downloads


def sources():
    """Return all sources as a dict by name: the tuples `SOURCES` of datasets and networks."""
    found = {}
    for package in map(importlib.import_module, ("citynb.datasets", "citynb.networks")):
        inside = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for module in (package, *(importlib.import_module(module.name) for module in inside)):
            found |= {source.name: source for source in getattr(module, "SOURCES", ())}
    return found


def fetch(source):
    """Fetch one source and print what was done; return whether it is there now."""
    try:
        path = downloads.cached(source)
        done = "was there" if path else "fetched"
        path = path or downloads.fetch(source)
        copy = ", the mirror's copy" if downloads.copy_of(source.name) == "mirror" else ""
        print(f"{source.name}: {done}{copy} ({path})")
    except (downloads.DownloadError, OSError) as error:
        print(f"{source.name}: failed. {error}")
        return False
    return True


def main(arguments=None):
    """Run the command line and return its exit code: 1 if anything failed."""
    parser = argparse.ArgumentParser("citynb", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="fetch")
    command = commands.add_parser("fetch", help="bring files that the book does not ship")
    command.add_argument("names", nargs="*", help="what to fetch; without names: everything")
    command.add_argument("--list", action="store_true", help="only say what there is")
    chosen = parser.parse_args(arguments)
    known = sources()
    for name in chosen.names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            parser.error(f"unknown name {name!r}. {hint}There are: {', '.join(known) or 'none'}")
    wanted = [known[name] for name in chosen.names or known]
    if chosen.list:
        for source in wanted:
            size = f", {source.size / 1e6:,.0f} MB" if source.size else ""
            print(f"{source.name}: {source.url}{size}")
        return 0
    return int(not all([fetch(source) for source in wanted]))


if __name__ == "__main__":
    sys.exit(main())
