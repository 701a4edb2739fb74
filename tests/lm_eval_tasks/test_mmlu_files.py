"""The task files on disk: up to date, complete, and read by lm-eval without a complaint."""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType

import pytest
from lm_eval.tasks import TaskManager

TASKS_DIR = Path(__file__).parents[2] / "lm_eval_tasks"
CATEGORY_SIZES = {"stem": 19, "humanities": 13, "social_sciences": 12, "other": 13}


def test_files_on_disk_are_what_the_generator_writes(generate: ModuleType) -> None:
    expected = generate.render_all()
    folders = {name.split("/")[0] for name in expected}
    on_disk = {
        path.relative_to(TASKS_DIR).as_posix(): path.read_text(encoding="utf-8")
        for folder in folders
        for path in (TASKS_DIR / folder).glob("*yaml")
    }
    assert on_disk.keys() == expected.keys(), "files were added or left over; compare with generate.py"
    stale = [name for name in expected if on_disk[name] != expected[name]]
    assert not stale, "run `python lm_eval_tasks/generate.py`"


def test_writing_leaves_only_the_files(generate: ModuleType, tmp_path: Path) -> None:
    generate.write(tmp_path / "new", {"a.yaml": "α\n"})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.yaml"]
    assert (tmp_path / "new" / "a.yaml").read_bytes() == "α\n".encode()


@pytest.mark.parametrize("code", ["el", "tr"])
def test_every_subject_has_its_own_name_in_the_language(generate: ModuleType, code: str) -> None:
    titles = [subject.titles[code] for subject in generate.read_subjects()]
    assert len(set(titles)) == 57
    assert all(title and title == title.strip() for title in titles)


@pytest.mark.parametrize("code", ["el", "tr"])
def test_lm_eval_lists_all_tasks_and_groups(code: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="lm_eval"):
        manager = TaskManager(include_path=str(TASKS_DIR / f"mmlu_{code}"), include_defaults=False)
    # lm-eval logs an unreadable YAML at level DEBUG ("Skip ...") and a repeated name at WARNING.
    assert not [record for record in caplog.records if "kip" in record.message or record.levelno >= logging.WARNING]
    subjects = [name for name in manager.all_subtasks if name.startswith("mmlu_") and name.endswith(f"_{code}")]
    assert len(subjects) == 57
    groups = {name: manager.task_index[name].cfg["task"] for name in manager.all_groups if name.endswith(f"_{code}")}
    assert groups.pop(f"mmlu_{code}") == [f"mmlu_{category}_{code}" for category in CATEGORY_SIZES]
    assert {name: len(members) for name, members in groups.items()} == {
        f"mmlu_{category}_{code}": size for category, size in CATEGORY_SIZES.items()
    }
    members = [member for group in groups.values() for member in group]
    assert sorted(members) == subjects


@pytest.mark.parametrize(
    ("code", "dataset_path"), [("el", "ilsp/mmlu_greek"), ("tr", "malhajar/mmlu-tr")], ids=["el", "tr"]
)
def test_task_reads_its_subject_from_the_hub(code: str, dataset_path: str) -> None:
    index = TaskManager(include_path=str(TASKS_DIR), include_defaults=False).task_index
    config = index[f"mmlu_us_foreign_policy_{code}"].cfg
    assert config is not None
    assert (config["dataset_path"], config["dataset_name"]) == (dataset_path, "us_foreign_policy")
    assert (config["test_split"], config["fewshot_split"]) == ("test", "dev")
    assert config["fewshot_config"] == {"sampler": "first_n"}
