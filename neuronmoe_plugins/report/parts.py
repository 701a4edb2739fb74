"""What a report is made of: sections with pictures and tables; and a picture as an element of the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from neuronmoe_plugins.report.run import Run
from neuronmoe_plugins.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCE = re.compile(r"url\(#")
# Figures are made to be read at this many CSS pixels per point, and stay legible at one.
PIXELS_PER_POINT = 1.42


@dataclass(frozen=True)
class Picture:
    """A figure with the words that go with it."""

    figure: Figure
    caption: str
    """One sentence that says how to read it."""
    alt: str
    """What it shows, for those who cannot see it."""


@dataclass(frozen=True)
class Section:
    """One part of the page, in the order picture, notes, tables."""

    heading: str
    picture: Picture | None = None
    notes: Sequence[str] = ()
    """Sentences, as when there is nothing to show and why."""
    tables: Sequence[Table] = ()


MakeSection = Callable[[Run], Section | None]
"""From what is reported to a section; None where there is nothing to say."""


def inline_svg(document: str, prefix: str, label: str) -> str:
    """An `<svg>` element for an HTML page.

    Args:
        document: what `neuronmoe_plugins.figures.svg_text` gives.
        prefix: put before every id, since matplotlib calls the axes of all figures axes_1.
        label: what a screen reader says in place of the picture.

    Returns:
        the element without XML declaration, metadata and style sheet; it takes the width that it is given, down to
        where its text would become too small.
    """
    root = ElementTree.fromstring(document)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            name.rpartition("}")[2]: _prefixed(name, value, prefix) for name, value in element.attrib.items()
        }
    _remove(root, "metadata")
    for definitions in root.iter("defs"):
        _remove(definitions, "style")
    width = float(root.attrib["viewBox"].split()[2])
    for name in ("width", "height", "version"):
        del root.attrib[name]
    root.attrib |= {
        "role": "img",
        "aria-label": label,
        "style": f"max-width: {width * PIXELS_PER_POINT:.0f}px; min-width: {width:.0f}px; "
        "stroke-linejoin: round; stroke-linecap: butt",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _prefixed(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name.endswith("href") and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    return REFERENCE.sub(f"url(#{prefix}-", value)


def _remove(parent: ElementTree.Element, tag: str) -> None:
    for child in parent.findall(tag):
        parent.remove(child)
