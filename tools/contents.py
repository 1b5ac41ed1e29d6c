"""Write the map from the article's sections to the book's pages into intro.md and README.md.

    python tools/contents.py

The order of the pages is that of _toc.yml, their titles are those of the notebooks.
A test fails when the map is out of date.
"""

import re
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
BOOK = "https://citynb.github.io/fine-tuning-for-cities"
MAP = re.compile(r"(<!-- map: .*? -->\n).*?(<!-- end of map -->)", re.DOTALL)

# The article's sections, in its order, and the folder of chapters/ that covers each.
SECTIONS = {
    "background": "1. Background: smart cities and where fine-tuning comes in",
    "transfer_learning": "2. Core concepts: transfer learning, fine-tuning, city tasks",
    "math_of_sgd": "3. The algorithm, step by step, and its mathematics",
    "traffic": "4. Best practice: predicting traffic with a pretrained ResNet",
    "city_tasks": "5. Applications: traffic, environment, public safety, planning",
    "tools": "6. Tools and resources",
    "outlook": "7. Outlook: trends and challenges",
    "faq": "8. Appendix: questions and answers",
}


def toc_parts(root=ROOT):
    """Return [(caption, [file, ...]), ...] from _toc.yml; a file has no suffix, as written there."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    return [(part["caption"], [page["file"] for page in part["chapters"]]) for part in toc["parts"]]


def title(file, root=ROOT):
    """Return the title of a notebook, which is its first line."""
    notebook = nbformat.read(root / f"{file}.ipynb", as_version=4)
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ").strip()


def table(link, root=ROOT):
    """Return the map as a Markdown table. `link` makes a link's target from a page's file."""
    rows = ["| The article | The book |", "|---|---|"]
    files = [file for _, files in toc_parts(root) for file in files]
    for folder, section in SECTIONS.items():
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
    for name, link in PLACES.items():
        path = ROOT / name
        path.write_text(with_map(path.read_text(), table(link)))


if __name__ == "__main__":
    main()
