"""What all figures share: a canvas without a display, colours that all can tell apart, files that appear whole."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from neuronmoe_plugins.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# The palette of Okabe and Ito (2008) without its yellow, which is too pale for a line on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#1f2933"
MUTED = "#c3ccd5"


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save in the package's style, whatever the user's matplotlibrc says.

    Lines differ by colour and marker, and from the eighth on by dashes. Text is taken as it is: a dollar sign in a name
    starts no formula.
    """
    import matplotlib.style
    from cycler import cycler

    lines = cycler(linestyle=["-", "--", ":", "-."]) * (cycler(color=PALETTE) + cycler(marker=MARKERS))
    colours = {f"{name}.color": INK for name in ("text", "xtick", "ytick")}
    layout = {
        "axes.prop_cycle": lines, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.titlecolor": INK,
        "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlepad": 12, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e4e8ec", "grid.linewidth": 0.8,
        "lines.linewidth": 1.8, "lines.markersize": 4, "legend.frameon": False, "figure.titlesize": 12,
        "figure.titleweight": "bold", "text.parse_math": False, "figure.constrained_layout.h_pad": 0.06,
    }  # fmt: skip
    with matplotlib.style.context(colours | layout, after_reset=True):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches.

    The object interface needs no display and leaves the caller's pyplot alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def count_in_whole_numbers(*axes: Axis) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True))


def blues() -> Colormap:
    """Colours for counts, from a blue that is told from an empty cell to one that is nearly black."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["Blues"](np.linspace(0.18, 1, 256)), "blues")


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, replacing an older one in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as file:
        figure.savefig(file, dpi=150, format="png")


def svg_text(figure: Figure, salt: str) -> str:
    """A figure as an SVG document whose text is text; the same figure and salt give the same characters.

    Args:
        figure: the figure.
        salt: seeds the ids of clip paths and markers, so that two figures with different salts share none.
    """
    import matplotlib

    document = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(document, format="svg", metadata={"Date": None})
    return document.getvalue()
