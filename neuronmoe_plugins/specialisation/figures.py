"""The pictures of a specialisation: language-specific neurons of each expert (paper, Figure 3), and the routing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronmoe_plugins.figures import MUTED, draw_expert_shares, house_style, save_png
from neuronmoe_plugins.specialisation.mixtures import expert_name
from neuronmoe_plugins.specialisation.specialisation import Specialisation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEURONS_FIGURE = "specialisation.png"
ROUTING_FIGURE = "routing.png"
NOT_MEASURED = "not measured: too few sentences have a token there"
HATCHING: dict[str, Any] = {"facecolor": "#f0f3f6", "edgecolor": MUTED, "hatch": "////", "linewidth": 0}

# Layer and expert -> value; None: not measured.
Cells = Mapping[tuple[int, str], float | None]


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
    return _draw(ratios, f"Neurons with an average precision of {threshold:g} or more", digits=2)


def draw_language_routing(specialisation: Specialisation) -> Figure:
    """Layer by expert, a panel per language: the share of its tokens that chose the expert, perhaps beside others."""
    shares: dict[str, dict[tuple[int, str], float | None]] = {language: {} for language in specialisation.languages}
    for row in specialisation.routing:
        for expert, tokens in enumerate(row.expert_tokens):
            shares[row.language][row.layer, expert_name(expert)] = 100 * tokens / row.tokens
    return _draw(shares, "Tokens that chose an expert", digits=0)


def _draw(panels: Mapping[str, Cells], title: str, digits: int) -> Figure:
    """A panel per language; a cell without an expert stays empty, one that was not measured is hatched."""
    from matplotlib.patches import Patch, Rectangle

    places = [place for panel in panels.values() for place in panel]
    layers = sorted({layer for layer, _ in places})
    experts = [expert_name(expert) for expert in range(len({expert for _, expert in places}))]
    values = {
        language: np.array([[panel.get((layer, name)) for name in experts] for layer in layers], dtype=np.float64)
        for language, panel in panels.items()
    }
    names = [name.removeprefix("expert_") for name in experts]
    columns = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 3
    figure = draw_expert_shares(values, title, layers, names, lambda value: _written(value, digits), columns)
    unmeasured = [
        (axes, experts.index(expert), layers.index(layer))
        for axes, panel in zip(figure.axes, panels.values(), strict=False)
        for (layer, expert), value in panel.items()
        if value is None
    ]
    for axes, column, row in unmeasured:
        axes.add_patch(Rectangle((column + 0.02, row + 0.04), 0.96, 0.92, **HATCHING))
    if unmeasured:
        patch = Patch(label=NOT_MEASURED, **HATCHING)
        figure.legend(handles=[patch], loc="outside lower center", fontsize=8)
    return figure


def _written(value: float, digits: int) -> str:
    """A value as text, in which none is told from hardly any."""
    smallest = 10**-digits
    if 0 < value < smallest / 2:
        return f"<{smallest:g}"
    return f"{value:.{digits}f}" if value else "0"
