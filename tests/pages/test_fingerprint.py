"""What a piece of code reaches, on a package made for it."""

import pytest

from tools.fingerprint import (
    code_fingerprint,
    code_without_words,
    data_files,
    data_fingerprint,
    reached,
)

FILES = {
    "citynb/__init__.py": """
from citynb.session import check_versions
check_versions()
from citynb.datasets import dataset, load
from citynb.networks import backbone
from citynb.notebook import say
from citynb.results import results
from citynb.training import fine_tune
""",
    "citynb/session.py": "def check_versions(): pass",
    "citynb/notebook.py": "def say(text): print(text)",
    "citynb/results.py": "from citynb import files\ndef results(name): return files.folder(name)",
    "citynb/files.py": "def folder(name): return name",
    "citynb/training/__init__.py": """
from citynb.training.step import Step
def fine_tune(): return Step()
""",
    "citynb/training/step.py": "import citynb.heads\nclass Step: pass",
    "citynb/heads.py": "freeze = 1",
    "citynb/tasks/__init__.py": "from citynb.tasks.split import Split\nfrom citynb.tasks.task import Task",
    "citynb/tasks/split.py": "class Split: pass",
    "citynb/tasks/task.py": "from citynb.tasks.split import Split\nclass Task: pass",
    "citynb/datasets/__init__.py": """
import importlib
from citynb import files
def dataset(name): return importlib.import_module(f"citynb.datasets.{name}")
def load(name): return dataset(name).load()
""",
    "citynb/datasets/signals.py": "from citynb.tasks import Task\nLIMIT = 9",
    "citynb/datasets/air.py": "from . import signals\nfrom citynb.tasks import Split",
    "citynb/networks/__init__.py": """
from citynb.networks import small
from citynb.networks.city import build
def backbone(name): return build(name)
""",
    "citynb/networks/small.py": "WIDTH = 16",
    "citynb/networks/city.py": 'WEIGHTS = "city_resnet"\ndef build(name): return name',
    "experiments/signals.py": "from citynb import load\nfrom tools.sums import add\nload('signals')",
    "tools/sums.py": "import json, numpy\ndef add(): pass",
    "data/signals/counts.csv": "1",
    "data/signals/card.md": "a card",
    "data/signals/publish.py": "pass",
    "data/air/air.csv": "2",
    "models/city_resnet/weights.npz": "3",
    "experiments/results/signals/results.npz": "4",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


LOAD = ["datasets/__init__", "files"]
TASK = ["tasks/split", "tasks/task"]
NETWORKS = ["networks/__init__", "networks/city", "networks/small"]
REACHED = {
    "import citynb": [],
    "import citynb\ncitynb.say('x')": ["notebook"],
    "from citynb import say": ["notebook"],
    "import citynb as c\nc.say('x')": ["notebook"],
    "import citynb\nhelp(citynb)": None,  # the package as a whole: its __init__.py and all it imports
    "import citynb\ncitynb.fine_tune()": ["heads", "training/__init__", "training/step"],
    "from citynb.training import Step": ["heads", "training/step"],
    "import citynb\ncitynb.training.step.Step": ["heads", "training/step"],
    "import citynb.heads": ["heads"],
    "from citynb.tasks import Split": ["tasks/split"],
    "from citynb import tasks\ntasks.Task()": TASK,
    "from citynb import networks\nnetworks.small.WIDTH": ["networks/small"],
    "import citynb\ncitynb.backbone('city_resnet')": NETWORKS,
    "import citynb\ncitynb.load('signals')": [*LOAD, "datasets/signals", *TASK],
    "import citynb\nfor n in ('signals', 'air'): citynb.dataset(n)": [
        *(*LOAD, "datasets/air", "datasets/signals"),
        *TASK,
    ],
    "from citynb.datasets import air": ["datasets/air", "datasets/signals", *TASK],
    "import citynb\ncitynb.results('x')": ["files", "results"],
    "from citynb.results import results": ["files", "results"],
    "import importlib\nimportlib.import_module('citynb.heads')": ["heads"],
    "def f():\n    from citynb.heads import freeze": ["heads"],
    "import numpy\nfrom os import path": [],
    '"""A docstring may say "signals"."""': [],
}


@pytest.mark.parametrize("code", REACHED)
def test_code_reaches_what_it_uses(root, code):
    found = [path.relative_to(root).as_posix() for path in reached(code, root)]
    if REACHED[code] is None:
        assert "citynb/__init__.py" in found and "citynb/heads.py" in found
    else:
        assert found == sorted(f"citynb/{name}.py" for name in REACHED[code])


def test_a_module_reaches_itself_and_beyond_the_package(root):
    found = reached([root / "experiments/signals.py"], root)
    names = {path.relative_to(root).as_posix() for path in found}
    assert {"experiments/signals.py", "tools/sums.py", "citynb/datasets/signals.py"} <= names
    assert "citynb/notebook.py" not in names


@pytest.mark.parametrize(
    ("code", "files"),
    {
        "import citynb\ncitynb.load('signals')": ["data/signals/counts.csv"],
        "open('../../data/air/air.csv')": ["data/air/air.csv"],
        "import citynb\ncitynb.results('signals')": [
            "data/signals/counts.csv",
            "experiments/results/signals/results.npz",
        ],
        "import citynb\ncitynb.backbone('x')": ["models/city_resnet/weights.npz"],
        "import citynb\ncitynb.say('the signals')": [],
    }.items(),
)
def test_data_counts_where_it_is_named(root, code, files):
    assert [path.relative_to(root).as_posix() for path in data_files(code, root)] == files


def test_only_reached_code_changes_a_fingerprint(root):
    def fingerprint():
        return code_fingerprint(reached("import citynb\ncitynb.load('air')", root), root)

    def changed(name, text):
        before = fingerprint()
        (root / name).write_text(text)
        return fingerprint() != before

    assert not changed("citynb/training/step.py", "class Step: size = 2")
    assert not changed("citynb/__init__.py", FILES["citynb/__init__.py"] + "VERSION = 2\n")
    assert not changed("citynb/tasks/split.py", '"""A split."""\nclass Split: pass  # a comment')
    assert changed("citynb/tasks/split.py", "class Split: size = 2")
    assert changed("citynb/datasets/signals.py", "LIMIT = 8")  # air imports it


def test_data_changes_a_fingerprint_by_its_bytes(root):
    files = data_files("import citynb\ncitynb.load('signals')", root)
    before = data_fingerprint(files, root)
    (root / "data/signals/card.md").write_text("another card")
    assert data_fingerprint(files, root) == before
    (root / "data/signals/counts.csv").write_text("22")
    assert data_fingerprint(files, root) != before


def test_code_without_words():
    assert code_without_words("def f():\n    '''Say.'''\n    return 1") == code_without_words(
        "def f():  # no words\n    return (1)"
    )
    assert code_without_words("x = 1") != code_without_words("x = 2")
