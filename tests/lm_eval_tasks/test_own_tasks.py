"""This package's tasks without `--include_path`: known where they are asked for, and nowhere in the way."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager, get_task_dict
from probes_data import TASKS_DIR
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.integrations import lm_eval


def save_task(folder: Path, name: str, text: str = "text") -> Path:
    """A folder with a task of this name."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"task: {name}", "dataset_path: nowhere", f"doc_to_text: {text}", "output_type: loglikelihood"]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return folder


def manager(*folders: Path) -> TaskManager:
    """lm-eval's own tasks, which are not used, take ten seconds to index."""
    return TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)


def path_of(tasks: TaskManager, name: str) -> Path:
    entry = tasks.task_index[name]
    return Path(entry["yaml_path"] if isinstance(entry, dict) else entry.yaml_path)  # a dictionary before 0.4.12


@pytest.mark.parametrize("asked", ["neuronmoe_greek", "neuronmoe_gr*k"])
def test_a_name_that_lm_eval_does_not_know_is_found(asked: str) -> None:
    tasks = manager()
    assert tasks.match_tasks([asked]) == ["neuronmoe_greek"]
    assert path_of(tasks, "neuronmoe_greek") == TASKS_DIR / "neuronmoe" / "neuronmoe_greek.yaml"
    assert {"neuronmoe_greek", "mmlu_el"} <= set(tasks.all_groups)
    assert {"arc_el", "mmlu_anatomy_el"} <= set(tasks.all_subtasks)
    assert tasks.all_tasks == sorted(tasks.task_index)


def test_programs_that_load_by_name_find_them_too(tmp_path: Path) -> None:
    (tmp_path / "el.txt").write_text("Μία πρόταση.\n", encoding="utf-8")
    tasks = TaskManager(include_defaults=False, metadata={"text_file": str(tmp_path / "{language}.txt")})
    loaded = get_task_dict(["bits_per_byte_el"], tasks)["bits_per_byte_el"]
    assert [doc["text"] for doc in loaded.test_docs()] == ["Μία πρόταση."]


def test_what_asks_for_none_of_them_sees_none(tmp_path: Path) -> None:
    tasks = manager(save_task(tmp_path, "mmlu_mine"))
    assert tasks.match_tasks(["mmlu_*"]) == ["mmlu_mine"]
    assert tasks.match_tasks(["no_such_task", "/no/such.yaml"]) == []
    assert tasks.all_tasks == ["mmlu_mine"]


def test_a_users_own_folder_stays_and_wins(tmp_path: Path) -> None:
    tasks = manager(save_task(tmp_path, "mine"), save_task(tmp_path, "arc_el"))
    assert tasks.match_tasks(["neuronmoe_greek", "mine"]) == ["mine", "neuronmoe_greek"]
    assert path_of(tasks, "arc_el") == tmp_path / "arc_el.yaml"
    assert path_of(tasks, "arc_tr") == TASKS_DIR / "arc" / "arc_tr.yaml"


def test_what_goes_wrong_leaves_lm_eval_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = manager(save_task(tmp_path, "mine"))
    monkeypatch.setattr(type(tasks), "task_index", property(lambda _: {}.missing))  # type: ignore[attr-defined]
    assert tasks.match_tasks(["mine"]) == ["mine"]
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        assert tasks.match_tasks(["neuronmoe_greek", "mine"]) == ["mine"]
    assert [message for message in caplog.messages if "neuronmoe-plugins" in message] == [
        "neuronmoe-plugins cannot add its tasks ('dict' object has no attribute 'missing'): "
        f"use --include_path {TASKS_DIR}"
    ]


def test_a_native_benchmark_that_this_release_lacks_is_one_line(tmp_path: Path) -> None:
    others = ["include_base_44_greek", "global_mmlu_full_el", "multiblimp_ell"]
    tasks = manager(*(save_task(tmp_path / name, name) for name in others))
    with pytest.raises(UserError) as error:
        tasks.match_tasks(["neuronmoe_greek_n*"])
    expected = (
        r"lm-eval [\d.]+ has no greekmmlu, which neuronmoe_greek_native asks for; update it, or name the others: "
    )
    assert re.fullmatch(f"{expected}--tasks {','.join(others)}", str(error.value))
    save_task(tmp_path / "greekmmlu", "greekmmlu")
    whole = manager(*(tmp_path / name for name in [*others, "greekmmlu"]))
    assert whole.match_tasks(["neuronmoe_greek_native"]) == ["neuronmoe_greek_native"]


def test_a_data_set_that_is_missing_is_named_without_the_folder_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager().match_tasks(["neuronmoe_greek"])
    monkeypatch.setattr("sys.argv", ["lm_eval", "--tasks", "arc_el"])
    error = FileNotFoundError("no such file")
    error.lm_eval_task = "arc_el"  # type: ignore[attr-defined]
    assert re.match("task arc_el: cannot load its data set", lm_eval.explain(error) or "")


def test_the_folders_are_printed() -> None:
    run = CliRunner().invoke
    assert run(app, ["paths", "tasks"]).output == f"{TASKS_DIR}\n"
    assert run(app, ["paths"]).output == f"tasks    {TASKS_DIR}\nrecipes  {TASKS_DIR.with_name('recipes')}\n"
    assert run(app, ["paths", "models"]).exit_code == 2
