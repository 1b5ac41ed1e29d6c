"""The committed outputs belong to the committed code, and are in the form that is committed."""

import copy
import shutil

import nbformat
import pytest

from tools import execute
from tools.execute import fingerprints, stale_reason
from tools.pages import ROOT, TEMPLATE, code_cells, finish, notebooks
from tools.pages import read as read_notebook

PAGES = notebooks()


def read(path=TEMPLATE):
    return read_notebook(path)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_outputs_are_fresh(path):
    reason = stale_reason(read(path))
    assert reason is None, f"the outputs are stale, {reason}: run `make stale` and commit"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_notebook_is_finished(path):
    notebook = read(path)
    if "seconds" not in notebook.metadata.get("citynb", {}):
        pytest.fail("never executed by tools/execute.py: run `make stale`")
    finished = nbformat.writes(finish(copy.deepcopy(notebook)))
    assert finished == nbformat.writes(notebook), (
        "the head, a caption or the metadata is not as written last: run `make stale`"
    )


def fresh(root=ROOT):
    """Return the template as if it had been executed just now."""
    notebook = read()
    notebook.metadata["citynb"] = nbformat.from_dict(fingerprints(notebook, root))
    return notebook


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package and of a small dataset, to change."""
    shutil.copytree(
        ROOT / "citynb", tmp_path / "citynb", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "data" / "buses").mkdir(parents=True)
    (tmp_path / "data" / "buses" / "buses.csv").write_text("1\n")
    return tmp_path


def test_an_executed_notebook_is_fresh(checkout):
    assert stale_reason(fresh(checkout), checkout) is None


def test_other_code_is_stale():
    notebook = fresh()
    code_cells(notebook)[1].source += "\nx = 1"
    assert "its code" in stale_reason(notebook)


def test_other_comments_are_fresh():
    notebook = fresh()
    code_cells(notebook)[1].source += "\n# a comment"
    assert stale_reason(notebook) is None


def test_other_markdown_is_fresh():
    notebook = fresh()
    notebook.cells[0].source += " More."
    assert stale_reason(notebook) is None


def test_new_notebook_is_stale():
    notebook = fresh()
    del notebook.metadata["citynb"]
    assert "never executed" in stale_reason(notebook)


@pytest.mark.parametrize(
    ("name", "stale"), {"evaluation": True, "session": True, "training": False}.items()
)
def test_only_modules_that_the_page_reaches_make_it_stale(checkout, name, stale):
    notebook = fresh(checkout)
    (path,) = [*checkout.glob(f"citynb/{name}.py"), *checkout.glob(f"citynb/{name}/__init__.py")]
    path.write_text(path.read_text() + "\nEXTRA = 1\n")
    reason = stale_reason(notebook, checkout)
    assert ("a module of citynb that it reaches" in (reason or "")) == stale


def test_data_makes_a_page_stale_where_it_is_named(checkout):
    notebook = fresh(checkout)
    (checkout / "data" / "buses" / "buses.csv").write_text("22\n")
    assert stale_reason(notebook, checkout) is None
    code_cells(notebook)[1].source += '\nopen("../data/buses/buses.csv")'
    notebook.metadata["citynb"] = nbformat.from_dict(fingerprints(notebook, checkout))
    (checkout / "data" / "buses" / "buses.csv").write_text("333\n")
    assert "its data changed" in stale_reason(notebook, checkout)


def test_a_notebook_that_fails_is_left_untouched(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    notebook = fresh()
    notebook.cells = [nbformat.v4.new_markdown_cell("# T"), nbformat.v4.new_code_cell("1 / 0")]
    path = tmp_path / "failing.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    line, well = execute.update(path, force=True)
    assert not well
    assert "failing.ipynb: FAILED" in line and "ZeroDivisionError" in line
    assert path.read_bytes() == before
