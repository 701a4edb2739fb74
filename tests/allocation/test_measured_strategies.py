"""The strategies that rest on what `neuronmoe analyze --measure` measured, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from allocations import allocated, run_allocate, save_analysis, save_scores
from neuronmoe_plugins.errors import UserError

GRADIENTS = {"en": [1.0, 4.0, 0.5], "el": [2.0, 2.0, 3.0], "tr": [4.0, 0.0, 1.0]}
TOTAL = ("--total-experts", "5")


def analysis_of(folder: Path, **more: Any) -> Path:
    return save_analysis(folder / "analysis", {language: [] for language in GRADIENTS}, 3, **more)


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    measured = {"blocks": 6, "tokens": 512, "languages": GRADIENTS}
    lost = {
        "blocks": 6,
        "tokens": 512,
        "languages": {"el": [0.5, -0.1, 0.25], "tr": [0.1, 0.3, -0.75], "en": [9, 9, 9]},
    }
    measured_layers = {"layer_spectra": [1.0, 4.0, 2.0], "layer_deviations": [0.5, 0.25, 0.75]}
    return analysis_of(tmp_path, layer_gradients=measured, layer_knock_outs=lost, **measured_layers)


def test_the_target_s_gradient(analysis: Path, tmp_path: Path) -> None:
    options = ("--strategy", "gradient", "--target", "el")
    allocation = allocated(tmp_path, analysis, *options)
    assert (allocation.layer_scores, allocation.num_experts) == ([2, 2, 3], [1, 1, 6])
    assert allocated(tmp_path, analysis, *options, *TOTAL, "--placement", "top").num_experts == [2, 1, 2]
    assert allocated(tmp_path, analysis, *options, "--target", "tr").layer_scores == [3, 1, 2]
    assert allocated(tmp_path, analysis, *options, "--source", "en").layer_scores == [2, 2, 3]
    assert (allocation.combine, allocation.neuron_identity) == (None, None)


def test_by_the_source_s(analysis: Path, tmp_path: Path) -> None:
    allocation = allocated(tmp_path, analysis, "--strategy", "gradient-ratio", "--source", "en", "--target", "el")
    assert allocation.layer_scores == [2, 0.5, 6]


def test_spectral_shares_the_new_experts(analysis: Path, tmp_path: Path) -> None:
    # 1 : 32 : 4 * sqrt(2) of 13 new ones are 0.3, 10.8 and 1.9.
    options = ("--strategy", "spectral", "--max-experts", "12")
    allocation = allocated(tmp_path, analysis, *options, "--total-experts", "16")
    assert allocation.layer_scores == pytest.approx([1, 32, 4 * 2**0.5])
    assert allocation.num_experts == [1, 12, 3]


def test_what_training_changed_and_gained(analysis: Path, tmp_path: Path) -> None:
    allocation = allocated(tmp_path, analysis, "--strategy", "parameter-deviation")
    assert (allocation.layer_scores, allocation.num_experts) == ([0.5, 0.25, 0.75], [3, 1, 6])
    options = ("--strategy", "knock-out", "--target", "el")
    assert allocated(tmp_path, analysis, *options).layer_scores == [0.5, 0, 0.25]
    # The mean over the targets, before what falls counts as nothing.
    assert allocated(tmp_path, analysis, *options, "--target", "tr").layer_scores == pytest.approx([0.3, 0.1, 0])


@pytest.mark.parametrize("strategy", ["gradient", "gradient-ratio", "spectral", "parameter-deviation", "knock-out"])
def test_a_file_has_the_scores(tmp_path: Path, strategy: str) -> None:
    path = save_scores(tmp_path, {"layer_scores": [5, 1, 2]})
    assert allocated(tmp_path, path, "--strategy", strategy, *TOTAL, "--placement", "top").num_experts == [3, 1, 1]


LACKS = "summary.json has no layer_{}; run `neuronmoe analyze` again with --measure {}"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gradient --target el", {}, LACKS.format("gradients", "gradient")),
    ("parameter-deviation", {}, LACKS.format("deviations", "parameter-deviation")),
    ("knock-out --target el", {}, LACKS.format("knock_outs", "knock-out")),
    ("spectral --total-experts 5", {"layer_spectra": None}, LACKS.format("spectra", "spectral")),
    ("spectral", {"layer_spectra": [1, 2, 3]}, "--strategy spectral needs --total-experts N or --max-added-parameters"),
    ("spectral --total-experts 5", {"layer_spectra": [1, 2]}, "layer_spectra must be 3 numbers; run `neuronmoe"),
    ("gradient --target el", {"layer_gradients": 7}, "layer_gradients of el must be 3 numbers; run `neuronmoe"),
    ("gradient", {}, "is an analysis: pass at least one --target LANGUAGE"),
    ("gradient-ratio --target el", {}, "is an analysis: pass --source LANGUAGE and at least one --target LANGUAGE"),
    (
        "gradient-ratio --source tr --target el",
        {"layer_gradients": {"languages": GRADIENTS}},
        "summary.json: the gradient of tr in layer 1 is 0; use another --strategy",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "summary", "message"), REFUSED)
def test_refused_in_one_line(tmp_path: Path, options: str, summary: dict[str, Any], message: str) -> None:
    output = tmp_path / "a.yaml"
    result = run_allocate(analysis_of(tmp_path, **summary), "--strategy", *options.split(), "--output", output)
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)
    assert not output.exists()
