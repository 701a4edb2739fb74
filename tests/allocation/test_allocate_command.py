"""`neuronmoe allocate` from an analysis folder and from a scores file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.table import Neuron, write_neurons

TABLES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "paper_tables.json").read_text())


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    """Five layers; en and el share (0, up, 0), and tr has the same unit in another module."""
    folder = tmp_path / "analysis"
    folder.mkdir()
    places = {
        "en": [(0, "mlp.up_proj", unit) for unit in range(6)] + [(4, "mlp.up_proj", 0)],
        "el": [(0, "mlp.up_proj", 0), (1, "mlp.up_proj", 7), (1, "mlp.up_proj", 8), (1, "mlp.up_proj", 9)],
        "tr": [(0, "mlp.down_proj", 0), (2, "mlp.up_proj", 1)],
    }
    neurons = [Neuron(language, *place, 0.9) for language, own in places.items() for place in own]
    write_neurons(folder / "neurons.parquet", neurons)
    (folder / "summary.json").write_text(json.dumps({"languages": ["en", "el", "tr", "hu"], "num_layers": 5}))
    return folder


def scores_file(folder: Path, content: object) -> Path:
    path = folder / "scores.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["allocate", *map(str, arguments)])


def test_pair_counts_distinct_neurons(analysis: Path, tmp_path: Path) -> None:
    output = tmp_path / "allocation.yaml"
    result = run(analysis, "--source", "en", "--target", "el", "--output", output)
    assert result.exit_code == 0, result.output
    allocation = Allocation.load(output)
    assert allocation.layer_scores == [6, 3, 0, 0, 1]
    assert allocation.num_experts == [6, 3, 1, 1, 1]
    assert (allocation.source, allocation.targets) == ("en", ["el"])
    assert (allocation.strategy, allocation.scores_from) == ("neuron-diversity", str(analysis))
    assert "12 experts in 5 layers" in result.output


def test_the_figure_shows_the_experts_of_each_layer(analysis: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    options = ["--source", "en", "--target", "el", "--output", tmp_path / "allocation.yaml"]
    assert run(analysis, *options, "--figure", tmp_path / "figures" / "allocation.png").exit_code == 0
    pixels = imread(tmp_path / "figures" / "allocation.png")
    red, green, blue = (pixels[..., channel] for channel in range(3))
    is_new = (blue > 0.6) & (red < 0.3) & (green > 0.4)  # tab:blue; layers 0 and 1 have 5 and 2 new experts
    heights = is_new.sum(axis=0)
    bars = sorted({int(height) for height in heights[heights > 50]})
    assert bars[-1] / bars[0] == pytest.approx(5 / 2, rel=0.1)


def test_several_targets_are_one_union(analysis: Path, tmp_path: Path) -> None:
    output = tmp_path / "allocation.yaml"
    options = ("--target", "el", "--target", "tr", "--max-experts", "8", "--rounding", "round")
    assert run(analysis, "--source", "en", *options, "--output", output).exit_code == 0
    allocation = Allocation.load(output)
    assert allocation.layer_scores == [7, 3, 1, 0, 1]
    assert allocation.num_experts == [8, 4, 2, 1, 2]
    assert allocation.targets == ["el", "tr"]


def test_language_without_neurons_is_known_and_all_equal_is_explained(analysis: Path, tmp_path: Path) -> None:
    write_neurons(analysis / "neurons.parquet", [])
    output = tmp_path / "allocation.yaml"
    result = run(analysis, "--source", "en", "--target", "hu", "--output", output)
    assert result.exit_code == 0
    note = "all 5 layers score 0, so each gets the minimum of 1"
    assert f"Note: {note}." in result.output
    assert Allocation.load(output).note == note
    assert Allocation.load(output).num_experts == [1] * 5


def test_scores_file_gives_the_paper_list_and_records_languages(tmp_path: Path) -> None:
    path = scores_file(tmp_path, {"layer_scores": TABLES["table5_unique_neurons_en_el"]})
    result = run(path, "--source", "en", "--target", "el", "--output", tmp_path / "a.yaml")
    assert result.exit_code == 0, result.output
    rows = [line.replace("│", " ").replace("┃", " ").split() for line in result.output.splitlines()]
    assert ["0", "342", "6"] in rows
    assert ["21", "232", "4"] in rows
    assert ["total", "1933", "49"] in rows
    allocation = Allocation.load(tmp_path / "a.yaml")
    assert allocation.num_experts == TABLES["table2_llama32_3b_greek"]["neuronmoe"]
    assert allocation.total_experts == 49
    assert (allocation.source, allocation.targets) == ("en", ["el"])
    assert run(path, "--output", tmp_path / "b.yaml").exit_code == 0
    assert Allocation.load(tmp_path / "b.yaml").source is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "en", "--target", "xx"], "no language 'xx'; it has: en, el, tr, hu"),
        (["--source", "xx", "--target", "el"], "no language 'xx'; it has: en, el, tr, hu"),
        (["--target", "el"], "is an analysis: pass --source LANGUAGE and at least one --target"),
        (["--source", "en"], "is an analysis: pass --source LANGUAGE and at least one --target"),
        (["--source", "en", "--target", "en"], "name a language twice: en, en"),
        (["--source", "en", "--target", "el", "--strategy", "luck"], "unknown strategy 'luck'; there are: neuron-div"),
        (["--source", "en", "--target", "el", "--min-experts", "7"], "--min-experts 7 is more than --max-experts 6"),
        (["--source", "en", "--target", "el", "--min-experts", "0"], "--min-experts is 0"),
    ],
)
def test_bad_options_keep_the_earlier_file(analysis: Path, tmp_path: Path, options: list[str], message: str) -> None:
    output = tmp_path / "allocation.yaml"
    output.write_text("mine")
    result = run(analysis, *options, "--output", output)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layer_scores": []}, "list of layer scores is empty"),
        ('{"layer_scores": [1, NaN]}', "score of layer 1 is nan"),
        ({"layer_scores": [1, -2]}, "score of layer 1 is -2.0"),
        ({"layer_scores": [1, "2"]}, "score of layer 1 is '2', not a number"),
        ({"layer_scores": [True, 2]}, "score of layer 0 is True, not a number"),
        ({"scores": [1, 2]}, 'scores.json has no list "layer_scores"'),
        ([1, 2], 'scores.json has no list "layer_scores"'),
        ("{", "scores.json is not JSON"),
    ],
)
def test_bad_scores_file(tmp_path: Path, content: object, message: str) -> None:
    result = run(scores_file(tmp_path, content), "--output", tmp_path / "allocation.yaml")
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "allocation.yaml").exists()


def test_folder_without_analysis_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty", "--source", "en", "--target", "el", "--output", tmp_path / "a.yaml")
    assert "holds no analysis (no summary.json)" in str(result.exception)
    result = run(tmp_path / "none.json", "--output", tmp_path / "a.yaml")
    assert "none.json does not exist" in str(result.exception)


def test_console_script_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    code = "from neuronmoe_plugins.cli import main; main()"
    command = ["allocate", "none.json", "--output", str(tmp_path / "a.yaml")]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    expected = "none.json does not exist; name the folder of an analysis or a scores file"
    assert done.stderr == f"neuronmoe: error: {expected}\n"
