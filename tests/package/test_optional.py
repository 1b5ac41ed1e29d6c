"""The optional packages: pins that agree with the extra, and a choice that is made on facts."""

import json
import re
import tomllib

import nbformat
import pytest

from tools import optional
from tools.pages import ROOT

TOOLS = optional.pins((ROOT / "requirements-tools.txt").read_text())
BOOK = optional.pins((ROOT / "requirements.txt").read_text())


def report(*needs):
    """What pip reports of a PyTorch with these dependencies."""
    return json.dumps({"install": [{"metadata": {"requires_dist": list(needs)}}]})


def test_extra_names_what_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = [re.split("[>=]", need)[0] for need in project["optional-dependencies"]["tools"]]
    assert list(TOOLS)[: len(extra)] == extra
    assert not set(TOOLS) & set(BOOK), "a package stands in one file of pins, not in two"


def test_a_build_for_gpus_is_recognized():
    assert optional.for_gpus(report("numpy", "nvidia-cublas-cu12==12.8"))
    assert optional.for_gpus(report("nvidia-nccl-cu12; python_version >= '3'"))
    assert not optional.for_gpus(report("numpy", "nvidia-cublas; python_version < '3'"))
    assert not optional.for_gpus(report())


def test_another_version_counts_as_missing():
    assert optional.installed({"pytest": pytest.__version__})
    assert not optional.installed({"pytest": "0.1"})
    assert not optional.installed({"no-such-package-at-all": "1"})


def test_a_refusal_of_pip_is_named(monkeypatch):
    class Refused:
        returncode, stdout, stderr = 1, "", "ERROR: nothing fits"

    monkeypatch.setattr(optional, "pip", lambda *arguments: Refused)
    assert "no build of torch==9" in optional.install({"torch": "9"})
    assert "nothing fits" in optional.install({"torch": "9"}, anyway=True)


def test_a_page_says_at_once_what_is_missing():
    """Without the packages the page's second code cell fails, with one sentence."""
    for page in ("transformers", "one_task_four_libraries"):
        notebook = nbformat.read(ROOT / "chapters" / "tools" / f"{page}.ipynb", as_version=4)
        codes = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        asks = codes[1].replace('"accelerate"', '"no_such_package"')
        assert asks != codes[1]
        with pytest.raises(
            ImportError, match=r"This page needs .*no_such_package.*: run pip install"
        ):
            exec(asks, {})
