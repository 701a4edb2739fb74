"""The probes' task files on disk: up to date and complete."""

from __future__ import annotations

import generate_probes
from probes_data import TASKS_DIR


def test_files_on_disk_are_what_the_generator_writes() -> None:
    expected = generate_probes.render()
    folder = TASKS_DIR / "probes"
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.name.endswith("yaml")}
    assert on_disk.keys() == expected.keys(), "files were added or left over; compare with generate_probes.py"
    stale = [name for name in expected if on_disk[name] != expected[name]]
    assert not stale, "run `python lm_eval_tasks/generate_probes.py`"
