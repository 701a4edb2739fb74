"""Shows a specialisation: tables in the layout of the paper's Tables 4, 6 and 10, and pictures as in its Figure 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from neuronmoe_plugins.figures import MUTED, draw_expert_shares, house_style, save_png
from neuronmoe_plugins.specialisation.specialisation import (
    DRIFT,
    RECORD,
    ExpertScores,
    LanguageRouting,
    LayerDrift,
    Specialisation,
)
from neuronmoe_plugins.tables import Table, print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_MEASURED = "not measured"
DRIFT_PARTS = ("base", "extended", "kept")
NEURONS_FIGURE = "specialisation.png"
ROUTING_FIGURE = "routing.png"
EXPERT_0 = "expert 0 is the original MLP"
UNREACHED = "not measured: too few sentences have a token there"
HATCHING: dict[str, Any] = {"facecolor": "#f0f3f6", "edgecolor": MUTED, "hatch": "////", "linewidth": 0}

# Layer and expert -> value; None: not measured.
Cells = Mapping[tuple[int, int], float | None]


def print_specialisation(console: Console, specialisation: Specialisation, folder: Path) -> None:
    """Print a table of the experts and one of the routing; the folder has its record."""
    for table in (expert_table(specialisation), routing_table(specialisation)):
        print_table(console, table, whole=str(folder / RECORD))


def print_drift(console: Console, rows: Sequence[LayerDrift], folder: Path) -> None:
    """Print how many neurons each layer had, has and kept; the folder has them all."""
    print_table(console, drift_table(rows), whole=str(folder / DRIFT))


def experts_by_place(specialisation: Specialisation) -> list[list[ExpertScores]]:
    """For each layer and expert, in their order, its scores for each language."""
    places: dict[tuple[int, int], dict[str, ExpertScores]] = {}
    for row in specialisation.experts:
        places.setdefault((row.layer, row.expert), {})[row.language] = row
    return [[own[language] for language in specialisation.languages] for own in places.values()]


def expert_table(specialisation: Specialisation) -> Table:
    """One row per layer and expert: the neurons specific to each language, and their share of the expert's."""
    pairs = [title for language in specialisation.languages for title in (f"{language}\nhigh-AP", "\nratio (%)")]
    experts = experts_by_place(specialisation)
    rows = [
        [
            own[0].place,
            f"{own[0].neurons:,}",
            *(cell for scores in own for cell in _cells(scores)),
        ]
        for own in experts
    ]
    last = [row for row in range(len(rows) - 1) if experts[row][0].layer != experts[row + 1][0].layer]
    threshold = specialisation.settings["threshold"]
    caption = f"Neurons with an average precision of {threshold:g} or more; {EXPERT_0}"
    groups = [2, *(2 for _ in specialisation.languages)]
    return Table(caption, ["layer-expert", "neurons", *pairs], rows, rules=last, groups=groups, unbroken=[0])


def _cells(scores: ExpertScores) -> tuple[str, str]:
    if scores.high_ap is None or scores.ratio is None:
        return NOT_MEASURED, ""
    return str(scores.high_ap), f"{100 * scores.ratio:.2f}"


def routing_table(specialisation: Specialisation) -> Table:
    """One row per layer and language: the share of its tokens that chose each expert, and the router's entropy."""
    num_experts = max(len(row.expert_tokens) for row in specialisation.routing)
    names = [f"expert\n{expert}" for expert in range(num_experts)]
    rows = [
        [str(row.layer), row.language, f"{row.tokens:,}", *token_shares(row, num_experts, "\n"), f"{row.entropy:.3f}"]
        for row in specialisation.routing
    ]
    caption = f"Tokens that chose an expert (%), and mean router weight there; {EXPERT_0}"
    groups = [3, *(1 for _ in names), 1]
    return Table(caption, ["layer", "language", "tokens", *names, "entropy"], rows, words=(1,), groups=groups)


def token_shares(row: LanguageRouting, num_experts: int, separator: str) -> list[str]:
    """For each expert the share of the tokens that chose it (%) and its mean weight; empty where there is no expert."""
    shares = [
        f"{100 * tokens / row.tokens:.1f}" + ("" if weight is None else f"{separator}({weight:.2f})")
        for tokens, weight in zip(row.expert_tokens, row.mean_weights, strict=True)
    ]
    return shares + [""] * (num_experts - len(shares))


def drift_table(rows: Sequence[LayerDrift]) -> Table:
    """One row per layer, three columns per language, and the totals."""
    languages = list(dict.fromkeys(row.language for row in rows))
    titles = [f"{language if part == 'base' else ''}\n{part}" for language in languages for part in DRIFT_PARTS]
    layers: dict[int, list[int]] = {}
    for row in sorted(rows, key=lambda row: row.layer):
        layers.setdefault(row.layer, []).extend((row.base, row.extended, row.kept))
    totals = [str(sum(column)) for column in zip(*layers.values(), strict=True)]
    caption = "Language-specific neurons of the base and of the extended model"
    cells = [[str(layer), *map(str, own)] for layer, own in layers.items()]
    groups = [1, *(len(DRIFT_PARTS) for _ in languages)]
    return Table(caption, ["layer", *titles], cells, words=(), footer=["total", *totals], groups=groups)


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
    shares: dict[str, dict[tuple[int, int], float | None]] = {language: {} for language in specialisation.languages}
    for row in specialisation.routing:
        for expert, tokens in enumerate(row.expert_tokens):
            shares[row.language][row.layer, expert] = 100 * tokens / row.tokens
    return _draw(shares, "Tokens that chose an expert", digits=0)


def _draw(panels: Mapping[str, Cells], title: str, digits: int) -> Figure:
    """A panel per language; a cell without an expert stays empty, one that was not measured is hatched."""
    from matplotlib.patches import Patch, Rectangle

    places = [place for panel in panels.values() for place in panel]
    layers = sorted({layer for layer, _ in places})
    experts = range(1 + max(expert for _, expert in places))
    values = {
        language: np.array([[panel.get((layer, expert)) for expert in experts] for layer in layers], dtype=np.float64)
        for language, panel in panels.items()
    }
    columns = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 3
    figure = draw_expert_shares(values, title, layers, lambda value: _written(value, digits), columns)
    unmeasured = [
        (axes, expert, layers.index(layer))
        for axes, panel in zip(figure.axes, panels.values(), strict=False)
        for (layer, expert), value in panel.items()
        if value is None
    ]
    for axes, column, row in unmeasured:
        axes.add_patch(Rectangle((column + 0.02, row + 0.04), 0.96, 0.92, **HATCHING))
    if unmeasured:
        patch = Patch(label=UNREACHED, **HATCHING)
        figure.legend(handles=[patch], loc="outside lower center", fontsize=8)
    return figure


def _written(value: float, digits: int) -> str:
    """A value as text, in which none is told from hardly any."""
    smallest = 10**-digits
    if 0 < value < smallest / 2:
        return f"<{smallest:g}"
    return f"{value:.{digits}f}" if value else "0"
