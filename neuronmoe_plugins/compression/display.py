"""Shows a compression: what each layer's experts lose, and the loss on every language."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from neuronmoe_plugins.compression.record import CompressedLayer, Compression
from neuronmoe_plugins.pruning.display import adapter_size, language_table
from neuronmoe_plugins.tables import Table


def tables(compression: Compression) -> Iterator[Table]:
    """One row per layer, and one per language, where the loss was measured."""
    yield layers_table(compression)
    if compression.languages:
        yield language_table("Loss in nats per token", compression.languages)


def layers_table(compression: Compression) -> Table:
    """How much of what the experts of each layer add to the base's weights is lost."""
    rows = [[str(row.layer), str(row.experts), str(row.rank), *_errors(row)] for row in compression.layers]
    total = compression.total
    header = ["layer", "new experts", "rank", "relative error", "energy kept"]
    return Table("", header, rows, words=(), footer=["all", str(total.experts), "", *_errors(total)])


def _errors(row: CompressedLayer) -> list[Any]:
    return [f"{row.relative_error:.4f}", f"{row.energy_kept:.2%}"]


def summary(compression: Compression) -> str:
    """In one line, how small the adapter has become."""
    return adapter_size(compression.parameters_before, compression.parameters)
