"""The sections on experts that were measured: Tables 4 and 10, Figure 3, routing and drift, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_experts import GREEK, NEURONS, paper_experts, save_experts
from paper_analysis import COUNTS, legend_of, read_page, write_analysis
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.report.page import write_report
from neuronmoe_plugins.report.parts import Section
from neuronmoe_plugins.report.run import Run, read_run
from neuronmoe_plugins.report.specialisation_sections import routing_section, specialisation_section
from neuronmoe_plugins.specialisation import Specialisation
from neuronmoe_plugins.specialisation.specialisation import LayerDrift

DRIFT = [
    LayerDrift(layer, language, COUNTS[language][layer], layer, min(layer, COUNTS[language][layer]))
    for layer in range(28)
    for language in ("en", "el")
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_analysis(tmp_path / "analysis")
    return tmp_path


def write_drift(folder: Path, rows: Sequence[LayerDrift] = DRIFT) -> None:
    (folder / "drift.json").write_text(json.dumps([asdict(row) for row in rows]))


def section_of(folder: Path, specialisation: Specialisation) -> Section:
    save_experts(folder / "specialisation", specialisation)
    return specialisation_section(read_run(folder))


def cells(section: Section, panel: int) -> Any:
    assert section.picture is not None
    return section.picture.figure.axes[panel].collections[0].get_array()


def test_the_table_is_the_papers_table_10(folder: Path) -> None:
    (table,) = section_of(folder, paper_experts()).tables
    assert table.header[:6] == ["layer-expert", "neurons", "en high-AP", "en ratio (%)", "el high-AP", "el ratio (%)"]
    assert [row[0] for row in table.rows] == [f"L{layer} expert {expert}" for layer, expert in GREEK]
    assert [int(row[4]) for row in table.rows] == list(GREEK.values())
    # As the paper prints them, in its Table 4.
    assert [row[5] for row in table.rows[:6]] == ["0.00", "0.00", "0.14", "0.00", "0.31", "0.10"]
    assert [row[5] for row in table.rows[-4:]] == ["0.92", "0.00", "0.00", "2.08"]


def test_the_heatmap_is_of_the_same_shares(folder: Path) -> None:
    section = section_of(folder, paper_experts())
    assert section.picture is not None
    shares, layers = cells(section, 1), sorted({layer for layer, _ in GREEK})
    assert shares.shape == (len(layers), 6)
    for (layer, expert), high in GREEK.items():
        assert shares[layers.index(layer), expert] == pytest.approx(100 * high / NEURONS, rel=1e-6)
    assert shares.count() == len(GREEK), "a layer has no more cells than experts"
    ticks = [label.get_text() for label in section.picture.figure.axes[0].get_yticklabels()]
    assert ticks == list(map(str, layers))
    assert all(axes.yaxis_inverted() for axes in section.picture.figure.axes[:2]), "the first layer is on top"
    assert "el has most in L27 expert 3 (405 of 19,456)" in section.picture.alt
    assert legend_of(section) == []


def test_what_was_not_measured_is_told_from_zero_and_from_no_expert(folder: Path) -> None:
    section = section_of(folder, paper_experts(english={(26, 3): 2}))
    assert section.picture is not None
    for axes in section.picture.figure.axes[:2]:
        (hatched,) = [patch for patch in axes.patches if patch.get_hatch()]
        assert (int(hatched.get_x()), int(hatched.get_y())) == (3, 7), "expert 3, the eighth mixture"
    assert legend_of(section) == ["not measured: too few sentences have a token there"]
    (row,) = [row for row in section.tables[0].rows if row[0] == "L26 expert 3"]
    assert row[2:] == ["not measured", "–", "not measured", "–", "2", "500"]


def test_an_expert_nowhere_measured(folder: Path) -> None:
    section = section_of(folder, paper_experts(english=dict.fromkeys(GREEK, 2)))
    assert section.picture is not None
    assert "en was measured nowhere; el was measured nowhere" in section.picture.alt
    assert cells(section, 0).count() == 0


@pytest.mark.parametrize(("missing", "seen", "warned"), [("drop", 55, True), ("drop", 56, False), ("zero", 55, False)])
def test_experts_that_one_language_has_for_itself_are_named(
    folder: Path, missing: str, seen: int, warned: bool
) -> None:
    section = section_of(folder, paper_experts(english={(26, 3): seen}, missing=missing))
    assert any("ranks them by chance passes, too: L26 expert 3 (el)." in note for note in section.notes) == warned


def test_tables_of_more_languages_keep_their_order(folder: Path) -> None:
    table = section_of(folder, paper_experts(("tr", "en", "el"))).tables[0]
    assert table.header[2::2][:3] == ["tr high-AP", "en high-AP", "el high-AP"]
    assert table.rows[-1][2:7:2] == ["40", "40", "405"]


def test_routing_is_shown_as_shares_weights_and_pairs(folder: Path) -> None:
    specialisation = paper_experts()
    save_experts(folder / "specialisation", specialisation)
    section = routing_section(read_run(folder))
    assert section is not None
    (table,) = section.tables
    assert len(table.rows) == len(specialisation.routing)
    row = next(row for row in specialisation.routing if (row.layer, row.language) == (26, "el"))
    shown = next(own for own in table.rows if own[:2] == ["26", "el"])
    pair, most = max(row.pairs.items(), key=lambda own: own[1])
    assert shown[2].startswith(f"{pair[0]} + {pair[2]}: {100 * most / row.tokens:.0f} %, ")
    assert shown[3:5] == ["12,000", f"{100 * row.expert_tokens[0] / 12_000:.1f} (0.67)"]
    assert shown[-3:] == ["", "", "1.109 of 1.386"], "four experts"
    shares = cells(section, 1)[7].compressed()
    np.testing.assert_allclose(shares, [100 * tokens / 12_000 for tokens in row.expert_tokens], rtol=1e-6)


def test_one_choice_per_token_has_no_pairs(folder: Path) -> None:
    specialisation = paper_experts()
    for row in specialisation.routing:
        row.pairs.update(dict.fromkeys(row.pairs, 0))  # type: ignore[attr-defined]
    save_experts(folder / "specialisation", specialisation)
    section = routing_section(read_run(folder))
    assert section is not None
    assert {row[2] for row in section.tables[0].rows} == {"–"}


def test_drift_is_table_6_before_and_after(folder: Path) -> None:
    save_experts(folder / "specialisation", paper_experts())
    write_drift(folder / "specialisation")
    section = specialisation_section(read_run(folder))
    table = section.tables[1]
    assert table.header == ["layer", "en base", "en extended", "en kept", "el base", "el extended", "el kept"]
    assert table.rows[27] == ["27", *(str(n) for own in (COUNTS["en"], COUNTS["el"]) for n in (own[27], 27, 27))]
    assert table.footer[1:3] == ["974", "378"]
    kept = sum(min(layer, number) for layer, number in enumerate(COUNTS["el"]))
    assert section.notes[-1].endswith(f"; el 965 before, 378 after, {kept} of them the same.")


def test_without_a_specialisation_the_page_only_says_how_to_get_one(make_run: Callable[..., Run]) -> None:
    run = make_run()
    section = specialisation_section(run)
    assert (section.picture, list(section.tables)) == (None, [])
    assert f"--output {run.home / 'specialisation'}”" in section.notes[0]
    assert routing_section(run) is None


def test_a_specialisation_in_the_run_itself_and_an_empty_folder(folder: Path) -> None:
    (folder / "specialisation").mkdir()
    save_experts(folder, paper_experts())
    measured = read_run(folder).measured
    assert measured is not None
    assert measured.folder == folder


def test_the_page_has_both_figures(folder: Path) -> None:
    save_experts(folder / "specialisation", paper_experts(("en", "el<b>"), threshold=0.85))
    page = read_page(write_report(folder)[0])
    for name, title in (("specialisation", "precision of 0.85 or more"), ("routing", "Tokens that chose an expert")):
        section = next(element for element in page.iter("section") if element.get("id") == name)
        svg = next(section.iter("svg"))
        texts = ["".join(text.itertext()) for text in svg.iter("text")]
        assert any(title in text for text in texts)
        assert {"decoder layer", "expert", "original", "share (%)", "el<b>"} <= set(texts)
        assert len(svg.get("aria-label", "")) > 60
        assert (folder / "figures" / f"{name}.png").exists()


def test_another_model_is_noted(folder: Path) -> None:
    notes = section_of(folder, paper_experts(model="other/model")).notes
    assert any("is of the model other/model, the analysis of meta-llama/Llama-3.2-3B" in note for note in notes)
    assert not any("is of the model" in note for note in section_of(folder, paper_experts()).notes)


def drop_a_row(folder: Path) -> None:
    specialisation = paper_experts()
    save_experts(folder, Specialisation(specialisation.settings, specialisation.experts[1:], specialisation.routing))


def drift_of_another_adapter(folder: Path) -> None:
    write_drift(folder)
    (folder / "extended_analysis").mkdir()
    summary = {"model": "meta-llama/Llama-3.2-3B", "adapter": "run/stage2"}
    (folder / "extended_analysis" / "summary.json").write_text(json.dumps(summary))


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write("specialisation.json", "{"), "specialisation.json is no result of `neuronmoe specialise`"),
        (write("specialisation.json", "[]"), "specialisation.json is no result of `neuronmoe specialise`"),
        (write("specialisation.parquet", "half"), "specialisation.json does not belong to"),
        (lambda folder: (folder / "specialisation.parquet").unlink(), "specialisation.json is no result"),
        (lambda folder: save_experts(folder, paper_experts(num_layers=30)), "is for 30 layers, the analysis in"),
        (lambda folder: save_experts(folder, paper_experts(threshold=None)), "has no setting 'threshold'"),
        (lambda folder: save_experts(folder, paper_experts(num_layers=27)), "does not have every expert"),
        (drop_a_row, "does not have every expert for every language"),
        (write("drift.json", "[{"), "drift.json is no result of `neuronmoe specialise --compare base`"),
        (write("drift.json", '[{"layer": 0}]'), "drift.json is no result of `neuronmoe specialise --compare base`"),
        (lambda folder: write_drift(folder, DRIFT[:-2]), "drift.json is of another model or adapter"),
        (drift_of_another_adapter, "drift.json is of another model or adapter"),
        (
            lambda folder: [write_drift(folder), write("extended_analysis/summary.json", "{}")(folder)],
            "extended_analysis/summary.json cannot be read",
        ),
    ],
)
def test_a_broken_or_foreign_specialisation_is_refused(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    (folder / "report.html").write_text("mine")
    save_experts(folder / "specialisation", paper_experts())
    spoil(folder / "specialisation")
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert (folder / "report.html").read_text() == "mine"
    assert not (folder / "figures").exists()
