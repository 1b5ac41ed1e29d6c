"""What the tool does to a page: numbers into the text, folds, and no change the second time."""

import copy
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from tools import pages
from tools.pages import BOUND, bind, finish, fold, only_checks, only_names_numbers, only_says


def page(text, printed=None):
    """Return a notebook with a sentence; `printed` is what its last cell printed."""
    notebook = nbformat.v4.new_notebook(cells=[new_markdown_cell(text), new_code_cell("x = 1")])
    notebook.metadata["citynb"] = {"seconds": 5}
    bind(notebook)
    if printed is not None:
        notebook.cells[-1].outputs = [new_output("stream", name="stdout", text=printed)]
    return notebook


STYLES = {  # text before, what the run printed, text after
    "share of a hundred": ("**0 of 100**<!-- a.b -->", "a.b 100 0 89", "**89 of 100**"),
    "points": ("**0 points**<!-- a.b -->", "a.b 100 0 26", "**26 points**"),
    "percent": ("0.0%<!-- a.b -->", "a.b 100 1 88.6", "88.6%"),
    "percent, spelled": ("0 percent<!-- a.b -->", "a.b 100 0 88", "88 percent"),
    "no leading zero": (".000<!-- a.b -->", "a.b 1 3 0.847", ".847"),
    "leading zero": ("0.000<!-- a.b -->", "a.b 1 3 0.847", "0.847"),
    "of a hundred, by the comment": ("84<!-- a.b * 100 -->", "a.b 100 0 85", "85"),
    "one as a style without zero": (".9<!-- a.b -->", "a.b 1 1 1.0", "1.0"),
    "thousands": ("0<!-- a.b -->", "a.b 1 0 20000", "20,000"),
    "thousands, as before": ("20,000<!-- a.b -->", "a.b 1 0 2000", "2,000"),
    "years keep their form": ("2000<!-- a.b -->", "a.b 1 0 2016", "2016"),
    "gain": ("+.00<!-- a.b -->", "a.b 1 2 0.26", "+.26"),
    "loss": ("+.00<!-- a.b -->", "a.b 1 2 -0.26", "-.26"),
    "interval": ("(0 to 0<!-- a.b * 100 -->)", "a.b 100 0 21 32", "(21 to 32"),
    "interval of points": ("0 to 0 points<!-- a.b -->", "a.b 100 0 -1 6", "-1 to 6 points"),
    "only the second is bound": ("from 3 to 0<!-- a.b -->", "a.b 1 0 6", "from 3 to 6"),
    "a year and a number": ("In 2016, 0<!-- a.b -->", "a.b 1 0 7", "In 2016, 7"),
}


@pytest.mark.parametrize("name", STYLES)
def test_a_number_is_written_in_the_style_of_its_place(name):
    before, printed, after = STYLES[name]
    notebook = finish(page(before, printed + "\n"))
    text = notebook.cells[0].source
    assert text.startswith(after) and "<!-- a.b" in text
    again = copy.deepcopy(notebook)
    assert nbformat.writes(finish(again)) == nbformat.writes(notebook)


@pytest.mark.parametrize(
    ("text", "printed", "message"),
    [
        ("5<!-- a.b -->", None, "no run has printed"),
        ("5<!-- a.b -->", "a.c 1 0 5\n", "no value yet"),
        ("5<!-- a.b -->", "a.b 1 0 nan\n", "a.b is nan"),
        ("5<!-- a.b -->", "a.b 1 0 1 2\n", "has 2 values"),
        ("4 to 5<!-- a.b -->", "a.b 1 0 1 2 3\n", "has 3 values"),
    ],
)
def test_a_number_without_a_fitting_value_is_refused(text, printed, message):
    with pytest.raises(ValueError, match=message):
        finish(page(text, printed))


def test_the_cell_prints_the_values_of_the_run(capsys):
    class Report:
        accuracy = 0.8949

    notebook = page(
        "0 of 100<!-- tuned.accuracy -->, .000<!-- tuned.accuracy -->, 0 to 0<!-- gap -->"
    )
    exec(notebook.cells[-1].source, {"numbers": {"tuned": Report(), "gap": (-0.4, 12.0)}})
    assert capsys.readouterr().out == (
        "tuned.accuracy 100 0 89\ntuned.accuracy 1 3 0.895\ngap 1 0 0 12\n"
    )


def test_the_cell_comes_and_goes_with_the_numbers():
    notebook = page("5<!-- a.b -->", "a.b 1 0 5\n")
    outputs = notebook.cells[-1].outputs
    bind(notebook)
    assert notebook.cells[-1].outputs == outputs, "the same numbers keep their values"
    notebook.cells[0].source += " and 6<!-- a.c -->"
    bind(notebook)
    assert "a.c" in notebook.cells[-1].source and notebook.cells[-1].outputs == []
    notebook.cells[0].source = "No number."
    bind(notebook)
    assert [cell.source for cell in notebook.cells] == ["No number.", "x = 1"]


def test_comments_that_bind_nothing():
    assert not BOUND.search("A remark <!-- todo --> and 5 <!-- end of map -->")


SOURCES = {  # source: (says, checks, names numbers)
    'citynb.say("A {b}.", b=1)': (True, False, False),
    'citynb.say("A.")\ncitynb.say("B.")': (True, False, False),
    'x = 1\ncitynb.say("A {x}.", x=x)': (False, False, False),
    "assert x > 1\nassert y": (False, True, False),
    "np.testing.assert_allclose(x, y)": (False, True, False),
    "assert x\nx": (False, False, False),
    "numbers = {'a': 1}": (False, False, True),
    "numbers['a'] = 1": (False, False, True),
    "numbers_of = 1": (False, False, False),
    "%pip install x": (False, False, False),
    "# only a comment": (False, False, False),
}


@pytest.mark.parametrize("source", SOURCES)
def test_cells_are_told_apart(source):
    found = (only_says(source), only_checks(source), only_names_numbers(source))
    assert found == SOURCES[source]


@pytest.mark.parametrize(
    ("source", "tags", "after"),
    [
        ('citynb.say("A.")', [], ["hide-input"]),
        ("assert x", [], ["hide-cell"]),
        ("numbers = {}", [], ["remove-cell"]),
        ("assert x", ["visible"], ["visible"]),
        ("x", ["solution"], ["solution", "hide-cell"]),
        ("x", [], []),
    ],
)
def test_folds(source, tags, after):
    cell = new_code_cell(source, metadata={"tags": tags} if tags else {})
    fold(cell)
    assert pages.tags(cell) == after
    hidden = bool(pages.FOLDS & set(after))
    assert cell.metadata.get("jupyter", {}).get("source_hidden", False) == hidden
    assert (cell.metadata.get("cellView") == "form") == hidden
    nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))


@pytest.mark.slow
@pytest.mark.parametrize(("value", "code"), [(5, 0), (6, 1)])
def test_nbval_compares_a_bound_number_with_a_new_run(tmp_path, value, code):
    notebook = page("It is 5<!-- a.b -->.", "a.b 1 0 5\n")
    notebook.cells[1].source = f"numbers = {{'a': {{'b': {value}}}}}"
    nbformat.write(finish(notebook), tmp_path / "page.ipynb")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "page.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.returncode == code, found.stdout
    assert code == 0 or "a.b 1 0 6" in found.stdout
