"""The package stays small, and its docstrings say what a reader needs."""

import inspect
import re

import pytest

import citynb

NAMES = """start CityTask load backbone HubLayer classifier freeze fine_tune evaluate compare
    say show_figure""".split()
METHODS = [citynb.CityTask.from_counts, citynb.CityTask.subset]
PUBLIC = [getattr(citynb, name) for name in NAMES] + METHODS
# What carries a method of somebody else names its source: a year, or an address.
FROM_THE_LITERATURE = [
    citynb.CityTask.from_counts,
    citynb.HubLayer,
    citynb.backbone,
    citynb.compare,
    citynb.evaluate,
    citynb.fine_tune,
]


def named(things):
    return pytest.mark.parametrize("thing", things, ids=lambda thing: thing.__qualname__)


def test_twelve_names():
    assert sorted(citynb.__all__) == sorted(NAMES)
    assert len(NAMES) == 12


@named(PUBLIC)
def test_every_argument_is_explained(thing):
    documented = thing.__doc__
    for name in inspect.signature(thing).parameters:
        if name not in ("self", "kwargs"):
            # A parameter opens a line of Args or Attributes, alone or with its like.
            assert re.search(rf"^ +(\*\*)?(\w+, )*{name}\b.*:", documented, re.MULTILINE), name


@named(PUBLIC)
def test_errors_results_and_units_are_told(thing):
    documented = inspect.getdoc(thing)
    assert re.search(r"^Raises:\n +[\w.]+(Error)?: ", documented, re.MULTILINE)
    source = inspect.getsource(thing)
    if inspect.isfunction(thing) and re.search(r"^    return ", source, re.MULTILINE):
        assert re.search(r"^(Returns:\n|Return |.*[Rr]eturn)", documented, re.MULTILINE)
    # A shape such as (batch, d), a unit, or a Python type.
    assert re.search(
        r"\((batch|n|height|examples)[,)]|\b(bool|int|str|float|hours|pixels|pictures|path)\b",
        documented,
    )


@named(FROM_THE_LITERATURE)
def test_methods_name_their_source(thing):
    assert re.search(r"\b(19|20)\d\d\b|arXiv|\w+\.org\b", thing.__doc__)


@pytest.mark.parametrize(
    "module", ["backbones", "comparison", "data", "evaluation", "heads", "session", "training"]
)
def test_modules_name_the_page_that_explains_them(module):
    assert re.search(r"[Ee]xplained on", inspect.getmodule(getattr(citynb, module)).__doc__)
