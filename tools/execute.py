"""Execute the notebooks whose outputs are stale, and finish them for the book.

    python -m tools.execute                        every stale notebook
    python -m tools.execute chapters/faq/x.ipynb   this one, if it is stale
    python -m tools.execute --all                  stale or not
    python -m tools.execute --finish               execute nothing, only finish
    python -m tools.execute --check                only say which are stale

A notebook's outputs are stale when its code, a module of citynb that it reaches (comments and
docstrings do not count), or a file of the data that it names has changed since they were made.
A notebook that fails is left as it was.
"""

import argparse
import importlib.metadata
import math
import os
import platform
import sys
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from tools.fingerprint import (
    code_fingerprint,
    code_without_words,
    data_files,
    data_fingerprint,
    digest,
    reached,
)
from tools.pages import ANSI, ROOT, bind, code, code_cells, finish, notebooks, read, tags

CELL_TIMEOUT = 300  # seconds
LONGEST = 60  # seconds that a page may take on two idle cores

# What the kernels see while the book is made and tested. conftest.py uses it too.
KERNEL_ENVIRONMENT = {
    "CITYNB_BOOK": "1",  # figures leave their caption to the book
    "CITYNB_PROFILE": "cpu",
    "OMP_NUM_THREADS": "1",  # scikit-learn's trees: threads that wait for a busy core cost more
    "CUDA_VISIBLE_DEVICES": "-1",  # the committed numbers are those of a CPU
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONPATH": str(ROOT),  # this checkout's citynb, whatever is installed
    "PYTHONWARNINGS": "ignore:pkg_resources is deprecated:UserWarning",  # tensorflow-hub's import
}
PACKAGES = ("tensorflow", "keras", "numpy", "pandas", "scikit-learn", "matplotlib")


# --- is it stale? -----------------------------------------------------------------------


def fingerprints(notebook, root=ROOT):
    """Return what the outputs depend on: sha256 of the page's code, the package's, and the data."""
    text = code(notebook)
    return {
        "code": digest(*map(_cell_code, code_cells(notebook))),
        "package": code_fingerprint(reached(text, root), root),
        "data": data_fingerprint(data_files(text, root), root),
    }


def _cell_code(cell):
    """Return a cell's code without its comments, where they cannot show in its output."""
    if "raises-exception" in tags(cell) or cell.source.rstrip().endswith(";"):
        return cell.source
    try:
        return code_without_words(cell.source)
    except SyntaxError:  # a magic
        return cell.source


def stale_reason(notebook, root=ROOT):
    """Return why the notebook's outputs are stale, or None when they are not."""
    stored = notebook.metadata.get("citynb", {})
    if "code" not in stored:
        return "it was never executed by tools/execute.py"
    changed = {
        "code": "its code",
        "package": "a module of citynb that it reaches",
        "data": "its data",
    }
    for key, value in fingerprints(notebook, root).items():
        if stored.get(key) != value:
            return f"{changed[key]} changed after it was executed"
    return None


# --- execute it -------------------------------------------------------------------------


def execute(notebook, folder):
    """Run the notebook top to bottom in a fresh kernel and note what its outputs depend on."""
    noted = fingerprints(notebook)  # before the run: a change during it makes the outputs stale
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    processor_seconds = 0

    def note_processor(**_):
        nonlocal processor_seconds
        processor_seconds = sum(psutil.Process(client.km.provisioner.pid).cpu_times()[:4])

    client.on_cell_executed = note_processor
    began = time.perf_counter()
    client.execute()
    # On a busy machine the clock also counts the waiting for a core; the kernel's own
    # processor time does not, but counts two cores that work at once twice.
    seconds = min(time.perf_counter() - began, processor_seconds)
    notebook.metadata["citynb"] = {
        **noted,
        "seconds": math.ceil(seconds / 5) * 5,
        "versions": versions(),
    }
    return seconds


def versions():
    """Return the versions that the outputs were made with."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        for name in (package, f"{package}-cpu"):
            try:
                found[package] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def _short(error):
    """Return the cell and the error of a failed page, without the frames inside of libraries."""
    text = ANSI.sub("", str(error))
    if not isinstance(error, CellExecutionError):
        return text
    cell = text.split("------------------")[1].strip()
    return f"{cell}\n-> {error.ename}: {error.evalue}"


def update(path, force=False, run=True):
    """Execute and finish one notebook. Return what happened, and whether it is well."""
    notebook = read(path)
    name = path.relative_to(ROOT)
    before = nbformat.writes(notebook)
    done = f"{name}: up to date"
    try:
        bind(notebook)
        reason = "asked for" if force else stale_reason(notebook)
        if reason and run:
            print(f"{name}: executing ({reason})", flush=True)
            seconds = execute(notebook, path.parent)
            done = f"{name}: executed in {seconds:.0f} s"
            if seconds > LONGEST:
                done += f", more than {LONGEST}: on an idle machine a page takes less"
        finish(notebook)
    except (CellExecutionError, CellTimeoutError, DeadKernelError, ValueError) as error:
        return f"{name}: FAILED and left as it was\n{_short(error)}", False
    if (after := nbformat.writes(notebook)) != before:
        nbformat.validate(notebook)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(after + "\n", encoding="utf-8")
        temporary.replace(path)
        if not (reason and run):
            done = f"{name}: finished"
    return done, True


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all of them when left out")
    parser.add_argument("--all", action="store_true", help="execute them, stale or not")
    parser.add_argument("--finish", action="store_true", help="execute nothing, only finish")
    parser.add_argument("--check", action="store_true", help="execute nothing, only report")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.paths] or notebooks()
    if arguments.check:
        reasons = {path: stale_reason(read(path)) for path in paths}
        for path, reason in reasons.items():
            print(f"{path.relative_to(ROOT)}: {reason or 'up to date'}")
        return int(any(reasons.values()))
    os.environ.update(KERNEL_ENVIRONMENT)
    failed = False
    for path in paths:
        line, well = update(path, arguments.all, run=not arguments.finish)
        print(line, flush=True)
        failed = failed or not well
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
