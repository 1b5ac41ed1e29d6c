"""Execute the notebooks whose outputs are stale, and finish them for the book.

    python tools/execute.py                        every stale notebook
    python tools/execute.py chapters/faq/x.ipynb   this one, if it is stale
    python tools/execute.py --all                  stale or not
    python tools/execute.py --check                only say which are stale

A notebook's outputs are stale when its code, the code of citynb (comments and docstrings
do not count), or a file or the loader of a dataset it names has changed since they were
made. A notebook that fails is left as it was.
"""

import argparse
import ast
import functools
import hashlib
import importlib.metadata
import math
import os
import platform
import re
import sys
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 300  # seconds

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

ANSI = re.compile(r"\x1b\[[0-9;]*m")
TIME_LINE = re.compile(r"^\*\*Time(:\*\*|\*\*).*$", re.MULTILINE)


def notebooks():
    """Return the paths of all notebooks of the book, and of the template for new ones."""
    chapters = (ROOT / "chapters").rglob("*.ipynb")
    return [
        ROOT / "tools" / "template.ipynb",
        *sorted(path for path in chapters if ".ipynb_checkpoints" not in path.parts),
    ]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(*parts):
    """Return the sha256 of some texts or bytes, as hex digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else part.encode())
        total.update(b"\0")
    return total.hexdigest()


# --- is it stale? -----------------------------------------------------------------------


def code_without_words(source):
    """Return a text that changes when the code changes, not when a comment or docstring does.

    It is the same under every Python from 3.11 on, unlike the text of `ast.dump`.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]

    def text(node):
        if isinstance(node, list):
            return "[" + ",".join(map(text, node)) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return (
            f"{type(node).__name__}("
            + ",".join(f"{name}={text(value)}" for name, value in fields)
            + ")"
        )

    return text(tree)


@functools.cache
def _package_fingerprint(files):
    return digest(
        *(part for path, _ in files for part in (path.name, code_without_words(path.read_text())))
    )


def package_fingerprint(root=ROOT):
    """Return the sha256 of citynb's code, but for the modules of single datasets."""
    return _package_fingerprint(_with_times((root / "citynb").glob("*.py")))


def datasets(notebook, root=ROOT):
    """Return the folders of `data/` that the notebook's code names."""
    code = "\n".join(cell.source for cell in code_cells(notebook))
    return [
        folder
        for folder in sorted((root / "data").glob("*/"))
        if re.search(rf"""["']{folder.name}["']|data/{folder.name}\b""", code)
    ]


@functools.cache
def _data_fingerprint(files):
    return digest(*(part for path, _ in files for part in (path.name, path.read_bytes())))


def data_fingerprint(notebook, root=ROOT):
    """Return the sha256 of the datasets that the notebook names: files and the module that loads."""
    folders = datasets(notebook, root)
    files = (
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".md", ".py", ".pyc")
    )
    modules = (root / "citynb" / "datasets" / f"{folder.name}.py" for folder in folders)
    return digest(
        _data_fingerprint(_with_times(files)),
        _package_fingerprint(_with_times(path for path in modules if path.exists())),
    )


def _with_times(paths):
    return tuple((path, path.stat().st_mtime_ns) for path in sorted(paths))


def fingerprints(notebook, root=ROOT):
    """Return what the outputs depend on: the sha256 of the code, of citynb and of the data."""
    return {
        "code": digest(*(cell.source for cell in code_cells(notebook))),
        "package": package_fingerprint(root),
        "data": data_fingerprint(notebook, root),
    }


def stale_reason(notebook, root=ROOT):
    """Return why the notebook's outputs are stale, or None when they are not."""
    stored = notebook.metadata.get("citynb", {})
    if "code" not in stored:
        return "it was never executed by tools/execute.py"
    changed = {"code": "its code", "package": "citynb", "data": "its data"}
    for key, value in fingerprints(notebook, root).items():
        if stored.get(key) != value:
            return f"{changed[key]} changed after it was executed"
    return None


# --- finish it --------------------------------------------------------------------------


def finish(notebook):
    """Bring an executed notebook into the form that is committed; a second call changes nothing."""
    taken = set()
    for cell in notebook.cells:
        cell.id = _cell_id(cell, taken)
        kept = {key: cell.metadata[key] for key in ("tags", "mystnb") if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(kept)
        cell.pop("attachments", None)
    for count, cell in enumerate(code_cells(notebook), start=1):
        cell.execution_count = count
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            if output.output_type == "error":
                output.traceback = _short_traceback(output.traceback)
        _describe(cell)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "citynb": notebook.metadata.get("citynb", {}),
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    first = notebook.cells[0]
    first.source = TIME_LINE.sub(time_line(notebook), first.source, count=1)
    return notebook


def time_line(notebook):
    """Return the line of the page's head that says how long it takes to read and to run."""
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    lines = sum(len(cell.source.splitlines()) for cell in code_cells(notebook))
    minutes = math.ceil(words / 200 + lines / 15)  # 200 words or 15 lines of code a minute
    seconds = notebook.metadata["citynb"]["seconds"]
    return f"**Time:** {minutes} minutes to read, {seconds} seconds to run on two CPU cores."


def _cell_id(cell, taken):
    """Return an id made from the cell's text, so that a page written anew keeps its ids."""
    number = 0
    text = TIME_LINE.sub("", cell.source)
    while (name := digest(cell.cell_type, text, str(number))[:8]) in taken:
        number += 1
    taken.add(name)
    return name


def _short_traceback(traceback):
    """Return a traceback without the frames inside libraries: their paths belong to one machine."""
    return [entry for entry in traceback if not re.match(r"\s*File ", ANSI.sub("", entry))]


def _describe(cell):
    """Write what MyST-NB needs for the page: a figure's name, caption and alt text, a fold's label.

    The figure's come from the metadata that citynb.show_figure puts on its output.
    """
    figures = [
        output.metadata.citynb for output in cell.outputs if "citynb" in output.get("metadata", {})
    ]
    if len(figures) > 1:
        names = ", ".join(figure.name for figure in figures)
        raise ValueError(f"one cell shows {names}, but a cell has room for one caption; split it")
    render = cell.metadata.pop("mystnb", {})
    for key in ("figure", "image", "code_prompt_show", "code_prompt_hide"):
        render.pop(key, None)
    for figure in figures:
        render["figure"] = {"name": figure.name, "caption": figure.caption}
        render["image"] = {"alt": figure.alt}
    if "solution" in cell.metadata.get("tags", []):
        render["code_prompt_show"], render["code_prompt_hide"] = "Show a solution", "Hide it"
    if render:
        cell.metadata["mystnb"] = render


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


def update(path, force):
    """Execute and finish one notebook. Return what happened, and whether it is well."""
    notebook = nbformat.read(path, as_version=4)
    name = path.relative_to(ROOT)
    before = nbformat.writes(notebook)
    reason = "asked for" if force else stale_reason(notebook)
    done = f"{name}: up to date"
    try:
        if reason:
            print(f"{name}: executing ({reason})", flush=True)
            done = f"{name}: executed in {execute(notebook, path.parent):.0f} s"
        finish(notebook)
    except (CellExecutionError, CellTimeoutError, DeadKernelError, ValueError) as error:
        return f"{name}: FAILED and left as it was\n{error}", False
    if (after := nbformat.writes(notebook)) != before:
        nbformat.validate(notebook)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(after + "\n", encoding="utf-8")
        temporary.replace(path)
    return done, True


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all of them when left out")
    parser.add_argument("--all", action="store_true", help="execute them, stale or not")
    parser.add_argument("--check", action="store_true", help="execute nothing, only report")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.paths] or notebooks()
    if arguments.check:
        reasons = {path: stale_reason(nbformat.read(path, as_version=4)) for path in paths}
        for path, reason in reasons.items():
            print(f"{path.relative_to(ROOT)}: {reason or 'up to date'}")
        return int(any(reasons.values()))
    os.environ.update(KERNEL_ENVIRONMENT)
    failed = False
    for path in paths:
        line, well = update(path, arguments.all)
        print(line, flush=True)
        failed = failed or not well
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
