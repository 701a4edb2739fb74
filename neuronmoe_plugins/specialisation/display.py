"""Shows a specialisation on the terminal, in the layout of the paper's Tables 4 and 10."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from neuronmoe_plugins.specialisation.results import ExpertScores, Specialisation

NOT_MEASURED = "not measured"


def print_specialisation(console: Console, specialisation: Specialisation) -> None:
    """Print a table of the experts and one of the routing, with a pair of columns per language."""
    console.print(expert_table(specialisation))
    console.print(routing_table(specialisation))


def expert_table(specialisation: Specialisation) -> Table:
    """One row per layer and expert: the neurons specific to each language, and their share of the expert's."""
    threshold, languages = specialisation.settings["threshold"], specialisation.languages
    table = Table(title=f"Neurons with an average precision of {threshold:g} or more")
    table.add_column("layer-expert", no_wrap=True)
    table.add_column("neurons", justify="right")
    for language in languages:
        table.add_column(f"{language}\nhigh-AP", justify="right")
        table.add_column("\nratio (%)", justify="right")
    rows: dict[tuple[int, str], dict[str, ExpertScores]] = {}
    for scores in specialisation.experts:
        rows.setdefault((scores.layer, scores.expert), {})[scores.language] = scores
    last = None
    for (layer, expert), by_language in rows.items():
        if last not in (None, layer):
            table.add_section()
        last = layer
        cells = [cell for language in languages for cell in _cells(by_language[language])]
        table.add_row(f"L{layer} {expert}", f"{by_language[languages[0]].neurons:,}", *cells)
    return table


def _cells(scores: ExpertScores) -> tuple[str, str]:
    if scores.high_ap is None or scores.ratio is None:
        return NOT_MEASURED, ""
    return str(scores.high_ap), f"{100 * scores.ratio:.2f}"


def routing_table(specialisation: Specialisation) -> Table:
    """One row per layer and language: the share of its tokens that chose each expert, and the router's entropy."""
    num_experts = max(len(row.expert_tokens) for row in specialisation.routing)
    # Six experts fit into eighty characters.
    table = Table(title="Tokens that chose an expert (%), and mean router weight there", padding=0)
    names = ["base", *(f"expert\n{expert}" for expert in range(num_experts - 1))]
    for column in ("layer", "language", "tokens", *names, "entropy"):
        table.add_column(column, justify="left" if column == "language" else "right")
    for row in specialisation.routing:
        shares = [
            f"{100 * tokens / row.tokens:.1f}" + ("" if weight is None else f"\n({weight:.2f})")
            for tokens, weight in zip(row.expert_tokens, row.mean_weights, strict=True)
        ]
        filled = [*shares, *[""] * (num_experts - len(shares))]
        table.add_row(str(row.layer), row.language, f"{row.tokens:,}", *filled, f"{row.entropy:.3f}")
    return table
