"""The package stays small, and its docstrings say what a reader needs."""

import ast
import inspect
import io
import re
import tokenize
from pathlib import Path

import pytest

import citynb
from citynb.results import Results

METHODS = [
    citynb.CityTask.from_counts,
    citynb.CityTask.from_folder,
    citynb.CityTask.subset,
    citynb.Split.batches,
    citynb.Split.read,
    Results.by_name,
    Results.compare,
    Results.chances,
]
PUBLIC = [getattr(citynb, name) for name in citynb.__all__] + METHODS
# What carries a method of somebody else names its source: a year, or an address.
FROM_THE_LITERATURE = [
    citynb.CityTask.from_counts,
    citynb.HubLayer,
    citynb.backbone,
    citynb.compare,
    citynb.evaluate,
    citynb.fine_tune,
]


def named(things):
    return pytest.mark.parametrize("thing", things, ids=lambda thing: thing.__qualname__)


def test_the_package_stays_small():
    assert len(set(citynb.__all__)) == len(citynb.__all__) <= 16
    for name in citynb.__all__:
        assert callable(getattr(citynb, name))


def test_the_code_stays_small():
    """Lines of code, without docstrings, comments and blanks: to be read in an evening."""
    total = 0
    for file in Path(citynb.__file__).parent.rglob("*.py"):
        source = file.read_text()
        told = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                if ast.get_docstring(node, clean=False) is not None:
                    told |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        code = set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.string.strip() and token.type != tokenize.COMMENT:
                code |= set(range(token.start[0], token.end[0] + 1))
        total += len(code - told)
    assert total <= 3500


ROOMS = {  # what a module may import of the package: arrows one way
    "tasks": {"tasks"},
    "networks": {"networks", "downloads", "files"},
    "datasets": {"datasets", "tasks", "files", "downloads"},
    "inference": {"tasks"},
    "evaluation": {"inference"},
    "comparison": {"evaluation"},
    "results": {"comparison", "evaluation", "files"},
    "heads": set(),
    "files": set(),
    "downloads": {"archives"},
    "archives": set(),
    "training": {"training", "heads", "inference", "tasks"},
    "notebook": set(),
    "session": {"notebook"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_run_one_way(room):
    folder = Path(citynb.__file__).parent
    files = [folder / f"{room}.py"] if (folder / f"{room}.py").exists() else folder.glob(f"{room}/*")
    for file in (file for file in files if file.suffix == ".py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("citynb"):
                continue
            parts = node.module.split(".")[1:]
            used = {parts[0]} if parts else {alias.name for alias in node.names}
            assert used <= ROOMS[room], f"{file} imports {used}"
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{file} imports {private} of another module"


@named(PUBLIC)
def test_every_argument_is_explained(thing):
    documented = thing.__doc__
    refers = "as in `Source`" in documented  # whose attributes are the other arguments
    for name in inspect.signature(thing).parameters:
        if name not in ("self", "kwargs") and not refers:
            # A parameter opens a line of Args or Attributes, alone or with its like.
            assert re.search(rf"^ +(\*\*)?(\w+, )*{name}\b.*:", documented, re.MULTILINE), name


@named(PUBLIC)
def test_errors_results_and_units_are_told(thing):
    documented = inspect.getdoc(thing)
    assert re.search(r"^Raises:\n +[\w.]+(Error)?: ", documented, re.MULTILINE)
    source = inspect.getsource(thing)
    if inspect.isfunction(thing) and re.search(r"^    return ", source, re.MULTILINE):
        assert re.search(r"^(Returns:\n|Return |.*[Rr]eturn)", documented, re.MULTILINE)
    # A shape such as (batch, d), a unit, or a Python type.
    assert re.search(
        r"\((batch|n|height|examples)[,)]|\b(bool|int|str|float|hours|pixels|pictures|path)\b",
        documented,
    )


@named(FROM_THE_LITERATURE)
def test_methods_name_their_source(thing):
    assert re.search(r"\b(19|20)\d\d\b|arXiv|\w+\.org\b", thing.__doc__)
