"""JSON files that cannot be used: one line that names the file, what is wrong, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.reading import read_json_object


def message(path: Path, **more: str) -> str:
    with pytest.raises(UserError) as caught:
        read_json_object(path, "write it again", **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_an_object_of_any_language(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('{"γλώσσα": ["el"]}'.encode())
    assert read_json_object(path, "write it again") == {"γλώσσα": ["el"]}


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert message(path) == f"{path} does not exist; write it again"
    assert message(path, missing="there is nothing") == "there is nothing"


@pytest.mark.parametrize("text", [b"", b'{"a":\n 1,,}', b"\xff", b"[" * 100_000])
def test_broken_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    found = message(path, missing="there is nothing", wrong="is none")
    assert re.fullmatch(rf"{re.escape(str(path))} is not JSON \(.+\); write it again", found)


@pytest.mark.parametrize("text", ["[1]", "null", '"a"', "3"])
def test_another_value(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert message(path) == f"{path} is not a JSON object; write it again"
    assert message(path, wrong="is no summary") == f"{path} is no summary; write it again"


def test_folder_in_its_place(tmp_path: Path) -> None:
    assert message(tmp_path, missing="there is nothing") == f"{tmp_path} cannot be read: Is a directory"
