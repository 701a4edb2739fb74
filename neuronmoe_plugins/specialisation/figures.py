"""The pictures of a specialisation: language-specific neurons of each expert (paper, Figure 3), and the routing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronmoe_plugins.figures import INK, MUTED, blues, house_style, new_figure, save_png
from neuronmoe_plugins.neurons.arrays import FloatArray
from neuronmoe_plugins.specialisation.observing import expert_name
from neuronmoe_plugins.specialisation.results import Specialisation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

NEURONS_FIGURE = "specialisation.png"
ROUTING_FIGURE = "routing.png"
NOT_MEASURED = "not measured: too few sentences have a token there"
UNMEASURED_FACE = "#f0f3f6"
# Room that the title needs.
NARROWEST = 5.6

# Layer and expert -> value; None: not measured.
Cells = Mapping[tuple[int, str], float | None]


@dataclass(frozen=True)
class _Grid:
    """What the cells of all panels share.

    Attributes:
        layers: The decoder layers that are mixtures, one per row.
        experts: As many as the largest mixture has, one per column.
        highest: The value of the darkest colour.
        digits: Of a value after the point.
    """

    layers: Sequence[int]
    experts: Sequence[str]
    highest: float
    digits: int

    def values(self, panel: Cells) -> FloatArray:
        """The panel's values, (layers, experts); NaN where there is none."""
        rows = [[panel.get((layer, expert)) for expert in self.experts] for layer in self.layers]
        return np.array(rows, dtype=np.float64)

    def written(self, value: float) -> str:
        """A value as text, in which none is told from hardly any."""
        smallest = 10**-self.digits
        if 0 < value < smallest / 2:
            return f"<{smallest:g}"
        return f"{value:.{self.digits}f}" if value else "0"

    def unmeasured(self, panel: Cells) -> list[tuple[int, int]]:
        """Row and column of the experts that have no value."""
        return [
            (self.layers.index(layer), self.experts.index(expert))
            for (layer, expert), value in panel.items()
            if value is None
        ]


def save_figures(folder: Path, specialisation: Specialisation) -> None:
    """Write both pictures into an existing folder."""
    with house_style():
        save_png(draw_specialisation(specialisation), folder / NEURONS_FIGURE)
        save_png(draw_language_routing(specialisation), folder / ROUTING_FIGURE)


def draw_specialisation(specialisation: Specialisation) -> Figure:
    """Layer by expert, a panel per language: the share of neurons that are specific to it; hatched if not measured."""
    ratios = {}
    for language in specialisation.languages:
        cells = {(row.layer, row.expert): row.ratio for row in specialisation.of(language)}
        ratios[language] = {key: None if ratio is None else 100 * ratio for key, ratio in cells.items()}
    threshold = specialisation.settings["threshold"]
    return _draw(ratios, f"Neurons with an average precision of {threshold:g} or more", "share (%)", digits=2)


def draw_language_routing(specialisation: Specialisation) -> Figure:
    """Layer by expert, a panel per language: the share of its tokens that chose the expert, perhaps beside others."""
    shares: dict[str, dict[tuple[int, str], float | None]] = {language: {} for language in specialisation.languages}
    for row in specialisation.routing:
        for expert, tokens in enumerate(row.expert_tokens):
            shares[row.language][row.layer, expert_name(expert)] = 100 * tokens / row.tokens
    return _draw(shares, "Tokens that chose an expert", "share (%)", digits=0)


def _draw(panels: Mapping[str, Cells], title: str, label: str, digits: int) -> Figure:
    """A panel per language, all of one scale of colours; a cell without an expert stays empty."""
    grid = _grid(panels.values(), digits)
    columns = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 3
    rows = ceil(len(panels) / columns)
    width = columns * max(0.5 * len(grid.experts), 1.4) + 1.6
    figure = new_figure(max(width, NARROWEST), rows * (0.27 * len(grid.layers) + 0.8) + 0.7)
    figure.suptitle(title)
    places = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for unused in places.flat[len(panels) :]:
        unused.set_visible(False)
    for axes, (language, panel) in zip(places.flat, panels.items(), strict=False):
        mesh = _draw_panel(axes, grid, panel)
        axes.set_title(language, fontsize=10, pad=4)
    for axes in places[:, 0]:
        axes.set_ylabel("decoder layer")
    # The y axis is shared: turned once, it is turned for all.
    places[0, 0].set_yticks(np.arange(len(grid.layers)) + 0.5, list(map(str, grid.layers)))
    places[0, 0].invert_yaxis()
    figure.colorbar(mesh, ax=places, label=label, pad=0.02, aspect=25).outline.set_visible(False)
    if any(value is None for panel in panels.values() for value in panel.values()):
        _explain_hatching(figure)
    return figure


def _grid(panels: Iterable[Cells], digits: int) -> _Grid:
    cells = [cell for panel in panels for cell in panel.items()]
    layers = sorted({layer for (layer, _), _ in cells})
    present = {expert for (_, expert), _ in cells}
    highest = max((value for _, value in cells if value is not None), default=0.0)
    return _Grid(layers, [expert_name(expert) for expert in range(len(present))], highest or 1.0, digits)


def _draw_panel(axes: Axes, grid: _Grid, panel: Cells) -> QuadMesh:
    from matplotlib.patches import Rectangle

    values = grid.values(panel)
    visible = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(visible, cmap=blues(), vmin=0, vmax=grid.highest, edgecolors="white", linewidth=1)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = INK if value < 0.55 * grid.highest else "white"
            axes.text(
                column + 0.5, row + 0.5, grid.written(float(value)), ha="center", va="center", color=colour, fontsize=8
            )
    for row, column in grid.unmeasured(panel):
        axes.add_patch(Rectangle((column + 0.02, row + 0.04), 0.96, 0.92, **_hatching()))
    names = [name.removeprefix("expert_") for name in grid.experts]
    axes.set_xticks(np.arange(len(names)) + 0.5, names)
    axes.set_xlabel("expert")
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    return mesh


def _hatching() -> dict[str, Any]:
    return {"facecolor": UNMEASURED_FACE, "edgecolor": MUTED, "hatch": "////", "linewidth": 0}


def _explain_hatching(figure: Figure) -> None:
    from matplotlib.patches import Patch

    figure.legend(handles=[Patch(label=NOT_MEASURED, **_hatching())], loc="outside lower center", fontsize=8)
