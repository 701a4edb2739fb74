"""The probes' task files on disk: up to date, complete, and read by lm-eval without a complaint."""

from __future__ import annotations

import logging

import generate_probes
import pytest
from lm_eval.tasks import TaskManager
from probes_data import QUESTION_TASKS, TASKS_DIR, TEXT_TASKS


def test_files_on_disk_are_what_the_generator_writes() -> None:
    expected = generate_probes.render()
    folder = TASKS_DIR / "probes"
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.name.endswith("yaml")}
    assert on_disk.keys() == expected.keys(), "files were added or left over; compare with generate_probes.py"
    stale = [name for name in expected if on_disk[name] != expected[name]]
    assert not stale, "run `python lm_eval_tasks/generate_probes.py`"


def test_lm_eval_lists_all_tasks_and_groups(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="lm_eval"):
        manager = TaskManager(include_path=str(TASKS_DIR), include_defaults=True)
    # lm-eval logs an unreadable YAML at level DEBUG ("Skip ...") and a repeated name at WARNING.
    assert not [record for record in caplog.records if record.getMessage().startswith(f"Skip {TASKS_DIR}")]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert set(manager.all_subtasks) >= {*QUESTION_TASKS, *TEXT_TASKS}
    members = {name: manager.task_index[name].cfg["task"] for name in manager.all_groups if "_probes" in name}
    assert members == {
        "neuronmoe_probes": [*QUESTION_TASKS, *TEXT_TASKS],
        "neuronmoe_probes_el": ["capitals_el", "bits_per_byte_el"],
        "neuronmoe_probes_tr": ["exams_tr", "capitals_tr", "bits_per_byte_tr"],
        "neuronmoe_probes_hu": ["exams_hu", "capitals_hu", "bits_per_byte_hu"],
        "neuronmoe_probes_es": ["exams_es", "capitals_es", "bits_per_byte_es"],
    }
