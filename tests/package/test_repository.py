"""The parts of the repository agree with each other."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import nbformat
import pytest
import yaml

from tools.contents import BOOK, PLACES, table, toc, toc_parts, with_map
from tools.pages import ROOT, notebooks

SHIPPED = {"data": "_data", "models": "_models", "experiments/results": "_results"}  # in a wheel
REPOSITORY = "https://github.com/citynb/fine-tuning-for-cities"


def read(name):
    return (ROOT / name).read_text()


def pins(name):
    """Return {package: version} of a requirements file."""
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", read(name), re.MULTILINE))


def version(text):
    return tuple(int(part) for part in re.findall(r"\d+", text))


@pytest.mark.parametrize(
    "name",
    ["_config.yml", "pyproject.toml", "README.md", "CONTRIBUTING.md", "CITATION.cff"],
)
def test_one_address(name):
    found = re.findall(r"https://github\.com/[\w-]+/fine-tuning-for-cities", read(name))
    assert found and set(found) == {REPOSITORY}


def test_first_cell_installs_from_that_address():
    for path in notebooks():
        first = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        assert f'"citynb @ git+{REPOSITORY}"' in first.source, path


def test_one_address_of_the_book():
    assert tomllib.loads(read("pyproject.toml"))["project"]["urls"]["Book"] == BOOK
    assert BOOK in read("README.md")
    assert yaml.safe_load(read("CITATION.cff"))["url"] == BOOK


def test_one_version():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert yaml.safe_load(read("CITATION.cff"))["version"] == project["version"]


def test_table_of_contents_is_complete():
    assert read("_toc.yml") == toc(), "run `python -m tools.contents`"


def test_a_new_page_joins_its_part(tmp_path):
    (tmp_path / "_toc.yml").write_text(
        "parts: [{caption: x, chapters: [{file: chapters/faq/b}, {file: chapters/faq/gone}]},"
        " {caption: Reference, chapters: [{file: glossary}]}]"
    )
    for page in ("faq/a", "faq/b", "background/c"):
        (tmp_path / "chapters" / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "chapters" / f"{page}.ipynb").touch()
    (tmp_path / "_toc.yml").write_text(toc(tmp_path))
    assert toc_parts(tmp_path) == [
        ("Background", ["chapters/background/c"]),
        ("Questions and answers", ["chapters/faq/b", "chapters/faq/a"]),
        ("Reference", ["glossary"]),
    ]


@pytest.mark.parametrize("name", PLACES)
def test_map_is_up_to_date(name):
    text = read(name)
    assert text == with_map(text, table(PLACES[name])), "run `python -m tools.contents`"
    assert text.count("## The map") == 1 and "| The article | The book |" in text


def test_lock_holds_every_pin():
    wanted = pins("requirements.txt")
    wanted["tensorflow-cpu"] = wanted.pop("tensorflow")
    lock = pins("requirements-cpu.lock")
    assert {name: lock.get(name) for name in wanted} == wanted, "run `make lock`"
    assert "tensorflow" not in lock, "the lock must hold the CPU build only"


def test_pins_satisfy_the_lower_bounds():
    lock = pins("requirements-cpu.lock")
    lock["tensorflow"] = lock["tensorflow-cpu"]
    for requirement in tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]:
        name, bound = re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?", requirement).groups()
        assert name in lock, f"{name} is not in the lock"
        assert bound is None or version(lock[name]) >= version(bound), requirement


def test_style():
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "."]
    result = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_no_machine_paths():
    """Nothing that is committed names a place that exists on one machine only."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", ":!assets/vendor"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split("\0")
    if listed == [""]:
        pytest.skip("not a git checkout")
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in (".png", ".gz", ".npz", ".pb", ".zip") or not path.exists():
            continue
        text = path.read_text(errors="ignore")
        found = re.search(r"(?<![\w.])/(work|home/\w+|Users/\w+)/\w+", text)
        assert not found or name == "tests/pages/test_contract.py", f"{name} holds {found[0]}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that Colab's `pip install` builds, made from a copy of what it needs."""
    source = tmp_path_factory.mktemp("source")
    for name in filter(lambda name: (ROOT / name).is_dir(), ("citynb", *SHIPPED)):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*pip, "--wheel-dir", str(target), str(source)], check=True, env=environment)
    return next(target.glob("*.whl"))


def test_wheel_brings_the_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        f"citynb/{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in SHIPPED.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert shipped and shipped <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "citynb").rglob("*.py")} <= names


def test_wheel_loads_its_data(wheel, tmp_path):
    """What Colab runs: the package and its data from the wheel, far from the checkout."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = (
        "import citynb; task = citynb.load('i94'); "
        "print(citynb.__file__, len(task.train.labels) > 1000)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.stdout.split() == [f"{tmp_path}/installed/citynb/__init__.py", "True"], (
        result.stderr
    )
