"""The demo's picture: bits per byte, and the routers' share on expert 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from neuronmoe_plugins.figures import house_style, new_figure, save_png


def save_figure(
    path: Path, title: str, bits_per_byte: Mapping[str, Mapping[str, float]], shares: Mapping[str, Mapping[str, float]]
) -> None:
    """Draw two groups of bars into a PNG.

    Args:
        path: The PNG.
        title: Of the whole picture.
        bits_per_byte: Model -> text -> bits per byte.
        shares: Stage -> language -> share of tokens on expert 0, in 0..1.
    """
    with house_style():
        figure = new_figure(11, 4.2)
        figure.suptitle(title)
        bits_axes, share_axes = figure.subplots(1, 2, width_ratios=[2, 1])
        _draw_bars(bits_axes, bits_per_byte, "{:.2f}")
        bits_axes.set(title="lower is better", ylabel="bits per byte")
        _draw_bars(share_axes, shares, "{:.0%}")
        share_label = "share of tokens on expert 0 (the base MLP)"
        share_axes.set(title="routing on held-out help", ylabel=share_label, ylim=(0, 1.1))
        save_png(figure, path)


def _draw_bars(axes: Axes, values: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Draw one bar per series within each group.

    Args:
        axes: Where to draw.
        values: Series -> group -> height; every series has the same groups.
        label: Format of the numbers on the bars.
    """
    width = 0.8 / len(values)
    groups: Sequence[str] = list(next(iter(values.values())))
    for index, (series, heights) in enumerate(values.items()):
        positions = [group + (index - (len(values) - 1) / 2) * width for group in range(len(groups))]
        bars = axes.bar(positions, [heights[group] for group in groups], width, label=series)
        axes.bar_label(bars, fmt=label.format, fontsize=7)
    axes.set_xticks(range(len(groups)), groups)
    axes.legend()
