"""The committed outputs belong to the committed code, and are in the form that is committed."""

import copy
import shutil

import nbformat
import pytest
from execute import (
    ROOT,
    code_cells,
    data_fingerprint,
    fingerprints,
    finish,
    notebooks,
    stale_reason,
)

MAX_SECONDS = 60  # for one notebook on two cores

PAGES = notebooks()
TEMPLATE = ROOT / "tools" / "template.ipynb"


def read(path=TEMPLATE):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_outputs_are_fresh(path):
    reason = stale_reason(read(path))
    assert reason is None, f"the outputs are stale, {reason}: run `make execute` and commit"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_notebook_is_finished(path):
    notebook = read(path)
    if "seconds" not in notebook.metadata.get("citynb", {}):
        pytest.fail("never executed by tools/execute.py: run `make execute`")
    finished = nbformat.writes(finish(copy.deepcopy(notebook)))
    assert finished == nbformat.writes(notebook), (
        "the head, a caption or the metadata is not as written last: run `make execute`"
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_notebook_is_quick(path):
    assert read(path).metadata["citynb"]["seconds"] <= MAX_SECONDS


def fresh():
    """Return the template as if it had been executed just now."""
    notebook = read()
    notebook.metadata["citynb"] = nbformat.from_dict(fingerprints(notebook))
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
    assert stale_reason(fresh(), checkout) is None


def test_other_code_is_stale():
    notebook = fresh()
    code_cells(notebook)[1].source += "\nx = 1"
    assert "its code" in stale_reason(notebook)


def test_other_markdown_is_fresh():
    notebook = fresh()
    notebook.cells[-1].source += " More."
    assert stale_reason(notebook) is None


def test_new_notebook_is_stale():
    notebook = fresh()
    del notebook.metadata["citynb"]
    assert "never executed" in stale_reason(notebook)


def test_other_package_code_is_stale(checkout):
    path = checkout / "citynb" / "display.py"
    path.write_text(path.read_text() + "\nEXTRA = 1\n")
    assert "citynb changed" in stale_reason(fresh(), checkout)


def test_comments_and_docstrings_do_not_count(checkout):
    path = checkout / "citynb" / "display.py"
    text = path.read_text()
    changed = "# a comment\n" + text.replace('"""Display one sentence', '"""Show one sentence')
    assert changed.count('"""Show one sentence') == 1
    path.write_text(changed)
    assert stale_reason(fresh(), checkout) is None


@pytest.mark.parametrize("code", ['citynb.load("buses")', "open('../../data/buses/buses.csv')"])
def test_data_counts_where_it_is_named(checkout, code):
    notebook = fresh()
    code_cells(notebook)[1].source = code
    before = data_fingerprint(notebook, checkout)
    (checkout / "data" / "buses" / "buses.csv").write_text("22\n")
    assert data_fingerprint(notebook, checkout) != before


def test_the_loader_counts_where_its_dataset_is_named(checkout):
    notebook = fresh()
    code_cells(notebook)[1].source = 'citynb.load("buses")'
    before = fingerprints(notebook, checkout)
    (checkout / "citynb" / "datasets" / "buses.py").write_text("CUTS = (1, 2)\n")
    after = fingerprints(notebook, checkout)
    assert after["data"] != before["data"]
    assert after["package"] == before["package"]


def test_data_does_not_count_elsewhere(checkout):
    before = data_fingerprint(fresh(), checkout)
    (checkout / "data" / "buses" / "buses.csv").write_text("22\n")
    assert data_fingerprint(fresh(), checkout) == before


def test_a_notebook_that_fails_is_left_untouched(tmp_path, monkeypatch):
    import execute

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
