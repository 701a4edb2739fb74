"""What each expert of the extended model specialises in, and where the router sends each language (section 6.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log
from typing import TYPE_CHECKING

from neuronmoe_plugins.report.parts import Picture, Section
from neuronmoe_plugins.report.run import FOLDER, Measured, Run
from neuronmoe_plugins.tables import Table, count

if TYPE_CHECKING:
    from neuronmoe_plugins.specialisation import ExpertScores, LanguageRouting, Specialisation
    from neuronmoe_plugins.specialisation.specialisation import LayerDrift

HOW_TO_SPECIALISE = (
    "The experts have not been measured yet: once an adapter is trained, run “neuronmoe specialise --model MODEL "
    "--adapter ADAPTER --corpus LANGUAGE=SOURCE … --output {output}”, then make this report again."
)
NOT_MEASURED = "not measured"
PAIRS_SHOWN = 2


def specialisation_section(run: Run) -> Section:
    """Language-specific neurons of every expert (Figure 3, Tables 4 and 10), and the drift of the model's own."""
    heading = "What the experts specialise in"
    if run.measured is None:
        return Section(heading, notes=[HOW_TO_SPECIALISE.format(output=run.home / FOLDER)])
    from neuronmoe_plugins.specialisation.display import draw_specialisation

    specialisation, drift = run.measured.specialisation, run.measured.drift
    picture = Picture(
        draw_specialisation(specialisation),
        "A cell is the share of an expert’s neurons that are specific to the language; layers that are no mixture are "
        "left out, and an expert that too few sentences reach is hatched. Expert 0 is the original MLP.",
        f"Heatmaps of the share of language-specific neurons by layer and expert, one per language: "
        f"{'; '.join(_strongest(specialisation))}.",
    )
    notes = [*_origin_notes(run, run.measured), *_base_rate_notes(specialisation)]
    tables = [_expert_table(specialisation)]
    if drift:
        note, table = _drift_parts(drift)
        notes.append(note)
        tables.append(table)
    return Section(heading, picture, notes, tables)


def routing_section(run: Run) -> Section | None:
    """Where the router sends each language; none without a specialisation, whose section then says how to get it."""
    if run.measured is None:
        return None
    from neuronmoe_plugins.specialisation.display import draw_language_routing

    specialisation = run.measured.specialisation
    picture = Picture(
        draw_language_routing(specialisation),
        "A cell is the share of the language’s tokens that chose the expert; with a top-k above 1 a token chooses "
        "several, so that a row adds up to more than 100 %; where it chooses all experts of a layer, each has 100 %.",
        f"Heatmaps of the share of tokens by layer and expert, one per language: "
        f"{'; '.join(_base_shares(specialisation))}.",
    )
    return Section("Where the router sends each language", picture, tables=[_routing_table(specialisation)])


def _strongest(specialisation: Specialisation) -> Iterable[str]:
    """For each language its most specific expert."""
    for language in specialisation.languages:
        measured = [(row.high_ap, row) for row in specialisation.of(language) if row.high_ap is not None]
        if not measured:
            yield f"{language} was measured nowhere"
            continue
        high, row = max(measured, key=lambda pair: pair[1].ratio or 0)
        yield f"{language} has most in {row.place} ({count(high)} of {count(row.neurons)})"


def _origin_notes(run: Run, measured: Measured) -> list[str]:
    """Which adapter this is, and whether of the analysed model."""
    settings = measured.specialisation.settings
    counted = "that have a token at the expert"
    if settings["missing"] == "zero":
        counted = "of all languages (one without a token at the expert counts as 0)"
    notes = [
        f"Adapter {settings['adapter']}; a neuron is specific to a language from an average precision of "
        f"{settings['threshold']:g} on, over the sentences {counted}."
    ]
    if settings["model"] != run.summary.get("model", settings["model"]):
        notes.append(
            f"{measured.path} is of the model {settings['model']}, the analysis of {run.summary['model']}: by these "
            "names they are not the same."
        )
    return notes


def _base_rate_notes(specialisation: Specialisation) -> list[str]:
    """Experts that nearly only one language reaches: there a neuron that tells nothing apart passes, too."""
    threshold = specialisation.settings["threshold"]
    if specialisation.settings["missing"] != "drop":
        return []
    places = [
        f"{row.place} ({row.language})"
        for row in specialisation.experts
        if row.high_ap is not None and row.sentences >= threshold * (row.sentences + row.other_sentences)
    ]
    if not places:
        return []
    return [
        f"Of the sentences that reach these experts, {100 * threshold:g} % or more are of one language, so that a "
        f"neuron that ranks them by chance passes, too: {', '.join(places)}."
    ]


def _expert_table(specialisation: Specialisation) -> Table:
    """Tables 4 and 10, with a pair of columns per language, and how many of its sentences reach the expert."""
    from neuronmoe_plugins.specialisation.display import experts_by_place

    languages = specialisation.languages
    rows = []
    for own in experts_by_place(specialisation):
        cells = [cell for scores in own for cell in _cells(scores)]
        rows.append([own[0].place, count(own[0].neurons), *cells, *(count(scores.sentences) for scores in own)])
    pairs = [title for language in languages for title in (f"{language} high-AP", f"{language} ratio (%)")]
    header = ["layer-expert", "neurons", *pairs, *(f"{language} sentences" for language in languages)]
    threshold = specialisation.settings["threshold"]
    return Table(f"Neurons with an average precision of {threshold:g} or more", header, rows)


def _cells(scores: ExpertScores) -> tuple[str, str]:
    if scores.high_ap is None or scores.ratio is None:
        return NOT_MEASURED, "–"
    return count(scores.high_ap), f"{100 * scores.ratio:.2f}"


def _base_shares(specialisation: Specialisation) -> Iterable[str]:
    """For each language how many of its tokens chose the original MLP, over all mixtures."""
    for language in specialisation.languages:
        own = [row for row in specialisation.routing if row.language == language]
        share = sum(row.expert_tokens[0] for row in own) / max(1, sum(row.tokens for row in own))
        yield f"{100 * share:.0f} % of {language}’s tokens chose expert 0"


def _routing_table(specialisation: Specialisation) -> Table:
    """Tokens, shares and mean weights of each layer and language."""
    from neuronmoe_plugins.specialisation.display import token_shares

    num_experts = max(len(row.expert_tokens) for row in specialisation.routing)
    header = ["layer", "language", "most used pairs", "tokens", *(f"expert {each}" for each in range(num_experts))]
    header.append("entropy")
    rows = [
        [
            str(row.layer),
            row.language,
            _most_used_pairs(row),
            count(row.tokens),
            *token_shares(row, num_experts, " "),
            f"{row.entropy:.3f} of {log(len(row.expert_tokens)):.3f}",
        ]
        for row in specialisation.routing
    ]
    caption = (
        "Tokens that chose an expert (%), its mean router weight there, and the router’s entropy of at most (nats)"
    )
    return Table(caption, header, rows, words=range(3))


def _most_used_pairs(row: LanguageRouting) -> str:
    """The pairs that most tokens chose, with their share."""
    used = sorted((pair for pair in row.pairs.items() if pair[1]), key=lambda pair: -pair[1])[:PAIRS_SHOWN]
    parts = [f"{key.replace(',', ' + ')}: {100 * tokens / row.tokens:.0f} %" for key, tokens in used]
    return ", ".join(parts) or "–"


def _drift_parts(drift: Sequence[LayerDrift]) -> tuple[str, Table]:
    """Neurons of the base and of the extended model, and of both: in all layers as a note, and as Table 6."""
    totals: dict[str, tuple[int, int, int]] = {}
    cells: dict[int, dict[str, list[str]]] = {}
    for row in drift:
        base, extended, kept = totals.get(row.language, (0, 0, 0))
        totals[row.language] = base + row.base, extended + row.extended, kept + row.kept
        cells.setdefault(row.layer, {})[row.language] = [count(row.base), count(row.extended), count(row.kept)]
    rows = [
        [str(layer), *(number for language in totals for number in own[language])]
        for layer, own in sorted(cells.items())
    ]
    parts = [
        f"{language} {count(base)} before, {count(extended)} after, {count(kept)} of them the same"
        for language, (base, extended, kept) in totals.items()
    ]
    note = f"The model’s own neurons, in all layers: {'; '.join(parts)}."
    titles = [f"{language} {part}" for language in totals for part in ("base", "extended", "kept")]
    footer = ["all", *(count(number) for numbers in totals.values() for number in numbers)]
    caption = "Neurons of the base and of the extended model, and those that are the same, in numbers"
    return note, Table(caption, ["layer", *titles], rows, footer=footer, folded=True)
