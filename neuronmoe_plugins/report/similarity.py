"""How alike two languages look to each layer."""

from __future__ import annotations

from itertools import combinations
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from neuronmoe_plugins.figures import count_in_whole_numbers, new_figure
from neuronmoe_plugins.report.parts import Picture, Section
from neuronmoe_plugins.report.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

LEGEND_COLUMNS = 5


def similarity_section(run: Run) -> Section:
    """Cosine between the MLP inputs of two languages, per layer."""
    name, heading = "similarity", "Layer similarity between languages"
    if notes := run.lacks("mlp_input_similarity"):
        return Section(name, heading, notes=notes)
    if run.summary["mlp_input_similarity"] is None:
        return Section(name, heading, notes=["Not measured: the model's MLPs are of no known feed-forward family."])
    similarity = np.array(run.summary["mlp_input_similarity"]["layers"], dtype=np.float64)
    pairs = list(combinations(range(len(run.languages)), 2))
    lowest = [
        f"{run.languages[one]} and {run.languages[other]} are least alike in layer "
        f"{int(np.argmin(similarity[:, one, other]))} ({similarity[:, one, other].min():.2f})"
        for one, other in pairs
    ]
    picture = Picture(
        _draw_similarity(similarity, run.languages),
        "Each line is the mean cosine between what the MLPs get for tokens of one language and of the other; "
        "where it is low, LayerMoE adds experts.",
        f"Line chart of the similarity of {len(pairs)} pairs of languages over {run.num_layers} decoder layers: "
        f"{'; '.join(lowest)}.",
    )
    return Section(name, heading, picture)


def _draw_similarity(similarity: NDArray[np.float64], languages: Sequence[str]) -> Figure:
    """One line per pair.

    Args:
        similarity: float64 (layers, languages, languages).
        languages: names of its rows.
    """
    pairs = list(combinations(enumerate(languages), 2))
    legend_rows = ceil(len(pairs) / LEGEND_COLUMNS)
    figure = new_figure(10, 4 + 0.24 * legend_rows)
    axes = figure.add_subplot()
    for (one, first), (other, second) in pairs:
        axes.plot(similarity[:, one, other], label=f"{first} – {second}")
    axes.set(title="Similarity of two languages in each decoder layer", xlabel="decoder layer", ylabel="mean cosine")
    axes.margins(x=0.02)
    count_in_whole_numbers(axes.xaxis)
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", title="languages", ncols=ceil(len(pairs) / legend_rows))
    return figure
