"""`neuronmoe allocate` from an analysis folder and from a scores file."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from allocations import TABLES, allocated, run_allocate, save_scores
from neuronmoe_plugins.errors import UserError

SHAPES = {"hidden_size": 10, "mlp_parameters": [100] * 5}
LANGUAGES = ("--source", "en", "--target", "el")


def change_summary(analysis: Path, *removed: str, **changes: object) -> None:
    path = analysis / "summary.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in removed}))


def test_pair_counts_distinct_neurons(analysis: Path, tmp_path: Path) -> None:
    allocation = allocated(tmp_path, analysis, *LANGUAGES)
    assert allocation.layer_scores == [6, 3, 0, 0, 1]
    assert allocation.num_experts == [6, 3, 1, 1, 1]
    assert (allocation.source, allocation.targets) == ("en", ["el"])
    assert (allocation.strategy, allocation.scores_from) == ("neuron-diversity", str(analysis))
    recorded = (allocation.rounding, allocation.scale, allocation.combine, allocation.neuron_identity)
    assert recorded == ("floor", "linear", "union", "module")
    assert allocation.scores_sha256 == hashlib.sha256((analysis / "summary.json").read_bytes()).hexdigest()


def test_several_targets_are_one_union(analysis: Path, tmp_path: Path) -> None:
    options = ("--target", "el", "--target", "tr", "--max-experts", "8", "--rounding", "round")
    allocation = allocated(tmp_path, analysis, "--source", "en", *options)
    assert allocation.layer_scores == [7, 3, 1, 0, 1]
    assert allocation.num_experts == [8, 4, 2, 1, 2]
    assert (allocation.targets, allocation.rounding) == (["el", "tr"], "round")


def test_identity_is_that_of_the_analysis(analysis: Path, tmp_path: Path) -> None:
    change_summary(analysis, neuron_identity="unit")
    allocation = allocated(tmp_path, analysis, "--source", "en", "--target", "tr")
    assert allocation.layer_scores[0] == 6  # 7 with modules: tr's unit 0 is in another one than en's
    assert allocation.neuron_identity == "unit"


def test_mean_adds_the_source_to_the_mean_target(analysis: Path, tmp_path: Path) -> None:
    targets = ("--target", "el", "--target", "tr", "--target", "hu")
    allocation = allocated(tmp_path, analysis, "--source", "en", *targets, "--combine", "mean")
    assert allocation.layer_scores == pytest.approx([6 + 2 / 3, 1, 1 / 3, 0, 1], rel=1e-15)
    assert allocation.num_experts == [6, 1, 1, 1, 1]
    assert allocation.combine == "mean"


def test_language_without_neurons_is_known_and_all_equal_is_explained(analysis: Path, tmp_path: Path) -> None:
    result = run_allocate(analysis, "--source", "hu", "--strategy", "source-only", "--output", tmp_path / "a.yaml")
    note = "all 5 layers score 0, so each gets the minimum of 1"
    assert f"Note: {note}." in result.output
    allocation = allocated(tmp_path, analysis, "--source", "hu", "--strategy", "source-only")
    assert (allocation.num_experts, allocation.note) == ([1] * 5, note)


def test_sizes_are_printed(analysis: Path, tmp_path: Path) -> None:
    output = run_allocate(analysis, *LANGUAGES, "--output", tmp_path / "a.yaml").output
    assert (
        f"12 experts: 5 original MLPs + 7 new; added parameters unknown: {analysis} lacks hidden_size or mlp_parameters"
        in output
    )
    change_summary(analysis, **SHAPES)
    output = run_allocate(analysis, *LANGUAGES, "--output", tmp_path / "a.yaml").output
    assert "12 experts: 5 original MLPs + 7 new; 790 added parameters" in output  # 7 copies, 6 + 3 router rows
    rows = [line.replace("│", " ").split() for line in output.splitlines()]
    assert ["1", "3", "3", "230"] in rows
    assert ["total", "10", "12", "790"] in rows
    assert output.endswith("12 experts in 5 layers\n")


def test_scores_file_gives_the_paper_list_and_records_languages(tmp_path: Path) -> None:
    path = save_scores(tmp_path, {"layer_scores": TABLES["table5_unique_neurons_en_el"]})
    allocation = allocated(tmp_path, path, *LANGUAGES)
    assert allocation.num_experts == TABLES["table2_llama32_3b_greek"]["neuronmoe"]
    assert (allocation.source, allocation.targets) == ("en", ["el"])
    assert (allocation.combine, allocation.neuron_identity, allocation.added_parameters) == (None, None, None)
    assert allocated(tmp_path, path).source is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "en", "--target", "xx"], "no language 'xx'; it has: en, el, tr, hu"),
        (["--source", "xx", "--target", "el"], "no language 'xx'; it has: en, el, tr, hu"),
        (["--target", "xx", "--strategy", "uniform"], "no language 'xx'; it has: en, el, tr, hu"),
        (["--target", "el"], "is an analysis: pass --source LANGUAGE and at least one --target"),
        (["--source", "en"], "is an analysis: pass --source LANGUAGE and at least one --target"),
        (["--target", "el", "--strategy", "source-only"], "is an analysis: pass --source LANGUAGE"),
        (["--source", "en", "--target", "en"], "name a language twice: en, en"),
        ([*LANGUAGES, "--strategy", "luck"], "unknown strategy 'luck'; there are: gradient, gradient-ratio, knock-out"),
        ([*LANGUAGES, "--min-experts", "7"], "--min-experts 7 is more than --max-experts 6"),
        ([*LANGUAGES, "--min-experts", "0"], "--min-experts is 0"),
        (
            [*LANGUAGES, "--strategy", "layer-similarity", "--budget", "9"],
            "has no mlp_input_similarity; run `neuronmoe",
        ),
        ([*LANGUAGES, "--max-added-parameters", "9"], "summary.json has no hidden_size; run `neuronmoe analyze` ag"),
    ],
)
def test_bad_options_keep_the_earlier_file(analysis: Path, tmp_path: Path, options: list[str], message: str) -> None:
    output = tmp_path / "allocation.yaml"
    output.write_text("mine")
    result = run_allocate(analysis, *options, "--output", output)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert output.read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neuron_identity": "module_and_unit"}, "neuron_identity is 'module_and_unit', not 'module' or 'unit'; run"),
        ({"hidden_size": 0, "mlp_parameters": [1] * 5}, "hidden_size is 0; it must be a whole number"),
        ({"hidden_size": 10, "mlp_parameters": [1] * 4}, "mlp_parameters has 4 entries for 5 layers"),
        ({"hidden_size": 10, "mlp_parameters": [1, 1, 1, 1, 0.5]}, "mlp_parameters must be a list of whole numbers"),
    ],
)
def test_wrong_summary(analysis: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    change_summary(analysis, **changes)
    result = run_allocate(analysis, *LANGUAGES, "--output", tmp_path / "a.yaml")
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_model_whose_mlps_are_of_no_known_kind(analysis: Path, tmp_path: Path) -> None:
    change_summary(analysis, hidden_size=10, mlp_parameters=None, mlp_input_similarity=None)
    assert allocated(tmp_path, analysis, *LANGUAGES).added_parameters is None
    options = {"--max-added-parameters 9": "mlp_parameters", "--strategy layer-similarity": "mlp_input_similarity"}
    for option, key in options.items():
        result = run_allocate(analysis, *LANGUAGES, *option.split(), "--output", tmp_path / "a.yaml")
        assert f"summary.json has no {key}; the model's MLPs are of no known kind" in str(result.exception)


def test_old_analysis_without_identity(analysis: Path, tmp_path: Path) -> None:
    change_summary(analysis, "neuron_identity")
    result = run_allocate(analysis, *LANGUAGES, "--output", tmp_path / "a.yaml")
    assert f"{analysis / 'summary.json'} has no neuron_identity; run `neuronmoe analyze` again" in str(result.exception)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layer_scores": []}, "layer_scores must be a list with one number per decoder layer"),
        ('{"layer_scores": [1, NaN]}', "score of layer 1 is nan"),
        ({"layer_scores": [1, -2]}, "score of layer 1 is -2.0"),
        ({"layer_scores": [1, "2"]}, "entry of layer_scores for layer 1 is '2', not a number"),
        ({"layer_scores": [True, 2]}, "entry of layer_scores for layer 0 is True, not a number"),
        ({"layer_scores": [10**400]}, "entry of layer_scores for layer 0 is 1000"),
        ({"layer_scores": [1, 2], "layer_similarities": [1]}, "has 2 layers, layer_similarities 1"),
        ({"layer_similarities": [0.5, 0.5]}, 'scores.json has no list "layer_scores"; a scores file is'),
        ({"scores": [1, 2]}, 'scores.json has no list "layer_scores"'),
        ([1, 2], 'scores.json has no list "layer_scores"'),
        ("{", "scores.json is not JSON"),
        ("[" * 100_000, "scores.json is not JSON"),
    ],
)
def test_bad_scores_file(tmp_path: Path, content: object, message: str) -> None:
    result = run_allocate(save_scores(tmp_path, content), "--output", tmp_path / "allocation.yaml")
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "allocation.yaml").exists()


def test_folder_without_analysis_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run_allocate(tmp_path / "empty", *LANGUAGES, "--output", tmp_path / "a.yaml")
    assert "holds no analysis (no summary.json)" in str(result.exception)
    result = run_allocate(tmp_path / "none.json", "--output", tmp_path / "a.yaml")
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


def test_replaces_only_what_it_wrote(analysis: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.yaml"
    notes.write_text("mine: 1\n")
    result = run_allocate(analysis, *LANGUAGES, "--output", notes)
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(f"--output {notes} is there and no allocation (")
    assert notes.read_text() == "mine: 1\n"
    allocated(tmp_path, analysis, *LANGUAGES)
    assert allocated(tmp_path, analysis, *LANGUAGES, "--max-experts", "8").num_experts[0] == 8


@pytest.mark.parametrize(
    ("output", "figure", "message"),
    [
        ("allocation.yaml", "allocation.svg", "the figure is a PNG; give it a name that ends in .png"),
        ("allocation.png", "allocation.png", "allocation.png is --output, too; give it another name"),
    ],
)
def test_a_figure_is_named_as_what_it_is(
    analysis: Path, tmp_path: Path, output: str, figure: str, message: str
) -> None:
    result = run_allocate(analysis, *LANGUAGES, "--output", tmp_path / output, "--figure", tmp_path / figure)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not list(tmp_path.glob("allocation.*"))
