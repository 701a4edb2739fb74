"""The pictures of a specialisation: language-specific neurons of each expert (paper, Figure 3), and the routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neuronmoe_plugins.figures import INK, blues, house_style, new_figure, save_png
from neuronmoe_plugins.neurons.arrays import FloatArray
from neuronmoe_plugins.specialisation.observing import expert_name
from neuronmoe_plugins.specialisation.results import Specialisation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

NEURONS_FIGURE = "specialisation.png"
ROUTING_FIGURE = "routing.png"


def save_figures(folder: Path, specialisation: Specialisation) -> None:
    """Write both pictures into an existing folder."""
    with house_style():
        save_png(draw_specialisation(specialisation), folder / NEURONS_FIGURE)
        save_png(draw_language_routing(specialisation), folder / ROUTING_FIGURE)


def draw_specialisation(specialisation: Specialisation) -> Figure:
    """Layer by expert, a panel per language: the share of neurons that are specific to it; empty if not measured."""
    ratios = {}
    for language in specialisation.languages:
        cells = {(row.layer, row.expert): row.ratio for row in specialisation.of(language)}
        ratios[language] = {key: None if ratio is None else 100 * ratio for key, ratio in cells.items()}
    threshold = specialisation.settings["threshold"]
    return _draw(ratios, f"Neurons with an average precision of {threshold:g} or more", "share (%)", "{:.2f}")


def draw_language_routing(specialisation: Specialisation) -> Figure:
    """Layer by expert, a panel per language: the share of its tokens that chose the expert, perhaps beside others."""
    shares: dict[str, dict[tuple[int, str], float | None]] = {language: {} for language in specialisation.languages}
    for row in specialisation.routing:
        for expert, tokens in enumerate(row.expert_tokens):
            shares[row.language][row.layer, expert_name(expert)] = 100 * tokens / row.tokens
    return _draw(shares, "Tokens that chose an expert", "share (%)", "{:.0f}")


def _draw(cells: Mapping[str, Mapping[tuple[int, str], float | None]], title: str, label: str, form: str) -> Figure:
    layers = sorted({layer for panel in cells.values() for layer, _ in panel})
    num_experts = max(sum(key[0] == layer for key in next(iter(cells.values()))) for layer in layers)
    experts = [expert_name(expert) for expert in range(num_experts)]
    panels = {
        name: np.array([[_value(panel, layer, expert) for expert in experts] for layer in layers])
        for name, panel in cells.items()
    }
    highest = max((float(np.nanmax(panel)) for panel in panels.values() if not np.isnan(panel).all()), default=0.0)
    figure = new_figure(len(panels) * max(0.6 * num_experts, 1.5) + 2.0, 0.3 * len(layers) + 2.2)
    figure.suptitle(title)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, values) in zip(row, panels.items(), strict=True):
        mesh = _draw_panel(axes, name, values, highest or 1.0, form, experts)
    row[0].set_yticks(np.arange(len(layers)) + 0.5, list(map(str, layers)))
    row[0].set_ylabel("decoder layer")
    row[0].invert_yaxis()
    figure.colorbar(mesh, ax=row, label=label, pad=0.02).outline.set_visible(False)
    return figure


def _value(panel: Mapping[tuple[int, str], float | None], layer: int, expert: str) -> float:
    """NaN, an empty cell, where there is no such expert or it was not measured."""
    value = panel.get((layer, expert))
    return float("nan") if value is None else value


def _draw_panel(
    axes: Axes, heading: str, values: FloatArray, highest: float, form: str, experts: Sequence[str]
) -> QuadMesh:
    visible = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(visible, cmap=blues(), vmin=0, vmax=highest, edgecolors="white", linewidth=1)
    for (place, expert), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = INK if value < 0.6 * highest else "white"
            axes.text(expert + 0.5, place + 0.5, form.format(value), ha="center", va="center", color=colour, fontsize=7)
    axes.set_title(heading, fontsize=9)
    axes.set_xticks(np.arange(len(experts)) + 0.5, [name.removeprefix("expert_") for name in experts], fontsize=7)
    axes.set_xlabel("expert")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh
