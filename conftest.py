"""How pytest runs the whole book: package and page tests, then every notebook, then the browser."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tools"))
from execute import KERNEL_ENVIRONMENT  # noqa: E402

os.environ.update(KERNEL_ENVIRONMENT)  # for the kernels that nbval starts


def pytest_collection_modifyitems(items):
    for item in items:
        if hasattr(item, "cell_num"):  # a notebook cell, run by nbval
            item.output_timeout = 60  # seconds; nbval's own 5 are too few on a busy machine
            item.options["check"] &= item.cell_num > 0  # the first cell prints versions
            if "stderr" not in item.parent.skip_compare:  # log lines carry times and addresses
                item.parent.skip_compare += ("stderr",)
    items.sort(key=_layer)  # stable: inside a layer the order stays


def _layer(item):
    return 1 if hasattr(item, "cell_num") else 2 if item.get_closest_marker("browser") else 0
