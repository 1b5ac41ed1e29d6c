"""The contract that every page keeps (CONTRIBUTING.md, "The contract of a page").

A check takes a notebook and yields what is wrong with it. The second half of this file
breaks the template in one way after the other, to show that each check can fail.
"""

import copy
import re

import nbformat
import pytest
from myst_parser.mdit_to_docutils.base import default_slugify

from tools.pages import (
    BOUND,
    FOLDS,
    NAMED,
    ROOT,
    TEMPLATE,
    TIME_LINE,
    code_cells,
    markdown,
    notebooks,
    read,
    tags,
    write_numbers,
)

PAGES = notebooks()
SETUP = {  # what the first code cell does, on Colab too
    "import citynb": "imports citynb",
    '%pip install -q --no-deps "citynb @ git+https://': "installs citynb where it is missing",
    "citynb.start()": "starts the page",
}
CITATION = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
# A number that somebody measured: a decimal, a share, a speed. Versions and sections are not.
MEASURED = re.compile(
    r"""
    (?<![\w.,-]) \d+(?:\.\d+)? \s? (?:%|percent\b|percentage\ points?\b)   # 88 %, 3 percentage points
    | (?<![A-Z]) (?<![\w.,/-]) \d*\.\d+ (?![\d.]*\w)                         # .885, 0.61, 7.4
    | (?<![\w.,-]) \d+(?:\.\d+)? \s (?:times|x)\ (?:as|faster|slower|more|fewer|less|better|worse)\b
    | (?<![\w.,-]) \d+(?:\.\d+)? \s (?:seconds?|minutes?|ms|s)\ (?:of\ training|to\ train|per\ epoch)\b
    """,
    re.VERBOSE,
)
NAMES = re.compile(r"\b(?:[A-Z][\w.]*|section|version|chapter|equation|step) \d+\.\d+(?:\.\d+)*")
MACHINE = re.compile(r"(/home/|/root/|/Users/|/tmp/|site-packages|\bat 0x[0-9a-f]{6,})")
SPELLING = {
    r"\bfine tun|\bfinetun": "fine-tun...",
    r"\bpre-train": "pretrain...",
    r"\bdata sets?\b": "dataset",
    r"\b(col|neighb|behavi)our": "...or",
    r"\b(normal|regular|optim|general|initial|visual)is(e|ed|es|ing|ation)\b": "...iz...",
    "\N{EM DASH}": "a comma, a colon or a full stop",
}


# --- reading a notebook ------------------------------------------------------------------


def lines(cell):
    return cell.source.strip().splitlines()


def first_line(cell):
    return repr(lines(cell)[0] if lines(cell) else "")


def prose(text):
    """Return Markdown without its code, its formulas and the targets of its links."""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$\n]+\$", "", text)
    text = re.sub(r"`[^`]+`", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def blocks(text):
    """Return the paragraphs, lists and tables of a Markdown text."""
    return [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]


def headings(notebook, level):
    """Return the texts of the headings of one level, in order."""
    text = "\n".join(
        re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.DOTALL | re.MULTILINE)
        for cell in markdown(notebook)
    )
    return [found.strip() for found in re.findall(rf"^{'#' * level} (.+)$", text, re.MULTILINE)]


def all_slugs(notebook):
    plain = (
        re.sub(r"[*`$]", "", text) for level in (1, 2, 3) for text in headings(notebook, level)
    )
    return {default_slugify(text) for text in plain}


def images(cell):
    kinds = ("image/png", "image/jpeg", "image/svg+xml")
    return [
        output
        for output in cell.get("outputs", [])
        if any(k in output.get("data", {}) for k in kinds)
    ]


# --- the contract --------------------------------------------------------------------------


def check_head(notebook, path):
    """One title; the time, written by the tool; a file name that says the topic."""
    head = notebook.cells[0]
    if head.cell_type != "markdown" or not head.source.startswith("# "):
        yield "the first cell must be Markdown and start with '# Title'"
        return
    if len(headings(notebook, 1)) != 1:
        yield f"one '# ' heading is the title; there are {headings(notebook, 1)}"
    if not re.search(r"\*\*Time:\*\* \d+ minutes to read, \d+ seconds to run", head.source):
        yield "the **Time:** line is written by tools/execute.py: execute the notebook"
    if not re.fullmatch(r"[a-z][a-z0-9_]*\.ipynb", path.name):
        yield f"the file name {path.name} must say the topic in snake_case, without a number"


def check_setup(notebook, path):
    """The first code cell makes the page run on Colab."""
    codes = code_cells(notebook)
    for text, purpose in SETUP.items():
        if not codes or text not in codes[0].source:
            yield f"the first code cell {purpose}, with {text!r}"
    for cell in codes[1:]:
        if re.search(r"^\s*[%!]pip\b", cell.source, re.MULTILINE):
            yield f"only the first code cell installs anything: {first_line(cell)}"


def check_figures(notebook, path):
    """Every picture has a name, a caption and an alt text; colors are told apart by everybody."""
    names = set()
    for cell in code_cells(notebook):
        if re.search(
            r"""cmap\s*=\s*["'](jet|rainbow|hsv|gist_rainbow|nipy_spectral)""", cell.source
        ):
            yield f"a rainbow color map misleads color-blind readers: {first_line(cell)}"
        if not images(cell):
            continue
        render = cell.metadata.get("mystnb", {})
        figure, alt = render.get("figure", {}), render.get("image", {}).get("alt", "")
        if len(images(cell)) > 1:
            yield f"one cell shows one figure: {first_line(cell)}"
        if not figure.get("name", "").startswith("fig-"):
            yield f"a picture has no fig- name; use citynb.show_figure: {first_line(cell)}"
        if len(figure.get("caption", "").split()) < 4:
            yield f"a picture has no caption: {first_line(cell)}"
        if len(alt.split()) < 4 or alt == figure.get("caption"):
            yield f"a picture has no alt text of its own: {first_line(cell)}"
        if figure.get("name") in names:
            yield f"two figures are named {figure['name']}"
        names.add(figure.get("name"))


def check_numbers(notebook, path):
    """A measured number in Markdown is bound to a value, or carries a citation.

    Settings belong in code or in a formula, so neither is looked at. A paragraph that holds a
    citation passes, and so does one that says "exactly": it states a definition.
    """
    for cell in markdown(notebook):
        for block in blocks(TIME_LINE.sub("", cell.source)):
            found = MEASURED.search(NAMES.sub("", prose(BOUND.sub("", block))))
            if found and not CITATION.search(block) and not re.search(r"\bexactly\b", block):
                yield f"the number {found[0].strip()!r} in Markdown: bind it to a value, print it by a cell, or cite it: {block[:60]!r}"


def check_bound_numbers(notebook, path):
    """The bound numbers in the text are those that the last cell printed."""
    for cell in markdown(notebook):
        for comment in NAMED.finditer(BOUND.sub("", cell.source)):
            yield f"the comment {comment[0]} stands right behind no number"
    written = copy.deepcopy(notebook)
    try:
        write_numbers(written)
    except ValueError as error:
        yield str(error)
        return
    for cell, right in zip(markdown(notebook), markdown(written)):
        for old, new in zip(BOUND.finditer(cell.source), BOUND.finditer(right.source)):
            if old[0] != new[0]:
                yield f"the text says {old[0]!r}, the run {new[0]!r}"


def check_exercises(notebook, path):
    """Each exercise has a folded solution, or a folded rubric, below it; no solution stands open."""
    text, waiting = "", None
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for part in blocks(cell.source):
                if part.startswith("## "):
                    text = part.splitlines()[0]
                if text == "## Exercises" and re.match(r"(## Exercises\s*)?\*\*[A-Z]", part):
                    if waiting:
                        yield f"no solution and no rubric follows the exercise {waiting!r}"
                    waiting = part[:50]
                if part.startswith(("<details", "## ")) and part != "## Exercises":
                    if waiting and part.startswith("## "):
                        yield f"no solution and no rubric follows the exercise {waiting!r}"
                    waiting = None
        elif "solution" in tags(cell):
            waiting = None
            if "hide-cell" not in tags(cell):
                yield f"a solution must be tagged hide-cell: {first_line(cell)}"
    if waiting:
        yield f"no solution and no rubric follows the exercise {waiting!r}"


def check_folds(notebook, path):
    """What is folded in the book is folded in JupyterLab and on Colab."""
    for cell in code_cells(notebook):
        if FOLDS & set(tags(cell)):
            hidden = cell.metadata.get("jupyter", {}).get("source_hidden")
            if not hidden or cell.metadata.get("cellView") != "form":
                yield f"folded in the book only: run the tool over it: {first_line(cell)}"


def check_outputs(notebook, path):
    """The notebook was executed top to bottom, and its outputs hold nothing of one machine."""
    codes = code_cells(notebook)
    if [cell.execution_count for cell in codes] != list(range(1, len(codes) + 1)):
        yield "the execution counts are not 1, 2, 3, ...: execute it with tools/execute.py"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel must be python3"
    for cell in codes:
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if errors and "raises-exception" not in tags(cell):
            yield f"an error was stored ({errors[0].ename}): {first_line(cell)}"
        if not errors and "raises-exception" in tags(cell):
            yield f"tagged raises-exception, but raised nothing: {first_line(cell)}"
        if any(output.get("name") == "stderr" for output in cell.outputs):
            yield f"stderr was stored: {first_line(cell)}"
        for output in cell.outputs:
            texts = [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
            texts += [
                text for kind, text in output.get("data", {}).items() if kind.startswith("text/")
            ]
            found = MACHINE.search("\n".join(map(str, texts)))
            if found:
                yield f"an output holds {found[0]!r}, which belongs to one machine: {first_line(cell)}"


def check_forbidden(notebook, path):
    """Nothing that breaks on Colab or escapes the tests."""
    if "widgets" in notebook.metadata:
        yield "widget state is stored; the page cannot draw it"
    for cell in notebook.cells:
        if re.search(r"\bglue\b\s*\(|import glue|\{glue", cell.source):
            yield f"myst_nb glue does not exist on Colab; use citynb.say: {first_line(cell)}"
        if re.search(r"\{(exercise|solution)(-start|-end)?\}", cell.source):
            yield f"sphinx-exercise directives show raw on Colab: {first_line(cell)}"
        skipped = {"nbval-skip", "skip-execution"} & set(tags(cell))
        if skipped:
            yield f"{skipped.pop()} would hide the cell from the tests: {first_line(cell)}"
        if any(
            "widget" in kind
            for output in cell.get("outputs", [])
            for kind in output.get("data", {})
        ):
            yield f"a widget was stored, which no page can draw: {first_line(cell)}"


def check_links(notebook, path):
    """Links to sections and pages lead somewhere, citations are in references.bib."""
    known = set(re.findall(r"^@\w+\{([^,]+),", (ROOT / "references.bib").read_text(), re.MULTILINE))
    for cell in markdown(notebook):
        text = re.sub(r"^(```|~~~).*?^\1", "", cell.source, flags=re.DOTALL | re.MULTILINE)
        for _, target in LINK.findall(text):
            if re.match(r"(https?|mailto):", target):
                continue
            file, _, anchor = target.partition("#")
            other = (path.parent / file).resolve() if file else path
            if not other.exists():
                yield f"the link to {target} leads nowhere"
            elif anchor and other.suffix == ".ipynb":
                linked = notebook if other == path else read(other)
                if anchor not in all_slugs(linked):
                    yield f"the link to {target} names a section that does not exist"
        for keys in CITATION.findall(text):
            for key in keys.split(","):
                if key.strip() not in known:
                    yield f"the citation {key.strip()!r} is not in references.bib"


def check_spelling(notebook, path):
    """One spelling through the whole book."""
    for cell in markdown(notebook):
        text = re.sub(r"https?://\S+", "", prose(cell.source))
        for pattern, better in SPELLING.items():
            if found := re.search(pattern, text, re.IGNORECASE):
                yield f"{found[0]!r}: this book writes {better}"


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


def problems(notebook, path=TEMPLATE):
    return [problem for check in CHECKS for problem in check(notebook, path)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_keeps_the_contract(path):
    notebook = read(path)
    nbformat.validate(notebook)
    found = problems(notebook, path)
    assert not found, "\n" + "\n".join(f"- {problem}" for problem in found)


def test_figure_names_are_unique_in_the_book():
    owner = {}
    for path in PAGES:
        for cell in code_cells(read(path)):
            name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
            if name:
                assert owner.setdefault(name, path) == path, f"{name}: {owner[name]} and {path}"


# --- each check can fail -----------------------------------------------------------------


@pytest.fixture
def page():
    return copy.deepcopy(read(TEMPLATE))


def replaced(old, new):
    """Return a change that replaces a text in the Markdown cells."""

    def change(page):
        assert any(old in cell.source for cell in markdown(page)), old
        for cell in markdown(page):
            cell.source = cell.source.replace(old, new)

    return change


def appended(text):
    """Return a change that adds a paragraph to the first section."""

    def change(page):
        markdown(page)[1].source += "\n\n" + text

    return change


def coded(change):
    """Return a change of the second code cell, the first one below the standard cell."""
    return lambda page: change(code_cells(page)[1])


def with_tags(*wanted):
    return coded(lambda cell: cell.metadata.update(tags=list(wanted)))


def with_source(source):
    return coded(lambda cell: cell.update(source=source))


def with_output(**output):
    return coded(lambda cell: cell.update(outputs=[nbformat.from_dict(output)]))


def figure(change):
    """Return a change of the cell that holds the figure."""
    return lambda page: change(next(cell for cell in code_cells(page) if images(cell)))


def without(kind, word):
    """Return a change that drops every cell of a kind with a word in it."""

    def change(page):
        page.cells = [c for c in page.cells if c.cell_type != kind or word not in c.source]

    return change


BROKEN = {
    "no title": (replaced("# A page to start from", "A page"), "start with '# Title'"),
    "two titles": (appended("# Another"), "one '# ' heading"),
    "time not written": (
        lambda page: page.cells[0].update(
            source=TIME_LINE.sub("**Time:** measured at execution.", page.cells[0].source)
        ),
        "written by tools/execute.py",
    ),
    "wrong slug": (
        replaced("(#where-the-trees-err)", "(#where-they-err)"),
        "section that does not exist",
    ),
    "nothing installed": (
        lambda page: code_cells(page)[0].update(source="import citynb\ncitynb.start()"),
        "installs citynb where it is missing",
    ),
    "installs later": (with_source("%pip install torch"), "only the first code cell installs"),
    "no alt text": (figure(lambda c: c.metadata.mystnb.image.update(alt="")), "no alt text"),
    "alt repeats caption": (
        figure(lambda c: c.metadata.mystnb.image.update(alt=c.metadata.mystnb.figure.caption)),
        "no alt text of its own",
    ),
    "no caption": (figure(lambda c: c.metadata.mystnb.figure.update(caption="")), "no caption"),
    "no figure name": (figure(lambda c: c.metadata.mystnb.figure.update(name="plot")), "fig- name"),
    "plain plot": (figure(lambda c: c.metadata.pop("mystnb")), "use citynb.show_figure"),
    "rainbow": (
        figure(lambda c: c.update(source=c.source + "\nplt.imshow(x, cmap='jet')")),
        "color-blind",
    ),
    "accuracy": (appended("The trees reach .936 here."), "'.936'"),
    "decimal": (appended("The trees need 7.4 s."), "'7.4'"),
    "percent": (appended("The trees are right in 88 % of the hours."), "'88 %'"),
    "percent in a list": (appended("- one\n- right in 88.5% of the hours"), "88.5%"),
    "speed": (appended("It is 10 times faster than before."), "10 times faster"),
    "bound number by hand": (
        lambda page: page.cells[0].update(
            source=re.sub(r"\d+ of 100", "99 of 100", page.cells[0].source)
        ),
        "the text says '99 of 100",
    ),
    "bound interval by hand": (
        lambda page: page.cells[0].update(
            source=re.sub(r"\(\d+ to", "(1 to", page.cells[0].source)
        ),
        "the text says '1 to",
    ),
    "bound to nothing": (appended("It reaches .5<!-- trees.recall -->."), "no value yet"),
    "no number before": (appended("It wins<!-- trees.accuracy -->."), "right behind no number"),
    "one number for two": (appended("It is 9<!-- trees.interval * 100 -->."), "has 2 values"),
    "numbers never printed": (lambda page: page.cells.pop(), "that no run has printed"),
    "no solution": (without("code", "refit"), "no solution and no rubric follows"),
    "no rubric": (
        lambda page: page.cells.append(nbformat.v4.new_markdown_cell("**A memo.** On what?")),
        "no solution and no rubric follows",
    ),
    "solution open": (
        lambda page: next(c for c in page.cells if "solution" in tags(c)).metadata.update(
            tags=["solution"]
        ),
        "tagged hide-cell",
    ),
    "folded in the book only": (
        lambda page: code_cells(page)[0].metadata.pop("cellView"),
        "folded in the book only",
    ),
    "not executed": (coded(lambda c: c.update(execution_count=None)), "execution counts"),
    "other kernel": (lambda page: page.metadata.kernelspec.update(name="julia"), "python3"),
    "stored error": (
        with_output(output_type="error", ename="E", evalue="", traceback=[]),
        "an error was stored",
    ),
    "no error": (with_tags("raises-exception"), "raised nothing"),
    "stderr": (with_output(output_type="stream", name="stderr", text="W"), "stderr"),
    "path": (with_output(output_type="stream", name="stdout", text="/home/me/x"), "'/home/'"),
    "address": (
        with_output(output_type="stream", name="stdout", text="<A at 0x7f00deadbeef>"),
        "at 0x",
    ),
    "widget": (
        with_output(
            output_type="display_data",
            metadata={},
            data={"application/vnd.jupyter.widget-view+json": {}},
        ),
        "widget",
    ),
    "widget state": (lambda page: page.metadata.update(widgets={}), "widget state"),
    "glue": (with_source("from myst_nb import glue\nglue('x', 1)"), "glue"),
    "skipped": (with_tags("nbval-skip"), "hide the cell"),
    "exercise directive": (appended(":::{exercise}\n:::"), "raw on Colab"),
    "dead link": (appended("See [that](nowhere.ipynb)."), "leads nowhere"),
    "dead section": (
        appended("See [that](template.ipynb#nothing)."),
        "section that does not exist",
    ),
    "unknown source": (appended("So it is {cite:p}`nobody1900`."), "not in references.bib"),
    "spelling": (appended("We normalise the colour."), "this book writes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_page_is_found(page, name):
    change, message = BROKEN[name]
    change(page)
    found = problems(page)
    assert any(message in problem for problem in found), found


FINE = [
    "Fine-tuning gained ten points, from 52 % to 62 % {cite:p}`kumar2022`.",
    "Half of the hours, exactly 50 %, lie below the median.",
    "With `learning_rate=0.01` and $p < 0.05$, in Keras 3.13 and Python 3.11, section 3.2.",
    "The hours from 2016-10-01 to 2018-09-30, at 64 x 64 pixels.",
    "So **91 of 100**<!-- trees.accuracy --> hours are right, or 91%<!-- trees.accuracy -->.",
    "A link to [the paper of 90%](https://example.org/0.95).",
]


@pytest.mark.parametrize("text", FINE)
def test_harmless_numbers_pass(page, text):
    appended(text.replace(" of 90%", ""))(page)
    assert problems(page) == []
