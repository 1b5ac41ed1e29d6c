"""How pytest runs the whole book: package and page tests, then every notebook, then the browser."""

import functools
import importlib.util
import os
import re

import pytest

from tools.execute import KERNEL_ENVIRONMENT

os.environ.update(KERNEL_ENVIRONMENT)  # for the kernels that nbval starts


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "cell_num"):  # a notebook cell, run by nbval
            if missing := _missing(item.path):
                reason = f"needs {', '.join(missing)}: python -m tools.optional --anyway"
                item.add_marker(pytest.mark.skip(reason=reason))
            item.output_timeout = 60  # seconds; nbval's own 5 are too few on a busy machine
            item.options["check"] &= item.cell_num > 0  # the first cell prints versions
            if "stderr" not in item.parent.skip_compare:  # log lines carry times and addresses
                item.parent.skip_compare += ("stderr",)
    items.sort(key=_layer)  # stable: inside a layer the order stays


@functools.cache
def _missing(path):
    """Return the optional packages that a page asks for at its head and that are not there."""
    needed = re.search(r"needed = \(([^)]*)\)", path.read_text(encoding="utf-8"))
    names = re.findall(r"\w+", needed[1]) if needed else ()
    return [name for name in names if not importlib.util.find_spec(name)]


def _layer(item):
    return 1 if hasattr(item, "cell_num") else 2 if item.get_closest_marker("browser") else 0
