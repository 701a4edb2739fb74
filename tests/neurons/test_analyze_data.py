"""`neuronmoe analyze --data`: the same as naming the corpora one by one, and what is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data_folders import Entry, save_data
from neuronmoe_plugins import AnalyzeOptions
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.data.manifest import analysis_corpora
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.analysis import Analysis

LETTERS = {"en": "abcdefgh ", "el": "αβγδεζηθ ", "tr": "çğışöüab "}


def sentences(language: str) -> list[str]:
    generator = random.Random(language)
    return ["".join(generator.choices(LETTERS[language], k=generator.randint(5, 25))) + "." for _ in range(20)]


DATASETS: dict[str, Entry] = {
    "el_train": ("el", "target", ["χ", "ψ"]),
    "en_analysis": ("en", "analysis", sentences("en")),
    "el_analysis": ("el", "analysis", sentences("el")),
    "tr_held_out": ("tr", "held-out", sentences("tr")),
}


def analyze(model: Path | str, output: Path, *more: object) -> Any:
    options = ["--device", "cpu", "--top-n", "60", "--output", output, *more]
    return CliRunner().invoke(app, ["analyze", "--model", str(model), *map(str, options)])


@pytest.mark.parametrize("parquet", [False, True])
def test_corpora_are_the_data_sets_of_role_analysis(tiny_model_dir: Path, tmp_path: Path, parquet: bool) -> None:
    data = save_data(tmp_path / "data", DATASETS, parquet)
    paths = {language: data / f"{language}_analysis{'' if parquet else '.jsonl'}" for language in ("en", "el")}
    corpora = [f"--corpus={language}={path}" for language, path in paths.items()]
    for name, options in {"data": ["--data", data], "corpus": corpora}.items():
        result = analyze(tiny_model_dir, tmp_path / "out" / name, "--samples", "15", *options)
        assert result.exit_code == 0, (result.output, result.exception)
    one_by_one = Analysis.load(tmp_path / "out" / "corpus")
    assert one_by_one.neurons
    assert Analysis.load(tmp_path / "out" / "data") == one_by_one
    assert [(entry["language"], entry["path"]) for entry in one_by_one.summary["corpora"]] == [
        (language, str(path)) for language, path in paths.items()
    ]


def test_the_least_that_was_drawn_of_a_language_is_taken_of_each(tmp_path: Path) -> None:
    data = save_data(tmp_path / "data", {**DATASETS, "tr_more": ("tr", "analysis", sentences("tr")[:18])})
    corpora = analysis_corpora(data)
    options = AnalyzeOptions("m", tmp_path / "out", corpora)
    assert options.sampling()["samples"] == 18
    assert replace(options, samples=3).sampling()["samples"] == 3
    # Of which there may be many in each text.
    assert replace(options, split_sentences=True).sampling()["samples"] == 500
    # As an older manifest, or one of many texts.
    for drawn in (None, 1000):
        specs = [replace(spec, drawn=drawn) for spec in corpora]
        assert replace(options, corpora=specs).sampling()["samples"] == 500


def only(*names: str, **more: Entry) -> dict[str, Entry]:
    return {name: DATASETS[name] for name in names} | more


BAD: dict[str, tuple[dict[str, Entry], list[str], str]] = {
    "corpora too": (DATASETS, ["--corpus", "en=a.txt"], r"--data .*data and --corpus both say what to analyse; leave"),
    "concepts too": (DATASETS, ["--concepts", "sense"], r"--data .*data and --concepts both say what to analyse; "),
    "a field": (DATASETS, ["--text-field", "content"], r"--text-field has no effect with --data, whose texts"),
    "none": (
        only("el_train", "tr_held_out"),
        [],
        r"manifest\.json has no data set of role analysis; add one for each language to its specification and run ",
    ),
    "one": (
        only("el_train", "el_analysis"),
        [],
        r"manifest\.json has a data set of role analysis for el alone, and specificity needs at least two languages; "
        "add one for another to its specification and run `neuronmoe data` again$",
    ),
    "two of one language": (
        {**DATASETS, "en_more": ("en", "analysis", ["x"])},
        [],
        r"manifest\.json: en_analysis and en_more are both of role analysis and language en; keep one in",
    ),
    "too few": (
        DATASETS,
        ["--samples", "21"],
        r"^--data, data set en_analysis: .*en_analysis\.jsonl has 20 sentences, 21 were asked for; .* --samples 20$",
    ),
    "empty": (
        {**DATASETS, "tr_empty": ("tr", "analysis", [])},
        [],
        r"^--data, data set tr_empty: .*tr_empty\.jsonl is empty",
    ),
    "gone": (DATASETS, ["--data", "gone"], r"^gone holds no data sets \(no manifest\.json\); run `neuronmoe data"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line(kind: str, named_model_dir: Path, tmp_path: Path) -> None:
    datasets, more, message = BAD[kind]
    data = save_data(tmp_path / "data", datasets)
    result = analyze(named_model_dir, tmp_path / "run" / "analysis", "--data", data, *more)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message) as caught:
        raise result.exception
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_file_of_another_kind_is_named_by_its_data_set(named_model_dir: Path, tmp_path: Path) -> None:
    data = save_data(tmp_path / "data", DATASETS)
    (data / "en_analysis.jsonl").rename(data / "en.csv")
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace("en_analysis.jsonl", "en.csv"))
    assert json.loads(manifest.read_text())["datasets"][1]["file_name"] == "en.csv"
    message = str(analyze(named_model_dir, tmp_path / "out", "--data", data).exception)
    assert message.startswith(f"--data, data set en_analysis: {data / 'en.csv'}: the file's name must end in ")


def test_nothing_to_analyse_names_the_option(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neuronmoe_plugins", "analyze", "--model=m", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "neuronmoe: error: nothing to analyse: pass --corpus LANGUAGE=SOURCE for each language, --data DIR or "
        "--concepts DIR\n"
    )
