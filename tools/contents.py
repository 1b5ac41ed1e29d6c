"""Bring _toc.yml, and the map in intro.md and README.md, up to date with the pages that exist.

    python -m tools.contents

A page that _toc.yml lacks is added at the end of its part; a page that is gone is dropped.
Move a page by moving its line in _toc.yml, then run this again: the order is that of _toc.yml,
the titles are those of the notebooks. A test fails when any of the three is out of date.
"""

import re

import yaml

from tools.pages import ROOT, read

BOOK = "https://citynb.github.io/fine-tuning-for-cities"
MAP = re.compile(r"(<!-- map: .*? -->\n).*?(<!-- end of map -->)", re.DOTALL)

# The folders of chapters/: the article's section that each covers, and the part's name.
SECTIONS = {
    "background": ("1. Background: smart cities and where fine-tuning comes in", "Background"),
    "transfer_learning": (
        "2. Core concepts: transfer learning, fine-tuning, city tasks",
        "Transfer learning",
    ),
    "math_of_sgd": (
        "3. The algorithm, step by step, and its mathematics",
        "The mathematics of SGD",
    ),
    "traffic": (
        "4. Best practice: predicting traffic with a pretrained ResNet",
        "The case study: traffic",
    ),
    "city_tasks": (
        "5. Applications: traffic, environment, public safety, planning",
        "City tasks",
    ),
    "tools": ("6. Tools and resources", "Tools"),
    "outlook": ("7. Outlook: trends and challenges", "Outlook"),
    "faq": ("8. Appendix: questions and answers", "Questions and answers"),
}


def toc_parts(root=ROOT):
    """Return [(caption, [file, ...]), ...] from _toc.yml; a file has no suffix, as written there."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    return [(part["caption"], [page["file"] for page in part["chapters"]]) for part in toc["parts"]]


def toc(root=ROOT):
    """Return the text of _toc.yml with every page that exists, in the order it has now."""
    order = [file for _, files in toc_parts(root) for file in files]
    parts = []
    for folder, (_, caption) in SECTIONS.items():
        found = (root / "chapters" / folder).glob("*.ipynb")
        pages = sorted(str(path.relative_to(root).with_suffix("")) for path in found)
        pages.sort(key=lambda page: order.index(page) if page in order else len(order))
        parts.append((caption, pages))
    parts.append(("Reference", [file for file in order if not file.startswith("chapters/")]))
    lines = ["format: jb-book", "root: intro", "parts:"]
    for caption, pages in parts:
        if pages:
            lines += [f'  - caption: "{caption}"', "    chapters:"]
            lines += [f"      - file: {page}" for page in pages]
    return "\n".join(lines) + "\n"


def title(file, root=ROOT):
    """Return the title of a notebook, which is its first line."""
    notebook = read(root / f"{file}.ipynb")
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ").strip()


def table(link, root=ROOT):
    """Return the map as a Markdown table. `link` makes a link's target from a page's file."""
    rows = ["| The article | The book |", "|---|---|"]
    files = [file for _, files in toc_parts(root) for file in files]
    for folder, (section, _) in SECTIONS.items():
        pages = [file for file in files if file.startswith(f"chapters/{folder}/")]
        links = "<br>".join(f"[{title(file, root)}]({link(file)})" for file in pages)
        rows.append(f"| {section} | {links or 'to come'} |")
    return "\n".join(rows) + "\n"


def with_map(text, table):
    """Return the text with the map between its two marks replaced."""
    return MAP.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", text)


PLACES = {  # file: how it links to a page
    "intro.md": lambda file: f"{file}.ipynb",
    "README.md": lambda file: f"{BOOK}/{file}.html",
}


def main():
    (ROOT / "_toc.yml").write_text(toc())
    for name, link in PLACES.items():
        path = ROOT / name
        path.write_text(with_map(path.read_text(), table(link)))


if __name__ == "__main__":
    main()
