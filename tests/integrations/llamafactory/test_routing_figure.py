"""The heatmap of where tokens went: which panels it has, and what stands in their cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuronmoe_plugins.figures import house_style, save_png, svg_text
from neuronmoe_plugins.integrations.llamafactory.routing import draw_routing
from neuronmoe_plugins.tuner.metrics import KINDS, LayerShapes, RoutingCounts


def counts_of(shapes: LayerShapes, *kinds: str) -> RoutingCounts:
    """Tokens of each kind; expert e of a layer has e + 1 of them as each of its choices."""
    counts = RoutingCounts.none(shapes)
    for kind in kinds:
        for place, (_, topk, num_experts) in enumerate(shapes):
            counts.choices[KINDS.index(kind), place, :topk, :num_experts] = range(1, num_experts + 1)
    return counts


@pytest.mark.parametrize(
    ("topk", "kinds", "headings"),
    [
        (1, ("untagged",), ["all tokens"]),
        (1, ("new", "old"), ["old languages", "new languages"]),
        (1, ("new",), ["new languages"]),
        (2, ("untagged",), ["all tokens\nall choices", "all tokens\nfirst choice"]),
        (
            2,
            ("old", "new"),
            [f"{kind} languages\n{what}" for what in ("all choices", "first choice") for kind in ("old", "new")],
        ),
    ],
)
def test_panels_tell_languages_and_choices_apart(topk: int, kinds: tuple[str, ...], headings: list[str]) -> None:
    figure = draw_routing(counts_of(((0, topk, 3), (3, topk, 2)), *kinds), "Routing")
    *panels, _bar = figure.axes
    assert [axes.get_title() for axes in panels] == headings
    for axes in panels:
        # At top-2, each of two experts has half of all choices by necessity.
        told = topk == 1 or "first" in axes.get_title()
        assert [text.get_text() for text in axes.texts] == ["17", "33", "50", *(["33", "67"] if told else [])]
    said = "Routing\nAll choices: in layers of more than 2 experts"
    assert figure.get_suptitle() == ("Routing" if topk == 1 else said)
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["0", "3"]


def test_two_experts_at_top_2_have_no_panel_of_all_choices() -> None:
    figure = draw_routing(counts_of(((0, 2, 2), (3, 2, 2)), "old", "new"), "Routing")
    *panels, _bar = figure.axes
    assert [axes.get_title() for axes in panels] == ["old languages\nfirst choice", "new languages\nfirst choice"]
    assert figure.get_suptitle() == "Routing\nEach token chooses all experts"


def test_many_experts_are_told_by_colour_alone(tmp_path: Path) -> None:
    with house_style():
        figure = draw_routing(counts_of(tuple((layer, 2, 24) for layer in range(28)), "old", "new"), "Routing")
        save_png(figure, tmp_path / "routing.png")
        assert "Routing" in svg_text(figure, "routing")
    assert not figure.axes[0].texts
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["0\noriginal", *map(str, range(2, 24, 2))]
