"""What figures share: a canvas without a display, colours that all can tell apart, charts over layers, files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuronmoe_plugins.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# The palette of Okabe and Ito (2008) without its yellow, which is too pale for a line on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#1f2933"
MUTED = "#c3ccd5"
# On cells of a heatmap that are darker than this part of the scale, text is white.
DARK = 0.6
# Of a heatmap with a title, in inches; and how many columns of it are named where cells are too small for text.
NARROWEST = 5.6
MOST_NAMED = 16


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


def draw_layer_lines(lines: Mapping[str, Sequence[float]], title: str, ylabel: str, height: float = 4) -> Figure:
    """One line per name over the decoder layers, as yet without a legend.

    Args:
        lines: Name -> one number per layer.
        title: Of the figure.
        ylabel: What the numbers are.
        height: Of the figure, in inches.
    """
    figure = new_figure(10, height)
    axes = figure.add_subplot()
    for name, values in lines.items():
        axes.plot(range(len(values)), values, label=name)
    axes.set(title=title, xlabel="decoder layer", ylabel=ylabel)
    axes.margins(x=0.02)
    count_in_whole_numbers(axes.xaxis)
    axes.grid(axis="y")
    return figure


def draw_layer_counts(counts: Mapping[str, Sequence[int]], title: str) -> Figure:
    """One line per language with its neurons in every layer."""
    figure = draw_layer_lines(counts, title, "language-specific neurons")
    (axes,) = figure.axes
    axes.set_ylim(bottom=0)
    count_in_whole_numbers(axes.yaxis)
    axes.legend(title="language")
    return figure


def save_layer_figure(path: Path, counts: Mapping[str, Sequence[int]], title: str) -> None:
    """Write what `draw_layer_counts` gives as a PNG."""
    with house_style():
        save_png(draw_layer_counts(counts, title), path)


def blues() -> Colormap:
    """Colours for counts, from a blue that is told from an empty cell to one that is nearly black."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["Blues"](np.linspace(0.18, 1, 256)), "blues")


def draw_cells(
    axes: Axes,
    values: NDArray[np.float64],
    scale: Normalize,
    texts: Sequence[Sequence[str]] | None = None,
    gap: float = 1,
    fontsize: float = 8,
) -> QuadMesh:
    """Draw the cells of one heatmap, the first row at the bottom unless the axis is inverted.

    Args:
        axes: Where; it is left without ticks and frame.
        values: float64 (rows, columns); NaN leaves a cell without colour.
        scale: From values to colours; heatmaps that are compared share it.
        texts: What stands in each cell, perhaps nothing.
        gap: Points between cells.
        fontsize: Of the texts, in points.

    Returns:
        The cells, for a bar of colours.
    """
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=blues(), norm=scale, edgecolors="white", linewidth=gap)
    for row, own in enumerate(texts or ()):
        for column, text in enumerate(own):
            if text:
                colour = "white" if scale(values[row, column]) >= DARK else INK
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=fontsize)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh


def draw_expert_shares(
    panels: Mapping[str, NDArray[np.float64]],
    title: str,
    layers: Sequence[int] | Sequence[str],
    write: Callable[[float], str] | None,
    columns: int,
) -> Figure:
    """Heatmaps of layers by experts, all of one scale that begins at 0.

    Args:
        panels: Heading -> float64 (layers, experts) in per cent; NaN leaves a cell empty.
        title: Above all panels.
        layers: Indices of the decoder layers, one per row; the first is on top.
        write: The text of a cell's value; None draws smaller cells without text, and names only some of the experts.
        columns: How many panels stand side by side.
    """
    from matplotlib.colors import Normalize

    experts = next(iter(panels.values())).shape[1]
    rows, headings = ceil(len(panels) / columns), max(len(heading.split("\n")) for heading in panels)
    width = max(0.5 * experts, 1.4) if write else min(0.46 * experts, 6.0)
    figure = new_figure(
        max(columns * width + 1.6, NARROWEST), rows * (0.27 * len(layers) + 0.75 + 0.2 * headings) + 0.7
    )
    figure.suptitle(title)
    places = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for unused in places.flat[len(panels) :]:
        unused.set_visible(False)
    scale = Normalize(0, max(float(np.nanmax(values, initial=0)) for values in panels.values()) or 1.0)
    shown = range(0, experts, 1 if write else ceil(experts / MOST_NAMED))
    for axes, (heading, values) in zip(places.flat, panels.items(), strict=False):
        texts = [["" if np.isnan(value) else write(float(value)) for value in row] for row in values] if write else None
        mesh = draw_cells(axes, values, scale, texts)
        axes.set_title(heading, fontsize=10, pad=4)
        axes.set_xticks([place + 0.5 for place in shown], [str(place) if place else "0\noriginal" for place in shown])
        axes.set_xlabel("expert")
        axes.tick_params(labelsize=8)
    for axes in places[:, 0]:
        axes.set_ylabel("decoder layer")
    # The y axis is shared: turned once, it is turned for all.
    places[0, 0].set_yticks(np.arange(len(layers)) + 0.5, list(map(str, layers)))
    places[0, 0].invert_yaxis()
    figure.colorbar(mesh, ax=places, label="share (%)", pad=0.02, aspect=25).outline.set_visible(False)
    return figure


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
