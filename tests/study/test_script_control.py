"""The program that compares a language's neurons with those of the same texts in Latin letters."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from allocations import save_analysis
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_texts


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`studies/script_control.py`, with a stand-in for the package that it asks its users for."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "studies")
    monkeypatch.setitem(sys.modules, "anyascii", SimpleNamespace(anyascii=lambda text: text.replace("α", "a")))
    return importlib.import_module("script_control")


def test_texts_in_latin_letters(program: ModuleType, tmp_path: Path) -> None:
    texts, output = tmp_path / "el.jsonl", tmp_path / "el-Latn.jsonl"
    write_texts(texts, ["αα", "b\u2028α"])

    program.latin(texts, output)

    assert output.read_text() == '{"text": "aa"}\n{"text": "b\u2028a"}\n'
    with pytest.raises(UserError, match=r"el-Latn\.jsonl is there already; delete it, or name another file"):
        program.latin(texts, output)
    texts.write_text("[1]\n")
    with pytest.raises(UserError, match=r"el\.jsonl is not a file of JSON lines with a field text"):
        program.latin(texts, tmp_path / "other.jsonl")


def test_survivors_are_counted(program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    up = "mlp.up_proj"
    save_analysis(tmp_path / "el", {"el": [(0, up, 1), (0, up, 2), (1, up, 1)]}, 3)
    save_analysis(tmp_path / "latin", {"el": [(0, up, 2), (2, up, 1), (2, up, 2)]}, 3)

    program.survivors(tmp_path / "el", tmp_path / "latin", "el")

    counts = f"{tmp_path / 'el'}: 2 1", f"{tmp_path / 'latin'}: 1 0 2"
    assert capsys.readouterr().out.splitlines() == ["1 of 3 neurons of el are in both", *counts]
    with pytest.raises(UserError, match="el has no tr; it has el"):
        program.survivors(tmp_path / "el", tmp_path / "latin", "tr")
