"""The picture of where the tokens went: a heatmap of each layer's shares per expert."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from neuronmoe_plugins.figures import INK, blues, new_figure
from neuronmoe_plugins.tuner.counts import FloatArray, RoutingCounts, as_shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

# More experts than this leave no room for numbers in the cells.
MOST_NUMBERED = 16


def draw_routing(counts: RoutingCounts, title: str) -> Figure:
    """Shares of the choices, and of the first choices where tokens have several; those of old and new languages apart.

    Args:
        counts: Of at least one token. Languages are shown apart where tokens are tagged.
        title: Above all panels.
    """
    panels = _panels(counts)
    num_layers, num_experts = len(counts.layers), counts.choices.shape[-1]
    width = min(max(0.46 * num_experts, 1.3), 6.0)
    figure = new_figure(len(panels) * width + 2.0, 0.27 * num_layers + 2.0)
    figure.suptitle(title)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    highest = max(float(np.nanmax(shares)) for shares in panels.values())
    for axes, (heading, shares) in zip(row, panels.items(), strict=True):
        mesh = _draw_panel(axes, heading, shares, highest)
    row[0].set_yticks(np.arange(num_layers) + 0.5, list(map(str, counts.layers)))
    row[0].set_ylabel("decoder layer")
    row[0].invert_yaxis()
    bar = figure.colorbar(mesh, ax=row, label="share (%)", aspect=max(6, 1.6 * num_layers), pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _panels(counts: RoutingCounts) -> dict[str, FloatArray]:
    """Heading -> (layers, experts) in percent, NaN where a layer has no such expert or no such token."""
    kinds = {"old": "old languages", "new": "new languages"} if counts.is_tagged else {"all": "all tokens"}
    existing = np.arange(counts.choices.shape[-1]) < np.array([[experts] for _, _, experts in counts.shapes])
    several = any(topk > 1 for _, topk, _ in counts.shapes)
    panels = {}
    for what, of in (("all choices", counts.users), ("first choice", counts.firsts)):
        for tokens, language in kinds.items():
            if counts.num_tokens(tokens).any() and (several or what == "first choice"):
                heading = f"{language}\n{what}" if several else language
                panels[heading] = np.where(existing, 100 * as_shares(of(tokens)), np.nan)
    return panels


def _draw_panel(axes: Axes, heading: str, shares: FloatArray, highest: float) -> QuadMesh:
    """One panel, coloured up to the highest share of all; a layer's missing experts stay empty."""
    num_experts = shares.shape[1]
    visible = np.ma.masked_invalid(shares)
    mesh = axes.pcolormesh(visible, cmap=blues(), vmin=0, vmax=highest, edgecolors="white", linewidth=1)
    if num_experts <= MOST_NUMBERED:
        for (place, expert), share in np.ndenumerate(shares):
            if not np.isnan(share):
                colour = INK if share < 0.6 * highest else "white"
                axes.text(expert + 0.5, place + 0.5, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(heading, fontsize=9)
    axes.set_xlabel("expert")
    step = -(-num_experts // MOST_NUMBERED)
    shown = np.arange(0, num_experts, step)
    axes.set_xticks(shown + 0.5, list(map(str, shown)))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh
