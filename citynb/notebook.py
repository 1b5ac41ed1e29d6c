"""What a reader sees: figures with caption and alt text, sentences with measured values."""

import io
import os
import re
import string

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

# Okabe and Ito's palette: eight colors that stay apart for color-blind readers
# (https://jfly.uni-koeln.de/color/). Yellow comes last, it is faint on white.
PALETTE = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # green
    "#CC79A7",  # purple
    "#56B4E9",  # sky
    "#E69F00",  # orange
    "#000000",  # black
    "#F0E442",  # yellow
)


def use_book_style():
    """Set matplotlib's defaults to the book's: palette, sizes for a phone, no top or right spine."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "figure.figsize": (7.0, 3.6),
            "figure.facecolor": "white",  # an opaque plate stays legible in the dark theme
            "figure.dpi": 110,
            "font.size": 11,
            "image.cmap": "cividis",  # perceptually uniform, also for color-blind readers
            "legend.frameon": False,
            "savefig.facecolor": "white",
        }
    )


def say(template, **values):
    """Display one sentence (or a small Markdown text) with values that the run has measured.

    Prose that is typed by hand goes out of date; a sentence that a cell prints cannot.

    Args:
        template: str in `str.format` form, for example `"Accuracy {accuracy:.3f}."`.
        **values: the values for its fields.

    Raises:
        ValueError: the template asks for a value that was not given, or one given is not used.
    """
    fields = {
        name.split(".")[0].split("[")[0]
        for _, name, _, _ in string.Formatter().parse(template)
        if name is not None
    }
    missing, unused = fields - values.keys(), values.keys() - fields
    if missing or unused:
        raise ValueError(
            f"say(): the sentence needs {sorted(fields)}, and was given {sorted(values)}; "
            f"missing {sorted(missing)}, unused {sorted(unused)}."
        )
    display(Markdown(template.format(**values)))


def show_figure(figure, *, name, caption, alt):
    """Display a matplotlib figure with its caption and its alt text, and close it.

    In the built book the caption is numbered and the alt text is read out by screen
    readers: `tools/pages.py` copies both from the output to the cell. In a live
    notebook the caption follows the picture.

    Args:
        figure: matplotlib Figure, without a title of its own (the caption is its title).
        name: str, the anchor, starting with `fig-`.
        caption: str, one or two sentences in Markdown that say what to see.
        alt: str, what the picture shows, for readers who cannot see it.

    Raises:
        ValueError: the name, the caption or the alt text is missing, or the plot has a title.
    """
    if not re.fullmatch(r"fig(-[a-z0-9]+)+", name):
        raise ValueError(f"show_figure(): the name {name!r} must look like 'fig-week-of-traffic'.")
    for field, text in {"caption": caption, "alt": alt}.items():
        if len(text.split()) < 4:
            raise ValueError(f"show_figure(): {name} needs a {field} of a sentence, not {text!r}.")
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    # With several panels a title names the panel; with one it repeats the caption.
    if figure.get_suptitle() or (len(panels) == 1 and panels[0].get_title()):
        raise ValueError(
            f"show_figure(): {name} has a title inside the plot; put it in the caption."
        )

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    display(
        {"image/png": png.getvalue(), "text/plain": f"{caption} ({alt})"},
        metadata={"citynb": {"name": name, "caption": caption, "alt": alt}},
        raw=True,
    )
    if "CITYNB_BOOK" not in os.environ:
        display(Markdown(f"*{caption}*"))
