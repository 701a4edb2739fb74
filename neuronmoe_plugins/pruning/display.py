"""Shows a pruning: experts per layer before and after, and the loss on every language."""

from __future__ import annotations

from collections.abc import Sequence

from neuronmoe_plugins.pruning.record import LanguageLoss, Pruning
from neuronmoe_plugins.tables import Table, count


def layers_table(pruning: Pruning) -> Table:
    """One row per mixture: its experts, the base included, and those that were dropped, by their old numbers."""
    rows = []
    for layer, experts in pruning.layers.items():
        dropped = [str(row.expert) for row in experts if row.dropped]
        left = 1 + len(experts) - len(dropped)
        rows.append(
            [str(layer), str(1 + len(experts)), str(left) if left > 1 else "1 (dense)", ", ".join(dropped) or "-"]
        )
    total, left = len(pruning.experts), len(pruning.experts) - len(pruning.dropped)
    footer = ["beside the base", count(total), count(left), count(total - left)]
    caption = "Experts per layer; expert 0 is the original MLP, and always stays"
    return Table(caption, ["layer", "experts before", "after", "dropped"], rows, words=(3,), footer=footer)


def losses_table(pruning: Pruning) -> Table:
    """One row per language: the loss before and after, and the bound."""
    bound = f"Loss in nats per token; it may rise by {100 * pruning.settings['below']:g} %"
    return language_table(bound, pruning.languages)


def language_table(caption: str, languages: Sequence[LanguageLoss]) -> Table:
    """One row per language: the loss before and after."""
    rows = [
        [
            row.language,
            "new" if row.is_new else "old",
            f"{row.tokens:,}",
            f"{row.before:.4f}",
            f"{row.after:.4f}",
            f"{100 * row.rise:+.2f}",
        ]
        for row in languages
    ]
    return Table(caption, ["language", "", "tokens", "before", "after", "change (%)"], rows, words=(0, 1))


def summary(pruning: Pruning) -> str:
    """In one line, what is left of the adapter."""
    size = adapter_size(pruning.parameters_before, pruning.parameters_after)
    return f"{len(pruning.dropped)} of {len(pruning.experts)} experts dropped; {size}"


def adapter_size(before: int, after: int) -> str:
    """How many parameters an adapter had, and has."""
    return f"parameters of the adapter: {before:,} -> {after:,} ({100 * (after / before - 1):+.1f} %)"
