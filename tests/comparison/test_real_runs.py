"""`neuronmoe compare` on what lm-eval wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app
from neuronmoe_plugins.comparison import Bootstrap, Cell, Comparison, Row, Verdict, compare
from neuronmoe_plugins.comparison.display import notes
from neuronmoe_plugins.comparison.evidence import Evidence, Samples, strata_of
from neuronmoe_plugins.comparison.layout import Measure, Untested
from neuronmoe_plugins.comparison.lm_eval_results import read_results
from neuronmoe_plugins.errors import UserError
from runs import load, results_of, samples_of

Runs = Mapping[str, Path]
ARC, BITS, ZOO = "arc_el", "bits_per_byte_el", "zoo"


@pytest.fixture(scope="module")
def comparison(runs: Runs) -> Comparison:
    return compare([runs["base"], results_of(runs["mixture"])], ["base", "mixture"])


def row_of(comparison: Comparison, task: str) -> Row:
    (row,) = (row for row in comparison.rows if row.measure.task == task)
    return row


def pair(comparison: Comparison, task: str) -> tuple[Cell, Cell]:
    first, second = row_of(comparison, task).cells
    assert first is not None and second is not None
    return first, second


def item_values(run: Path, task: str, metric: str) -> np.ndarray:
    """The items' values, read without the package."""
    lines = samples_of(run, task).read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(line)[metric] for line in lines])


def test_values_and_errors_are_those_of_lm_eval(runs: Runs, comparison: Comparison) -> None:
    metrics = {"arc_el": "acc_norm", "arc_tr": "acc_norm", "mmlu_el": "acc", "zoo": "acc"}
    for place, name in enumerate(("base", "mixture")):
        reported = load(results_of(runs[name]))["results"]
        for task, metric in metrics.items():
            cell = pair(comparison, task)[place]
            assert cell.value == reported[task][f"{metric},none"]
            assert cell.stderr == reported[task][f"{metric}_stderr,none"]
            assert not cell.stderr_is_resampled
    assert reported["arc_el"]["acc,none"] != reported["arc_el"]["acc_norm,none"], "either metric would pass"


def test_rows_are_the_papers_columns_and_then_what_counts_in_no_group(comparison: Comparison) -> None:
    shown = [(row.measure.task, row.measure.key, row.measure.column is not None) for row in comparison.rows]
    assert shown == [
        ("arc_el", "acc_norm,none", True),
        ("arc_tr", "acc_norm,none", True),
        ("mmlu_el", "acc,none", True),
        ("bits_per_byte_el", "bits_per_byte,none", False),
        ("genus", "acc,none", False),
        ("zoo", "acc,none", False),
    ]
    assert [row.higher_is_better for row in comparison.rows] == [True, True, True, False, True, True]


def test_experts_are_those_of_the_adapter(runs: Runs) -> None:
    comparison = compare([runs["base"], runs["mixture"]])
    assert [(model.name.split("/")[-1], model.experts) for model in comparison.models] == [
        ("tiny-llama0", None),
        ("stage2", 7),
    ]


@pytest.mark.parametrize("run", ["base", "mixture"])
@pytest.mark.parametrize(("group", "by_size"), [("mmlu_el", True), ("zoo", False)])
def test_pooled_items_make_the_value_of_the_group(runs: Runs, run: str, group: str, by_size: bool) -> None:
    results = read_results(runs[run])
    evidence = Samples(results).evidence(Measure(group, "acc,none"))
    assert isinstance(evidence, Evidence)
    assert evidence.weightings == (by_size,)
    strata = strata_of([evidence])
    assert not isinstance(strata, Untested)
    statistic, parts = strata
    values = [part.weight * float(statistic.of_sums(part.values.sum(axis=(0, 1)))) for part in parts]
    assert len(values) == {"mmlu_el": 3, "zoo": 2}[group]
    assert sum(values) == pytest.approx(results.tasks[group].scores["acc,none"].value, abs=1e-12)


def test_differences_are_of_the_same_items(runs: Runs, comparison: Comparison) -> None:
    differences = item_values(runs["mixture"], ARC, "acc_norm") - item_values(runs["base"], ARC, "acc_norm")
    _, cell = pair(comparison, ARC)
    assert cell.items == 45 and cell.difference is not None and cell.difference.test is not None
    assert cell.difference.value == pytest.approx(differences.mean(), abs=1e-12)
    draws = np.random.default_rng(1).integers(0, 45, (20_000, 45))
    low, high = np.quantile(differences[draws].mean(axis=1), [0.025, 0.975])
    assert (cell.difference.test.low, cell.difference.test.high) == pytest.approx((low, high), abs=1 / 45 + 1e-9)


def test_bits_per_byte_are_resampled_as_a_ratio_of_sums(runs: Runs, comparison: Comparison) -> None:
    first, second = pair(comparison, BITS)
    base, mixture = (item_values(runs[name], BITS, "bits_per_byte") for name in ("base", "mixture"))
    draws = np.random.default_rng(1).integers(0, len(base), (20_000, len(base)))

    def bits(pairs: np.ndarray) -> Any:
        return -pairs[..., 0].sum(axis=-1) / pairs[..., 1].sum(axis=-1) / math.log(2)

    assert (first.value, second.value) == pytest.approx((bits(base), bits(mixture)), rel=1e-12)
    assert first.stderr_is_resampled and first.stderr == pytest.approx(bits(base[draws]).std(), rel=0.03)
    assert second.difference is not None and second.difference.test is not None
    low, high = np.quantile(bits(mixture[draws]) - bits(base[draws]), [0.025, 0.975])
    assert (second.difference.test.low, second.difference.test.high) == pytest.approx((low, high), abs=0.02)


def test_a_tasks_own_function_is_shown_but_not_tested(runs: Runs, comparison: Comparison) -> None:
    _, cell = pair(comparison, "genus")
    own = item_values(runs["mixture"], "genus", "acc")
    assert cell.value == pytest.approx((1 + own.sum()) / (2 + len(own)))
    assert cell.stderr is None
    assert cell.difference is not None and cell.difference.verdict is Verdict.UNTESTED
    reason = "Not tested, since the value is neither a mean over items nor a ratio of sums"
    assert f"{reason} (base: genus (acc); mixture: genus (acc))." in notes(comparison)


def test_a_run_against_itself_does_not_differ(runs: Runs) -> None:
    comparison = compare([runs["base"], runs["base"]], ["one", "two"])
    tested = [cells[1].difference for row in comparison.rows if (cells := row.cells)[1] is not None]
    assert sum(difference is not None and difference.test is not None for difference in tested) == 5
    for difference in tested:
        assert difference is not None and difference.value == 0
        if difference.test is not None:
            assert (difference.test.low, difference.test.high, difference.test.p_value) == (0, 0, 1)
            assert difference.verdict is Verdict.NOISE


@pytest.mark.parametrize("place", [0, 1])
def test_without_samples_differences_are_not_tested(runs: Runs, place: int) -> None:
    paths, names = [runs["mixture"]], ["mixture"]
    paths.insert(place, runs["bare"])
    names.insert(place, "bare")
    comparison = compare(paths, names)
    for task in (ARC, BITS, ZOO):
        _, cell = pair(comparison, task)
        assert cell.difference is not None and cell.difference.verdict is Verdict.UNTESTED
    first, second = pair(comparison, BITS)
    assert (first, second)[place].stderr is None
    assert second.difference is not None and second.difference.value == second.value - first.value != 0
    reason = "Not tested, since there are no samples: rerun lm_eval with --log_samples"
    assert f"{reason} (bare: arc_el, bits_per_byte_el (bits_per_byte), zoo (acc))." in notes(comparison)
    missing = row_of(comparison, "mmlu_el").cells
    assert missing[place] is None
    there = missing[1 - place]
    assert there is not None and there.difference is None


def test_one_file_alone_is_a_table_without_differences(runs: Runs) -> None:
    comparison = compare([runs["base"]])
    assert all(cell is not None and cell.difference is None for row in comparison.rows for cell in row.cells)
    assert not any("Against" in note or "Not tested" in note for note in notes(comparison))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            "limited",
            "arc_el: the number of items: 45 in {base}, 7 (--limit 7) in {other}; evaluate both in the same way",
        ),
        ("shots", "arc_el: shots: 0 in {base}, 1 in {other}; evaluate both in the same way"),
        (
            "reworded",
            "arc_el: item 0 has another prompt (other examples, chat template or wording) in {base} than in {other}; "
            "evaluate both in the same way",
        ),
    ],
)
def test_other_settings_are_refused(runs: Runs, run: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        compare([runs["base"], runs[run]])
    assert str(error.value) == message.format(base=results_of(runs["base"]), other=results_of(runs[run]))


def test_command_prints_and_writes_the_same_numbers(runs: Runs, tmp_path: Path) -> None:
    given = ["compare", str(runs["base"]), str(runs["mixture"]), "--name", "Dense", "--name", "NeuronMoE"]
    given += ["--resamples", "500", "--seed", "7", "--confidence", "0.9"]
    printed = CliRunner().invoke(app, [*given, "--json", str(tmp_path / "out.json")], catch_exceptions=False)
    record = load(tmp_path / "out.json")
    assert record["bootstrap"] == {"resamples": 500, "seed": 7, "confidence": 0.9}
    assert [(model["name"], model["experts"]) for model in record["models"]] == [("Dense", None), ("NeuronMoE", 7)]
    (arc,) = (row for row in record["rows"] if row["task"] == "arc_el")
    assert (arc["benchmark"], arc["language"], arc["metric"], arc["shots"]) == ("ARC", "EL", "acc_norm,none", 0)
    dense, mixture = arc["cells"]
    assert dense["difference"] is None and dense["items"] == 45 and dense["stderr_from"] == "lm-eval"
    (bits,) = (row for row in record["rows"] if row["task"] == "bits_per_byte_el")
    assert [cell["stderr_from"] for cell in bits["cells"]] == ["resamples"] * 2
    (genus,) = (row for row in record["rows"] if row["task"] == "genus")
    assert [cell["stderr_from"] for cell in genus["cells"]] == [None] * 2
    assert genus["cells"][1]["difference"]["untested"].startswith("the value is neither a mean")
    difference = mixture["difference"]
    expected = compare([runs["base"], runs["mixture"]], bootstrap=Bootstrap(500, 7, 0.9))
    cell = pair(expected, "arc_el")[1]
    assert cell.difference is not None and cell.difference.test is not None
    assert (difference["low"], difference["p_value"]) == (cell.difference.test.low, cell.difference.test.p_value)
    assert difference["verdict"] == cell.difference.verdict.value
    rows = [[part.strip() for part in line.split("│")] for line in printed.output.splitlines()]
    assert any(row[1:4] == ["Dense", "-", f"{100 * dense['value']:.2f} ± {100 * dense['stderr']:.2f}"] for row in rows)
    sign = {"within noise": "≈", "better": "▲", "worse": "▼"}[difference["verdict"]]
    mark = f"{sign} {100 * difference['value']:+.2f}  p {difference['p_value']:.3f}"
    assert any(row[1:4] == ["", "", mark] for row in rows)
    assert "the 90 % interval" in printed.output and "500 resamples, seed 7" in printed.output


def test_command_prints_markdown(runs: Runs) -> None:
    given = ["compare", str(runs["base"]), str(runs["mixture"]), "--name", "a|b", "--name", "c", "--markdown"]
    lines = CliRunner().invoke(app, given, catch_exceptions=False).output.splitlines()
    assert lines[:2] == ["| Model | #Exp | ARC EL | ARC TR | MMLU EL |", "| --- | ---: | ---: | ---: | ---: |"]
    assert lines[2].startswith("| a\\|b | - | ") and lines[3].startswith("| c | 7 | ")
    assert lines[3].count("<br>") == 6
    assert lines[5] == "| Task | Metric | a\\|b | c |"
    assert lines[7].startswith("| bits_per_byte_el | bits_per_byte ↓ | ")
