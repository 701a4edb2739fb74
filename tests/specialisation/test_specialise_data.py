"""`neuronmoe specialise --data`: the same as naming the corpora one by one, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data_folders import save_data
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.specialisation import Specialisation, SpecialiseOptions


@pytest.fixture
def data(texts: dict[str, list[str]], tmp_path: Path) -> Path:
    return save_data(
        tmp_path / "data", {f"{language}_some": (language, "analysis", own) for language, own in texts.items()}
    )


def specialise(options: SpecialiseOptions, output: Path, *more: object) -> Any:
    names = [f"--model={options.model}", f"--adapter={options.adapter}", f"--output={output}"]
    command = ["specialise", *names, "--min-sentences=5", "--device=cpu", *map(str, more)]
    return CliRunner().invoke(app, command)


def test_measures_what_named_corpora_measure(
    options: SpecialiseOptions, result: tuple[Specialisation, Path], data: Path, tmp_path: Path, without_pictures: None
) -> None:
    done = specialise(options, tmp_path / "out", "--data", data)
    assert done.exit_code == 0, (done.output, done.exception)
    found = Specialisation.load(tmp_path / "out")
    assert (found.experts, found.routing) == (result[0].experts, result[0].routing)
    corpora = found.settings["corpora"]
    assert [corpus["sampled"] for corpus in corpora] == [24] * 3
    assert [corpus["path"] for corpus in corpora] == [str(data / f"{name}_some.jsonl") for name in ("en", "el", "tr")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "gone"], r"^gone holds no data sets \(no manifest\.json\)"),
        (
            ["--data", "gone", "--corpus", "en=a.txt"],
            "^--data gone and --corpus both say what to analyse; leave one out$",
        ),
        (["--data", "gone", "--text-field", "x"], "^--text-field has no effect with --data"),
        ([], "^pass --corpus LANGUAGE=SOURCE for two languages or more, or --data DIR: an expert is compared on them$"),
    ],
)
def test_bad_input(options: SpecialiseOptions, tmp_path: Path, more: list[str], message: str) -> None:
    done = specialise(options, tmp_path / "run" / "out", *more)
    assert isinstance(done.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise done.exception
    assert not (tmp_path / "run").exists()
