"""A folder in which studies run, on a model that has little more than its files' names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from made_studies import HOSTS, Studies

from neuronmoe_plugins.study import page


@pytest.fixture
def with_pages() -> bool:
    """Asked for by tests that look at a study's page, which takes long to draw."""
    return True


@pytest.fixture
def studies(
    request: pytest.FixtureRequest, tmp_path: Path, named_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Studies:
    """Texts in two languages, and the stand-ins, which are found beside what seems to be this Python."""
    (tmp_path / "model").symlink_to(named_model_dir)
    (tmp_path / "data").mkdir()
    info = {}
    for name, language in (("en_replay", "en"), ("el_train", "el")):
        info[name] = {"file_name": f"{name}.jsonl", "columns": {"prompt": "text"}, "language": language}
        (tmp_path / "data" / f"{name}.jsonl").write_text('{"text": "a"}\n')
        (tmp_path / f"{language}.jsonl").write_text(json.dumps({"text": language}) + "\n")
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in HOSTS.items():
        (programs / name).write_text(f"#!{sys.executable} -IS\n{code}")
        (programs / name).chmod(0o755)
    if "with_pages" not in request.fixturenames:
        monkeypatch.setattr(page, "write_study_page", lambda trainings, rows, path: [path])
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.chdir(tmp_path)
    return Studies(tmp_path)
