"""Every folder of data/ and models/ has a card, its script, and files that are what they were."""

import hashlib
import re
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
MODELS = DATA.parent / "models"
FOLDERS = [path for path in sorted([*DATA.glob("*/"), *MODELS.glob("*/")]) if path.name[0] != "_"]
MAX_BYTES = 25 * 1024**2  # all of data/

FIELDS = ["What", r"Licen[cs]e", "Attribution"]
DATASET_FIELDS = ["Who measured it", "When", "Units"]
SECTIONS = [r"[Cc]lean", "[Gg]aps|[Ll]imits", "must not be used for"]


def card_problems(text):
    """Yield what a card lacks. A model's card has no units and nothing to clean."""
    model = text.startswith("# Model card: ")
    if not model and not text.startswith("# Card: "):
        yield "the first line must be '# Card: name' or '# Model card: name'"
    for field in FIELDS if model else FIELDS + DATASET_FIELDS:
        if not re.search(rf"^\| \*\*{field}\*\* \| \S.*\S \|$", text, re.MULTILINE):
            yield f"no row '| **{field}** | ... |'"
    for section in SECTIONS[1:] if model else SECTIONS:
        if not re.search(rf"^## .*({section}).*\n+\S", text, re.MULTILINE):
            yield f"no section '## ... {section} ...' with text below it"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_card_is_complete(folder):
    card = folder / "card.md"
    assert card.exists(), f"{card} is missing: see CONTRIBUTING.md, Data"
    assert not list(card_problems(card.read_text()))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_files_are_listed_and_whole(folder):
    files = {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in (".md", ".py", ".pyc")
        and path.name != "SHA256SUMS"
    }
    sums = dict(
        reversed(line.split(maxsplit=1))
        for line in (folder / "SHA256SUMS").read_text().splitlines()
    )
    assert files, f"{folder} holds no data"
    assert set(sums) == set(files), "SHA256SUMS must list every data file and no other"
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sums[name], f"{path} has changed"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_script_that_made_it_is_there(folder):
    script = folder / ("train.py" if folder.parent == MODELS else "publish.py")
    if not script.exists() and "python -m simulation" in (folder / "card.md").read_text():
        script = DATA.parent / "simulation" / "__main__.py"
    compile(script.read_text(encoding="utf-8"), str(script), "exec")


def test_all_data_is_small():
    total = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    assert 0 < total <= MAX_BYTES, f"data/ holds {total / 1024**2:.1f} MB"


def test_a_card_without_license_is_found():
    card = (DATA / "i94" / "card.md").read_text()
    assert not list(card_problems(card))
    without = re.sub(r"^\| \*\*Licen.*\n", "", card, flags=re.MULTILINE)
    assert list(card_problems(without)) == ["no row '| **Licen[cs]e** | ... |'"]


def test_a_card_without_warning_is_found():
    card = (DATA / "i94" / "card.md").read_text()
    without = card.replace("must not be used for", "may be used for")
    assert "must not be used for" in " ".join(card_problems(without))
