"""say() and show_figure(): what the reader gets, and what an author is told."""

import matplotlib.pyplot as plt
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import citynb
from citynb import notebook

GOOD = dict(name="fig-week", caption="One week of one road.", alt="A line with seven humps.")


@pytest.fixture
def shown(monkeypatch):
    """The list of (data, metadata) that is displayed."""
    outputs = []

    def record(thing, metadata=None, raw=False):
        outputs.append((thing if raw else thing.data, metadata))

    monkeypatch.setattr(notebook, "display", record)
    return outputs


@pytest.fixture
def figure():
    made, _ = plt.subplots()
    yield made
    plt.close(made)


def test_say_fills_in_the_values(shown):
    citynb.say("Of {n:,} hours {share:.1%}; {best[name]} and {z.real}.", n=1234, share=0.5,
               best={"name": "trees"}, z=2j)  # fmt: skip
    assert shown == [("Of 1,234 hours 50.0%; trees and 0.0.", None)]


@pytest.mark.parametrize(
    ("template", "values", "message"),
    [
        ("{accuracy:.3f} of {n}", {"n": 1}, r"missing \['accuracy'\]"),
        ("{n}", {"n": 1, "accuracy": 0.5}, r"unused \['accuracy'\]"),
        ("{} hours", {"n": 1}, r"missing \[''\], unused \['n'\]"),
        ("{n", {"n": 1}, "expected '}'"),
    ],
)
def test_say_refuses(shown, template, values, message):
    with pytest.raises(ValueError, match=message):
        citynb.say(template, **values)
    assert not shown


@pytest.mark.parametrize("in_book", [True, False])
def test_show_figure(shown, figure, monkeypatch, in_book):
    monkeypatch.setenv("CITYNB_BOOK", "1") if in_book else monkeypatch.delenv(
        "CITYNB_BOOK", raising=False
    )
    citynb.show_figure(figure, **GOOD)
    data, metadata = shown[0]
    assert data["image/png"].startswith(b"\x89PNG")
    assert GOOD["alt"] in data["text/plain"]
    assert metadata == {"citynb": GOOD}
    assert [text for text, _ in shown[1:]] == ([] if in_book else [f"*{GOOD['caption']}*"])
    assert not plt.fignum_exists(figure.number)


def test_the_same_figure_gives_the_same_bytes(shown):
    for _ in range(2):
        made, axes = plt.subplots()
        axes.plot([1, 2])
        citynb.show_figure(made, **GOOD)
    first, second = (data["image/png"] for data, _ in shown if isinstance(data, dict))
    assert first == second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "week"}, "must look like 'fig-"),
        ({"name": "fig-"}, "must look like"),
        ({"name": "fig-My week"}, "must look like"),
        ({"name": "fig-été"}, "must look like"),
        ({"caption": ""}, "needs a caption of a sentence"),
        ({"alt": "a plot"}, "needs a alt of a sentence"),
    ],
)
def test_show_figure_refuses(shown, figure, change, message):
    with pytest.raises(ValueError, match=message):
        citynb.show_figure(figure, **{**GOOD, **change})
    assert not shown


def test_a_title_belongs_into_the_caption(shown, figure):
    figure.axes[0].set_title("A week")
    with pytest.raises(ValueError, match="fig-week has a title inside the plot"):
        citynb.show_figure(figure, **GOOD)
    figure.axes[0].set_title("")
    figure.suptitle("A week")
    with pytest.raises(ValueError, match="title inside the plot"):
        citynb.show_figure(figure, **GOOD)


def test_panels_may_have_names(shown):
    made, panels = plt.subplots(1, 2)
    panels[0].set_title("weekday")
    panels[1].set_title("weekend")
    citynb.show_figure(made, **GOOD)
    assert shown


def test_in_a_notebook():
    shell = InteractiveShell.instance()
    with capture_output() as captured:
        shell.run_cell("import citynb\ncitynb.say('Hello, {city}.', city='Minneapolis')")
    (output,) = captured.outputs
    assert output.data["text/markdown"] == "Hello, Minneapolis."
