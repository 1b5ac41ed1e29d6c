"""What a page is: its form in the repository, what is folded, and the numbers in its text.

A number in Markdown is bound to a value of the run by a comment right behind it,

    reaches **89 of 100**<!-- waste.tuned.accuracy --> (87 to 91<!-- waste.tuned.interval * 100 -->),

where the page holds a dict `numbers`: here `numbers["waste"]["tuned"]["accuracy"]` is .89. The tool
puts one folded cell at the end of the page; it prints the values as the text rounds them. Text
takes its numbers from that output, and nbval compares the output with that of each later run.
"""

import ast
import math
import re
from pathlib import Path

import nbformat

from tools.fingerprint import digest

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "tools" / "template.ipynb"

ANSI = re.compile(r"\x1b\[[0-9;]*m")
TIME_LINE = re.compile(r"^\*\*Time(:\*\*|\*\*).*$", re.MULTILINE)

FOLDS = {"hide-cell", "hide-input", "remove-cell", "remove-input"}  # Jupyter Book's tags

NUMBER = r"[+\-\u2212]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
BOUND = re.compile(
    rf"""
    (?<![\w.,])
    (?: (?P<low>{NUMBER}) (?P<between>\s?%?\s(?:to|and)\s|\u2013) )?
    (?P<number>{NUMBER})
    (?P<unit>\s?% | \s(?:percent|percentage\ points?|points?|of\ 100))?
    (?P<close>\*{{0,3}})
    <!--\s*(?P<name>\w+(?:\.\w+)*)(?P<times>\s*\*\s*100)?\s*-->
    """,
    re.VERBOSE,
)
NAMED = re.compile(r"<!--\s*(\w+(?:\.\w+)+)[^>]*-->")  # a comment that means to bind a number
PRINT_NUMBERS = """\
# The numbers in the text above, as this run gives them. Written by tools/pages.py.
import numpy as np

for name, scale, digits in [
{rows}
]:
    value = numbers
    for key in name.split("."):
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    rounded = [round(float(scale * part), digits) + 0.0 for part in np.ravel(value)]
    print(name, scale, digits, *(f"{{part:.{{digits}}f}}" for part in rounded))"""


def notebooks():
    """Return the paths of all notebooks of the book, and of the template for new ones."""
    chapters = (ROOT / "chapters").rglob("*.ipynb")
    return [TEMPLATE, *sorted(p for p in chapters if ".ipynb_checkpoints" not in p.parts)]


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def tags(cell):
    return cell.metadata.get("tags", [])


def code(notebook):
    """Return the notebook's Python as one text, without what only IPython knows.

    A cell that is not Python even so is left out: it cannot run.
    """
    texts = []
    for cell in code_cells(notebook):
        text = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE)
        try:
            ast.parse(text)
        except SyntaxError:
            continue
        texts.append(text)
    return "\n".join(texts)


# --- numbers ----------------------------------------------------------------------------


def bound_numbers(notebook):
    """Return the matches of BOUND in the Markdown cells, in order."""
    return [found for cell in markdown(notebook) for found in BOUND.finditer(cell.source)]


def bind(notebook):
    """Give the page the cell that prints its bound numbers, or take it away when there are none.

    The cell stays as it is, outputs included, as long as the same values are asked for.
    """
    wanted = dict.fromkeys(_key(found) for found in bound_numbers(notebook))
    present = [cell for cell in code_cells(notebook) if "numbers" in tags(cell)]
    rows = "\n".join(f'    ("{name}", {scale}, {digits}),' for name, scale, digits in wanted)
    source = PRINT_NUMBERS.format(rows=rows)
    if wanted and present == notebook.cells[-1:] and present[0].source == source:
        return
    notebook.cells = [cell for cell in notebook.cells if cell not in present]
    if wanted:
        marks = {"tags": ["numbers", "remove-cell", "nbval-check-output"]}
        notebook.cells.append(nbformat.v4.new_code_cell(source, metadata=marks))


def write_numbers(notebook):
    """Write the values of the last run into the text.

    Raises:
        ValueError: a number has no value, or not one that fits its place in the text.
    """
    if bound_numbers(notebook):
        values = printed_numbers(notebook)
        for cell in markdown(notebook):
            cell.source = BOUND.sub(lambda found: _written(found, values), cell.source)


def printed_numbers(notebook):
    """Return {(name, scale, digits): [value, ...]} as the last cell printed it; values are str."""
    last = notebook.cells[-1]
    if "numbers" not in tags(last) or not last.outputs:
        raise ValueError("the text has bound numbers that no run has printed: execute the page")
    rows = [line.split() for line in last.outputs[0].get("text", "").splitlines()]
    return {(name, int(scale), int(digits)): rest for name, scale, digits, *rest in rows}


def _key(found):
    """Return (name, scale, digits after the point) of a bound number."""
    scale = 100 if found["times"] or found["unit"] else 1
    return found["name"], scale, len(found["number"].partition(".")[2])


def _written(found, values):
    """Return the text of a bound number with its value in the style of what stands there."""
    parts = values.get(_key(found))
    if parts is None:
        raise ValueError(f"the number {found[0]!r} has no value yet: execute the page")
    if not all(math.isfinite(float(part)) for part in parts):
        raise ValueError(f"the number {found['name']} is {' and '.join(parts)}")
    if len(parts) > 2 or (len(parts) == 2 and not found["low"]):
        raise ValueError(f"{found['name']} has {len(parts)} values, and the text {found[0]!r} not")
    new = _in_style(found["number"], parts[-1])
    if found["low"]:
        low = _in_style(found["low"], parts[0]) if len(parts) == 2 else found["low"]
        new = low + found["between"] + new
    return new + found[0][found.end("number") - found.start() :]


def _in_style(old, value):
    """Return the value with the sign, the leading zero and the thousands of the old number."""
    minus, whole = value.startswith("-"), value.lstrip("-")
    whole, point, digits = whole.partition(".")
    if old.lstrip("+-\u2212").startswith(".") and whole == "0":
        whole = ""
    elif "," in old or len(whole) > 4:
        whole = f"{int(whole):,}"
    sign = "\u2212" if minus and "\u2212" in old else "-" if minus else "+" if "+" in old else ""
    return sign + whole + point + digits


# --- folds ------------------------------------------------------------------------------


def only_says(source):
    """Return whether a cell only prints sentences: calls of `citynb.say` and nothing else."""
    return _only(source, lambda node: _is_call(node, r"(citynb\.)?say"))


def only_checks(source):
    """Return whether a cell only checks: asserts, or the likes of `np.testing.assert_allclose`."""
    return _only(
        source, lambda node: isinstance(node, ast.Assert) or _is_call(node, r".*\bassert_\w+")
    )


def only_names_numbers(source):
    """Return whether a cell only fills `numbers`, which the text is bound to."""
    return _only(
        source,
        lambda node: (
            isinstance(node, ast.Assign)
            and re.match(r"numbers\b", ast.unparse(node.targets[0])) is not None
        ),
    )


def _only(source, kind):
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a magic
        return False
    return bool(body) and all(map(kind, body))


def _is_call(node, name):
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and re.fullmatch(name, ast.unparse(node.value.func)) is not None
    )


def fold(cell):
    """Fold what a reader need not see: in the book by tags, in JupyterLab and Colab by metadata.

    A cell that only prints sentences shows its output, one that only checks is closed, one that only
    fills `numbers` is not in the book at all; with the tag `visible` they stay open.
    """
    marks = list(tags(cell))
    if not {"visible", *FOLDS} & set(marks):
        if only_names_numbers(cell.source):
            marks.append("remove-cell")
        elif "solution" in marks or (only_checks(cell.source) and not cell.outputs):
            marks.append("hide-cell")
        elif only_says(cell.source):
            marks.append("hide-input")
    if marks:
        cell.metadata["tags"] = marks
    if FOLDS & set(marks):
        cell.metadata["cellView"] = "form"
        cell.metadata["jupyter"] = {"source_hidden": True}
        if "solution" in marks:
            cell.metadata["jupyter"]["outputs_hidden"] = True


# --- the form that is committed ---------------------------------------------------------


def finish(notebook):
    """Bring an executed notebook into the form that is committed; a second call changes nothing.

    Raises:
        ValueError: a cell shows two figures, or a bound number has no value.
    """
    bind(notebook)
    write_numbers(notebook)
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
        fold(cell)
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
    text = (re.sub(r"<!--.*?-->", "", cell.source) for cell in markdown(notebook))
    words = sum(len(part.split()) for part in text)
    shown = (cell for cell in code_cells(notebook) if "numbers" not in tags(cell))
    lines = sum(len(cell.source.splitlines()) for cell in shown)
    minutes = math.ceil(words / 200 + lines / 15)  # 200 words or 15 lines of code a minute
    seconds = notebook.metadata["citynb"]["seconds"]
    return f"**Time:** {minutes} minutes to read, {seconds} seconds to run on two CPU cores."


def _cell_id(cell, taken):
    """Return an id made from the cell's text, so that a page written anew keeps its ids."""
    number = 0
    text = BOUND.sub(lambda found: found["name"], TIME_LINE.sub("", cell.source))
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
    if "solution" in tags(cell):
        render["code_prompt_show"], render["code_prompt_hide"] = "Show a solution", "Hide it"
    if render:
        cell.metadata["mystnb"] = render
