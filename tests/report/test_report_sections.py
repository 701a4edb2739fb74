"""Sections one by one: their numbers against sums, and what they say when something is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from paper_analysis import BINS, COUNTS, LEFT_OUT, UNITS, legend_of

from neuronmoe_plugins.neurons.metrics import Neuron
from neuronmoe_plugins.report.analysis_sections import (
    provenance_section,
    scores_section,
    similarity_section,
    top_section,
)
from neuronmoe_plugins.report.neuron_sections import (
    components_section,
    layers_section,
    module_counts,
    overlap_section,
    shared_neurons,
)
from neuronmoe_plugins.report.parts import Section
from neuronmoe_plugins.report.run import Run
from neuronmoe_plugins.tokenizer_fit import TokenizerFit


@pytest.mark.parametrize(
    ("make_section", "key"),
    [
        (layers_section, "layer_counts"),
        (scores_section, "score_histogram"),
        (similarity_section, "mlp_input_similarity"),
        (provenance_section, "versions"),
        (provenance_section, "corpora"),
    ],
)
def test_what_an_older_analysis_lacks_is_named(
    make_run: Callable[..., Run], make_section: Callable[[Run], Section], key: str
) -> None:
    section = make_section(make_run(**{key: LEFT_OUT}))
    assert section.picture is None
    assert section.notes == [f"This analysis was written without “{key}”; run “neuronmoe analyze” again to see this."]


def test_tokens_of_each_language_are_shown_where_they_were_counted(make_run: Callable[..., Run]) -> None:
    old = make_run()
    assert [table.caption for table in provenance_section(old).tables] == ["Settings", "Versions", "Corpora"]
    fits = [
        TokenizerFit(texts=500, characters=40_000, lost=0, words=10_000, bytes=50_000, tokens=13_000, unknown=0),
        TokenizerFit(texts=500, characters=40_000, lost=800, words=None, bytes=90_000, tokens=60_000, unknown=600),
    ]
    corpora = [corpus | {"tokenizer": fit.record()} for corpus, fit in zip(old.summary["corpora"], fits, strict=False)]
    section = provenance_section(replace(old, summary=old.summary | {"corpora": corpora}))
    assert section.notes == []
    table = section.tables[-1]
    assert table.caption == "Tokens of the corpora"
    assert list(table.header)[1:4] == ["tokens per word", "tokens per byte", "bytes per token"]
    assert table.rows == [
        ["en", "1.30", "0.26", "3.85", "0.0%", "0.0%"],
        ["el", "-", "0.67", "1.50", "1.0%", "2.0%"],
    ]


def test_overlap_is_of_modules_and_units(make_run: Callable[..., Run]) -> None:
    run = make_run()
    shared = shared_neurons(run.neurons, run.languages)
    assert list(np.diag(shared)) == [974, 965, 990, 993]
    # The paper counts 1933 distinct neurons of English and Greek together.
    assert shared[0, 1] == shared[1, 0] == 974 + 965 - 1933
    places = {name: {(n.layer, n.module, n.unit) for n in run.neurons if n.language == name} for name in run.languages}
    for one, other in combinations(range(4), 2):
        assert shared[one, other] == len(places[run.languages[one]] & places[run.languages[other]])
    section = overlap_section(run)
    only = places["en"] - places["el"] - places["tr"] - places["hu"]
    assert section.tables[0].rows[0][:3] == ["en", "974", str(len(only))]
    assert section.tables[0].footer[1] == f"{len(set().union(*places.values())):,}"
    assert section.picture is not None
    cells = [text.get_text() for text in section.picture.figure.axes[0].texts]
    assert cells == [str(number) for number in shared.ravel()]


def test_nothing_is_drawn_of_what_is_all_zero(make_run: Callable[..., Run]) -> None:
    run = make_run()
    apart = [replace(neuron, unit=4 * neuron.unit + run.languages.index(neuron.language)) for neuron in run.neurons]
    section = overlap_section(replace(run, neurons=apart))
    assert (section.picture, section.notes) == (None, ["No two of these languages share a neuron."])
    assert [row[1] for row in section.tables[0].rows] == ["974", "965", "990", "993"]
    for make_section in (layers_section, components_section):
        section = make_section(replace(run, neurons=[]))
        assert section.picture is None
        assert section.notes == ["No language has a neuron of its own, so there is nothing to show."]


def test_components_add_up_to_the_counts_of_each_layer(make_run: Callable[..., Run]) -> None:
    run = make_run()
    counts = module_counts(run, list(UNITS))
    np.testing.assert_array_equal(counts.sum(axis=1), list(COUNTS.values()))
    section = components_section(run)
    assert section.picture is not None
    mesh = section.picture.figure.axes[1].collections[0]
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), 0), counts[1])


def test_histogram_marks_the_threshold(make_run: Callable[..., Run]) -> None:
    run = make_run()
    section = scores_section(run)
    assert section.picture is not None
    panel = section.picture.figure.axes[2]
    assert panel.get_title() == "tr"
    assert panel.get_yscale() == "log"
    assert [line.get_xdata()[0] for line in panel.lines] == [0.5]
    bins = run.summary["score_histogram"]["counts"]["tr"]
    for patch, component in zip(panel.patches, ("attention", "mlp"), strict=False):
        np.testing.assert_array_equal(patch.get_data().values, bins[component])
    above = sum(sum(own[BINS // 2 :]) for own in bins.values())
    assert f"{above:,} units are above it for tr" in section.picture.alt
    assert "at most 1,000 of those" in section.picture.caption


@pytest.mark.parametrize("changes", [{"min_score": None}, {"metric": "lape", "min_score": 0.9}])
def test_histogram_without_a_threshold_of_its_scores_marks_none(
    make_run: Callable[..., Run], changes: dict[str, Any]
) -> None:
    section = scores_section(make_run(**changes, top_n=None))
    assert section.picture is not None
    assert [len(panel.lines) for panel in section.picture.figure.axes] == [0] * 4
    assert legend_of(section) == ["attention", "mlp"]


def test_similarity_has_a_line_for_each_pair(make_run: Callable[..., Run]) -> None:
    run = make_run()
    section = similarity_section(run)
    assert legend_of(section) == ["en – el", "en – tr", "en – hu", "el – tr", "el – hu", "tr – hu"]
    assert section.picture is not None
    cosines = np.array(run.summary["mlp_input_similarity"]["layers"])
    lines = section.picture.figure.axes[0].lines
    for line, (one, other) in zip(lines, combinations(range(4), 2), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), cosines[:, one, other])


def test_similarity_of_unknown_mlps_is_explained(make_run: Callable[..., Run]) -> None:
    assert "no known feed-forward family" in similarity_section(make_run(mlp_input_similarity=None)).notes[0]


def test_other_architectures_and_languages_without_neurons(make_run: Callable[..., Run]) -> None:
    units = {"attention.query_key_value": 96, "mlp.dense_h_to_4h": [64, 64]}
    neurons = [Neuron("en", 0, "attention.query_key_value", 5, 0.95), Neuron("en", 1, "mlp.dense_h_to_4h", 3, 0.9)]
    run = make_run(neurons=neurons, units_per_module=units, num_layers=2)
    section = components_section(run)
    assert section.picture is not None
    labels = [label.get_text() for label in section.picture.figure.axes[0].get_yticklabels()]
    assert labels == list(units)
    assert top_section(run).tables[0].rows[0] == ["attention.query_key_value", "0", "5", "0.9500"]
    assert top_section(run).tables[1].caption == "el: no neurons"
    assert overlap_section(run).tables[0].rows[1] == ["el", "0", "0", "–", "–"]


def test_no_neurons_at_all(make_run: Callable[..., Run]) -> None:
    run = make_run(neurons=[])
    assert "there is nothing to show" in components_section(run).notes[0]
    assert overlap_section(run).tables[0].footer[1] == "0"
