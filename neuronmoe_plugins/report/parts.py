"""What a report is made of: sections with pictures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neuronmoe_plugins.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    name: str
    """Its anchor, and the file name of its picture."""
    heading: str
    picture: Picture | None = None
    notes: Sequence[str] = ()
    """Sentences, as when there is nothing to show and why."""
    tables: Sequence[Table] = field(default_factory=tuple)
