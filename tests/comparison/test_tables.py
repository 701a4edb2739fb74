"""The paper's layout, verdicts, and terminals of any width, on made-up runs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from neuronmoe_plugins.comparison import Cell, Comparison, Difference, Row, Test, Verdict, compare
from neuronmoe_plugins.comparison.display import cell_lines, markdown, notes, p_text, print_comparison
from neuronmoe_plugins.comparison.layout import COLUMNS, Measure
from neuronmoe_plugins.comparison.lm_eval_results import count_experts
from runs import save_run

# Task and metric as the paper's columns have them.
PAPER = {
    **{"arc_challenge": "acc_norm", "arc_el": "acc_norm", "arc_tr": "acc_norm", "arc_hu": "acc_norm"},
    **{"belebele_eng_Latn": "acc", "belebele_ell_Grek": "acc", "belebele_tur_Latn": "acc", "belebele_hun_Latn": "acc"},
    **{"hellaswag": "acc_norm", "hellaswag_el": "acc_norm", "hellaswag_tr": "acc_norm", "hellaswag_hu": "acc_norm"},
    **{"mmlu": "acc", "mmlu_el": "acc", "mmlu_tr": "acc", "m_mmlu_hu": "acc"},
}


def answers(seed: int, share: float, count: int = 200) -> list[float]:
    return (np.random.default_rng(seed).random(count) < share).astype(float).tolist()


def paper_run(folder: Path, seed: int, samples: bool = True) -> Path:
    """All of the paper's tasks in every language; both accuracies of each, which differ."""
    tasks = {
        task: {metric: answers(seed + place, 0.5), "acc" if metric == "acc_norm" else "acc_norm": answers(place, 0.1)}
        for place, (task, metric) in enumerate(PAPER.items())
    }
    return save_run(folder, tasks, samples=samples)


def show(comparison: Comparison, width: int | None = None) -> str:
    """What a terminal of this width shows, or a pipe."""
    stream = io.StringIO()
    print_comparison(Console(file=stream, width=width, force_terminal=width is not None, color_system=None), comparison)
    return stream.getvalue()


def verdict(
    tmp_path: Path, metric: str, first: list[object], second: list[object], values: Mapping[str, float]
) -> Verdict:
    """What a task of this metric gets; `values` are lm-eval's of both models where they are no means."""
    paths = []
    for name, items in (("first", first), ("second", second)):
        reported = {"own": {metric: values[name]}} if values else None
        paths.append(save_run(tmp_path / name, {"own": {metric: items}}, reported))
    (row,) = compare(paths).rows
    assert row.cells[1] is not None and row.cells[1].difference is not None
    return row.cells[1].difference.verdict


def test_every_column_of_the_paper_has_its_task_and_metric(tmp_path: Path) -> None:
    comparison = compare([paper_run(tmp_path, 10, samples=False)])
    assert len(PAPER) == len(COLUMNS) == 16
    assert {row.measure.task: row.measure.key for row in comparison.rows} == {
        task: f"{metric},none" for task, metric in PAPER.items()
    }
    head, _, line = markdown(comparison).splitlines()[:3]
    columns = [
        f"{name} {code}" for name in ("ARC", "Belebele", "HellaSwag", "MMLU") for code in ("EN", "EL", "TR", "HU")
    ]
    assert head == "| Model | #Exp | " + " | ".join(columns) + " |"
    means = [f"{100 * np.mean(answers(10 + place, 0.5)):.2f}" for place in range(16)]
    assert line == "| model | - | " + " | ".join(means) + " |"
    assert not comparison.other_rows


def test_only_languages_that_were_evaluated_have_columns(tmp_path: Path) -> None:
    english = {"arc_challenge": {"acc_norm": [0, 1]}, "mmlu": {"acc": [1, 1]}}
    first = save_run(tmp_path / "a", {**english, "arc_el": {"acc_norm": [1, 1]}}, samples=False)
    second = save_run(tmp_path / "b", {**english, "arc_tr": {"acc_norm": [0, 0]}}, samples=False)
    lines = markdown(compare([first, second], ["a", "b"])).splitlines()
    assert lines[0] == "| Model | #Exp | ARC EN | ARC EL | ARC TR | MMLU EN |"
    assert lines[2] == "| a | - | 50.00 | 100.00 | - | 100.00 |"
    assert [part.partition("<br>")[0].strip(" |") for part in lines[3].split(" | ")[2:]] == [
        "50.00",
        "-",
        "0.00",
        "100.00",
    ]


def test_a_task_of_the_paper_with_another_metric_is_one_of_the_others(tmp_path: Path) -> None:
    comparison = compare([save_run(tmp_path, {"arc_el": {"exact_match": [0, 1, 1]}}, samples=False)])
    assert [(row.measure.task, row.measure.key) for row in comparison.other_rows] == [("arc_el", "exact_match,none")]
    assert "| arc_el | exact_match ↑ % | 66.67 |" in markdown(comparison)


@pytest.mark.parametrize(
    ("metric", "higher", "lower"),
    [("acc", Verdict.BETTER, Verdict.WORSE), ("bits_of_waste", Verdict.WORSE, Verdict.BETTER)],
)
def test_verdicts_follow_the_direction(tmp_path: Path, metric: str, higher: Verdict, lower: Verdict) -> None:
    few: list[object] = list(answers(1, 0.3))
    many: list[object] = [1.0 if place % 4 else item for place, item in enumerate(few)]
    assert verdict(tmp_path / "up", metric, few, many, {}) is higher
    assert verdict(tmp_path / "down", metric, many, few, {}) is lower
    almost = [1 - float(str(few[0])), *few[1:]]
    assert verdict(tmp_path / "noise", metric, few, almost, {}) is Verdict.NOISE


def test_lower_bits_per_byte_are_better(tmp_path: Path) -> None:
    size = np.random.default_rng(0).integers(50, 500, 40)
    loss = size * np.random.default_rng(1).normal(0.9, 0.1, 40)
    first: list[object] = [[-float(nats), int(count)] for nats, count in zip(loss, size, strict=True)]
    second: list[object] = [[-0.9 * float(nats), int(count)] for nats, count in zip(loss, size, strict=True)]
    bits = loss.sum() / size.sum() / np.log(2)
    values = {"first": bits, "second": 0.9 * bits}
    assert verdict(tmp_path, "bits_per_byte", first, second, values) is Verdict.BETTER
    assert f"| own | bits_per_byte ↓ | {bits:.4f} ± " in markdown(compare([tmp_path / "first"]))


def test_an_unknown_direction_is_only_different(tmp_path: Path) -> None:
    paths = [
        save_run(tmp_path / name, {"own": {"acc": items}}) for name, items in (("a", [0, 0] * 9), ("b", [1, 1] * 9))
    ]
    for path in paths:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"higher_is_better": {}}))
    comparison = compare(paths)
    (row,) = comparison.rows
    assert row.cells[1] is not None and row.cells[1].difference is not None
    assert row.cells[1].difference.verdict is Verdict.DIFFERENT
    assert "◆ +100.00  p < 0.001" in show(comparison)
    assert any("◆ different (lm-eval does not say what is better)" in note for note in notes(comparison))


def test_one_item_is_not_tested_and_few_are_warned_of(tmp_path: Path) -> None:
    for name, right in (("a", 0), ("b", 1)):
        save_run(
            tmp_path / name,
            {"one": {"acc": [right]}, "few": {"acc": [0, right, 0]}, "many": {"acc": [0, right] * 15}}
            | {part: {"acc": [right]} for part in ("left", "right")},
            {"both": {"acc": right}},
            {"both": ["left", "right"]},
        )
    comparison = compare([tmp_path / "a", tmp_path / "b"], ["a", "b"])
    found = notes(comparison)
    assert "Not tested, since one item cannot be resampled (b: one (acc), both (acc))." in found
    assert "Intervals from fewer than 30 items are too narrow: few (3)." in found


def test_tasks_are_shown_in_the_highest_group_that_has_values(tmp_path: Path) -> None:
    groups = {"all": ["top"], "top": ["middle", "one"], "middle": ["two"]}
    reported: dict[str, dict[str, float]] = {"all": {}, "top": {"acc": 0.5}, "middle": {}}
    path = save_run(tmp_path, {"one": {"acc": [1]}, "two": {"acc": [0]}, "three": {"acc": [1]}}, reported, groups)
    assert sorted(row.measure.task for row in compare([path]).rows) == ["three", "top"]


def test_renamed_results_are_shown_but_not_tested(tmp_path: Path) -> None:
    paths = [save_run(tmp_path / name, {"own": {"acc": [0, 1, 1]}}) for name in "ab"]
    renamed = paths[1].rename(paths[1].with_name("dense.json"))
    found = notes(compare([paths[0], renamed], ["a", "b"]))
    assert any("was renamed" in note and note.endswith("(b: own (acc)).") for note in found)


def test_repeated_names_are_numbered(tmp_path: Path) -> None:
    path = save_run(tmp_path, {"own": {"acc": [0, 1]}}, model_args={"pretrained": "m", "peft": "adapters/run/stage2/"})
    names = [model.name for model in compare([path, path, path]).models]
    assert names == ["run/stage2", "run/stage2 (2)", "run/stage2 (3)"]


def test_nothing_is_cut_in_a_pipe(tmp_path: Path) -> None:
    comparison = compare([paper_run(tmp_path / "a", 10), paper_run(tmp_path / "b", 50)], ["a" * 60, "b"])
    output = show(comparison)
    assert "…" not in output
    assert "a" * 60 in output
    assert sum(line.startswith("┏") for line in output.splitlines()) == 1
    assert output.count(" p ") + output.count("p < 0.001") == 16


@pytest.mark.parametrize(("width", "tables"), [(400, 1), (200, 2), (110, 4), (30, 4)])
def test_narrow_terminals_get_several_tables_and_the_same_cells(tmp_path: Path, width: int, tables: int) -> None:
    comparison = compare([paper_run(tmp_path / "a", 10), paper_run(tmp_path / "b", 50)], ["a", "b"])
    output = show(comparison, width)
    lines = output.splitlines()
    assert sum(line.startswith("┏") for line in lines) == tables
    assert output.count(" p ") + output.count("p < 0.001") == 16
    if width >= 110:
        assert max(len(line) for line in lines if line.startswith(("┏", "│"))) <= width


def test_models_of_other_tasks_are_spread_over_tables_too(tmp_path: Path) -> None:
    paths = [save_run(tmp_path / name, {"own": {"acc": answers(place, 0.5)}}) for place, name in enumerate("abcdef")]
    output = show(compare(paths, ["model " + name for name in "abcdef"]), 66)
    assert sum(line.startswith("┏") for line in output.splitlines()) == 3
    assert all(f"model {name}" in output for name in "abcdef")


def test_names_are_no_markup(tmp_path: Path) -> None:
    path = save_run(tmp_path, {"own": {"acc": [0, 1]}, "arc_el": {"acc_norm": [0, 1]}})
    assert show(compare([path], ["[red]x[/red]"])).count("[red]x[/red]") == 2


def test_what_rounds_to_nothing_has_no_minus() -> None:
    difference = Difference(-1e-9, Verdict.NOISE, Test(-1e-9, 0.0, 1.0), None)
    cell = Cell(0.5, None, False, 40, None, difference)
    row = Row(Measure("own", "acc,none"), True, 0, (cell,))
    assert [line.text for line in cell_lines(row, cell)] == ["50.00", "≈ +0.00  p 1.000", "[+0.00, +0.00]"]


def test_small_p_values_are_bounded() -> None:
    assert [p_text(value) for value in (1.0, 0.0213, 0.001, 0.0002)] == ["p 1.000", "p 0.021", "p 0.001", "p < 0.001"]


@pytest.mark.parametrize(
    ("adapter", "num_layers", "experts"),
    [
        ({"num_experts": [6, 2, 1]}, None, 9),
        ({"num_experts": 2}, 5, 10),
        ({"num_experts": 2}, None, None),
        ({"num_experts": [3, 2], "layers_to_transform": [1, 4]}, 6, 9),
        ({"num_experts": [1, 3, 1, 1, 2, 1], "layers_to_transform": [1, 4]}, 6, 9),
        ({"num_experts": [3, 2], "layers_to_transform": [0, 1]}, None, 5),
        ({"num_experts": [3, 2], "layers_to_transform": [1, 4]}, None, None),
        ({"num_experts": 4, "layers_to_transform": 2}, 3, 6),
        ({"num_experts": 4, "peft_type": "LORA"}, 3, None),
    ],
)
def test_experts_are_counted_with_dense_layers(
    tmp_path: Path, adapter: dict[str, object], num_layers: int | None, experts: int | None
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "MOE", **adapter}))
    model = tmp_path / "model"
    model.mkdir()
    if num_layers is not None:
        (model / "config.json").write_text(json.dumps({"num_hidden_layers": num_layers}))
    assert count_experts({"pretrained": str(model), "peft": str(tmp_path)}) == experts


def test_experts_of_what_is_not_here_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "MOE", "num_experts": [2, 2]}))
    monkeypatch.chdir(tmp_path)
    assert count_experts({"pretrained": "owner/model"}) is None
    assert count_experts({"peft": "owner/adapter"}) is None
    assert count_experts({"peft": "."}) == 4
