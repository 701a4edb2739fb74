"""Bad input ends in one line that names the file and what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuronmoe_plugins.comparison import compare
from neuronmoe_plugins.errors import UserError
from runs import DATE, load, save_run

OTHER_DATE = "2026-03-06T10-00-00.000001"
TASKS = {"arc_el": {"acc_norm": [0, 1, 1, 0]}, "own": {"acc": [1, 0, 1]}}


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return save_run(tmp_path / "first", TASKS)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return save_run(tmp_path / "second", TASKS)


def message(*paths: Path, names: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as error:
        compare(paths, names)
    text = str(error.value)
    assert "\n" not in text
    return text


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a results file."""
    content = load(path)
    edit(content)
    path.write_text(json.dumps(content))


def samples(results: Path, task: str = "arc_el") -> Path:
    return results.with_name(f"samples_{task}_{DATE}.jsonl")


def change_line(path: Path, number: int, **changes: object) -> None:
    """Rewrite a samples file's line, counted from 1."""
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | changes)
    path.write_text("\n".join(lines) + "\n")


def test_command_says_it_in_one_line_and_ends_with_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neuronmoe_plugins", "compare", str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"neuronmoe: error: {tmp_path / 'none.json'} does not exist; give a results_*.json that lm_eval --output_path "
        "wrote, or the folder that it made\n"
    )


def test_names_must_be_as_many_as_files(first: Path, second: Path) -> None:
    expected = "--name is given 1 times for 2 results: give it for each, or for none"
    assert message(first, second, names=("one",)) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ("[" * 100_000, "is not JSON (maximum recursion depth exceeded"),
        ("[1]", "is not a results file of lm-eval"),
        ('{"results": {}}', "is not a results file of lm-eval (it lacks 'group_subtasks')"),
        ('{"results": [], "group_subtasks": []}', "is not a results file of lm-eval ("),
        ("\udcff", "is not JSON ('utf-8' codec can't decode byte 0xff"),
    ],
)
def test_what_lm_eval_did_not_write(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = message(path)
    assert found.startswith(f"{path} {what}")
    assert found.endswith("give a results_*.json that lm_eval --output_path wrote, or the folder that it made")


def test_folder_must_have_one_results_file(tmp_path: Path, first: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert message(tmp_path / "empty").startswith(f"{tmp_path / 'empty'} has no results file; ")
    other = first.with_name(f"later_{OTHER_DATE}.json")
    other.write_text(first.read_text())
    expected = f"{tmp_path} has 2 results files, name one of them: first/{other.name}, first/{first.name}"
    assert message(tmp_path) == expected
    other.unlink()
    assert compare([tmp_path]).models[0].results == first


def test_no_task_in_common(first: Path, tmp_path: Path) -> None:
    other = save_run(tmp_path / "other", {"arc_tr": {"acc_norm": [1, 0]}})
    assert message(first, other) == f"{first} and {other} have no task in common"


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_values_must_be_finite(first: Path, value: str) -> None:
    first.write_text(first.read_text().replace("0.5", value, 1))
    expected = f"{first}: acc_norm of arc_el is {float(value)}, not a finite number"
    assert message(first) == expected


def test_a_groups_tasks_must_be_there(first: Path) -> None:
    change(first, lambda content: content["group_subtasks"].update(all=["arc_el", "lost"]))
    assert message(first) == f"{first} has no results of lost, though it belongs to a group there"


def edit_shots(content: dict[str, Any]) -> None:
    content["n-shot"]["arc_el"] = 25


def edit_version(content: dict[str, Any]) -> None:
    content["versions"]["arc_el"] = 2.0


def edit_items(content: dict[str, Any]) -> None:
    content["n-samples"]["arc_el"]["effective"] = 100
    content["config"]["limit"] = 100.0


def edit_direction(content: dict[str, Any]) -> None:
    content["higher_is_better"]["arc_el"]["acc_norm"] = False


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (edit_shots, "shots: 0 in {first}, 25 in {second}"),
        (edit_version, "the version: 1.0 in {first}, 2.0 in {second}"),
        (edit_items, "the number of items: 4 in {first}, 100 (--limit 100) in {second}"),
        (edit_direction, "higher_is_better of acc_norm: True in {first}, False in {second}"),
    ],
)
@pytest.mark.parametrize("logged", [True, False])
def test_settings_must_be_the_same(
    first: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None], what: str, logged: bool
) -> None:
    second = save_run(tmp_path / "second", TASKS, samples=logged)
    change(second, edit)
    expected = f"arc_el: {what.format(first=first, second=second)}; evaluate both in the same way"
    assert message(first, second) == expected


def test_settings_are_those_of_a_groups_tasks(tmp_path: Path) -> None:
    tasks = {"mmlu_one_el": {"acc": [0, 1]}, "mmlu_two_el": {"acc": [1, 1]}}
    groups = {"mmlu_el": ["mmlu_one_el", "mmlu_two_el"]}
    one, two = (save_run(tmp_path / name, tasks, {"mmlu_el": {"acc": 0.75}}, groups) for name in "ab")
    change(two, lambda content: content["n-shot"].update(mmlu_two_el=5))
    assert message(one, two) == f"mmlu_two_el: shots: 0 in {one}, 5 in {two}; evaluate both in the same way"
    change(two, lambda content: content["group_subtasks"].update(mmlu_el=["mmlu_one_el"]))
    assert message(one, two) == f"mmlu_el: mmlu_two_el belongs to it in only one of {one} and {two}"


def test_settings_are_checked_between_files_after_the_first_too(first: Path, tmp_path: Path) -> None:
    tasks = {**TASKS, "new": {"acc": [1, 1]}}
    second, third = (save_run(tmp_path / name, tasks) for name in ("second", "third"))
    change(third, lambda content: content["n-shot"].update(new=3))
    for paths in ((first, second, third), (second, second, third)):
        assert message(*paths).startswith(f"new: shots: 0 in {second}, 3 in {third}; ")


def test_metric_must_be_the_same(first: Path, tmp_path: Path) -> None:
    second = save_run(tmp_path / "second", {"arc_el": {"acc": [0, 1, 1, 0]}, "own": {"acc": [1, 0, 1]}})
    assert message(first, second) == f"arc_el: {first} has the metric acc_norm,none, {second} has not"
    assert message(second, first) == f"arc_el: {first} has the metric acc_norm,none, {second} has not"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"doc_id": 2, "do', "the line is damaged (Unterminated string starting at, character 15)"),
        ('"text"', "not a sample of lm-eval: it has another form"),
        ('{"metrics": [], "doc_id": "x"}', "not a sample of lm-eval: it has another form"),
        ('{"doc_id": 2}', "not a sample of lm-eval: it lacks 'metrics'"),
        ('{"metrics": ["acc_norm"], "doc_id": 2}', "not a sample of lm-eval: it lacks 'acc_norm'"),
        ("", "the line is damaged (Expecting value, character 1)"),
    ],
)
def test_damaged_line_is_named(first: Path, second: Path, line: str, what: str) -> None:
    path = samples(second)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    assert message(first, second) == f"{path}:3: {what}"


def test_damaged_bytes_are_named(first: Path, second: Path) -> None:
    samples(second).write_bytes(b"\xff\n")
    assert message(first, second).startswith(f"{samples(second)} is not UTF-8 text (")


def test_item_values_must_be_finite(first: Path, second: Path) -> None:
    change_line(samples(second), 2, acc_norm=float("nan"))
    assert message(first, second) == f"{samples(second)}:2: acc_norm is nan, not a finite number"


def test_lines_must_be_all_there_and_once(first: Path, second: Path) -> None:
    path = samples(second)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    hint = "it is damaged, or of another run"
    assert message(first, second) == f"{path} has not the items of arc_el in its results file: {hint}"
    path.write_text("".join([*lines, lines[1]]))
    assert message(first, second) == f"{path}:5: item 1 stands there twice"


@pytest.mark.parametrize(("reported", "shown"), [(0.75, "0.75"), (0.5000001, "0.5000001")])
def test_samples_must_make_the_value_that_is_reported(first: Path, second: Path, reported: float, shown: str) -> None:
    def declare(content: dict[str, Any]) -> None:
        content["configs"]["arc_el"]["metric_list"] = [{"metric": "acc_norm", "aggregation": "mean"}]
        content["results"]["arc_el"]["acc_norm,none"] = reported

    change(second, declare)
    assert message(first, second) == (
        f"arc_el: acc_norm,none is {shown} in {second}, but its samples make 0.5: they are damaged, or of another run"
    )


def test_samples_of_another_date_are_refused_unless_their_results_are_there(first: Path, second: Path) -> None:
    path = samples(second)
    other = path.rename(path.with_name(path.name.replace(DATE, OTHER_DATE)))
    expected = f"{other} is of another run than {second}, as their dates say; keep each with its own"
    assert message(first, second) == expected
    second.with_name(f"results_{OTHER_DATE}.json").write_text("{}")
    row = compare([first, second]).rows[0]
    assert row.cells[1] is not None and row.cells[1].difference is not None
    assert row.cells[1].difference.test is None


def test_a_task_whose_name_begins_like_anothers_is_not_taken_for_it(first: Path, second: Path) -> None:
    samples(second).unlink()
    second.with_name(f"samples_arc_el_easy_{OTHER_DATE}.jsonl").write_text("{}")
    row = compare([first, second]).rows[0]
    assert row.cells[1] is not None and row.cells[1].untested is not None


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("doc_hash", "item"),
        ("prompt_hash", "prompt (other examples, chat template or wording)"),
        ("target_hash", "answer"),
    ],
)
def test_items_must_be_the_same(first: Path, second: Path, field: str, what: str) -> None:
    change_line(samples(second), 3, **{field: "other"})
    change(second, lambda content: content.update(task_hashes={}))
    expected = f"arc_el: item 2 has another {what} in {first} than in {second}; evaluate both in the same way"
    assert message(first, second) == expected


def test_item_numbers_must_be_the_same(first: Path, second: Path) -> None:
    change_line(samples(second), 3, doc_id=7)
    change(second, lambda content: content.update(task_hashes={}))
    assert message(first, second) == f"arc_el: other items were evaluated: item 2 is only in {first}"


def test_lines_in_another_order_are_the_same_items(first: Path, second: Path) -> None:
    path = samples(second)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    change(second, lambda content: content.update(task_hashes={}))
    row = compare([first, second]).rows[0]
    assert row.cells[1] is not None and row.cells[1].difference is not None
    assert row.cells[1].difference.test is not None and row.cells[1].difference.test.high == 0


def test_nothing_is_written_when_the_input_is_bad(first: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from neuronmoe_plugins.cli import app

    given = ["compare", str(first), str(tmp_path / "none.json"), "--json", str(tmp_path / "out.json")]
    result = CliRunner().invoke(app, given)
    assert isinstance(result.exception, UserError) and re.search("none.json does not exist", str(result.exception))
    assert not (tmp_path / "out.json").exists()
