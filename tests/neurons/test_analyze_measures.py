"""`analyze --measure`: what a layer is worth beside its neurons, from the command to the allocation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from allocations import allocated
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.layer_scores import deviation, mean_exponent, mixtures_of_all_layers
from specialisation.extending import load_extended, save_adapter


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("texts")
    texts = {"en": "some words of this and that number ", "el": "λίγα λόγια για τον αριθμό "}
    for language, text in texts.items():
        (folder / f"{language}.txt").write_text("\n".join(f"{text}{line}" for line in range(30)))
    return [f"--corpus={language}={folder / language}.txt" for language in texts]


def analyze(model: Path, corpora: list[str], output: Path, *more: str) -> Any:
    options = ["--samples", "30", "--device", "cpu", "--output", str(output)]
    return CliRunner().invoke(app, ["analyze", "--model", str(model), *corpora, *options, *more])


def test_an_analysis_with_measures_is_allocated_without_the_model(
    tiny_model_dir: Path, corpora: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "analysis"
    result = analyze(tiny_model_dir, corpora, output, "--measure", "spectral,gradient", "--blocks", "2")
    assert result.exit_code == 0, (result.output, result.exception)
    targets, total = ("--target", "el"), ("--total-experts", "6")
    pulled = allocated(tmp_path, output, "--strategy", "gradient", *targets, *total, "--placement", "top")
    ratio = allocated(tmp_path, output, "--strategy", "gradient-ratio", "--source", "en", *targets, *total)
    english = allocated(tmp_path, output, "--strategy", "gradient", "--target", "en", *total)
    assert [a * b for a, b in zip(ratio.layer_scores, english.layer_scores, strict=True)] == pytest.approx(
        pulled.layer_scores
    )
    assert min(pulled.layer_scores) > 0
    spectral = allocated(tmp_path, output, "--strategy", "spectral", *total)
    from transformers import AutoModelForCausalLM

    layers = AutoModelForCausalLM.from_pretrained(tiny_model_dir).model.layers
    alphas = [mean_exponent(dict(layer.mlp.named_parameters())) for layer in layers]
    assert spectral.layer_scores == pytest.approx([alpha**2.5 for alpha in alphas])


def test_an_analysis_of_experts_that_a_short_training_left(
    tiny_model_dir: Path, corpora: list[str], tmp_path: Path
) -> None:
    adapter, output = save_adapter(tiny_model_dir, tmp_path / "adapter", 2), tmp_path / "analysis"
    measure = ("--measure", "parameter-deviation,knock-out", "--blocks", "1", "--adapter")
    result = analyze(tiny_model_dir, corpora, output, *measure, str(adapter))
    assert result.exit_code == 0, (result.output, result.exception)
    model = load_extended(tiny_model_dir, adapter)
    mixtures = mixtures_of_all_layers(model)
    total = ("--total-experts", "6")
    went = allocated(tmp_path, output, "--strategy", "parameter-deviation", *total)
    assert went.layer_scores == pytest.approx([deviation(mixture) for mixture in mixtures.values()])
    worth = allocated(tmp_path, output, "--strategy", "knock-out", "--target", "el", *total)
    assert len(worth.layer_scores) == 4
    assert max(worth.layer_scores) > 0
    some = save_adapter(tiny_model_dir, tmp_path / "some", [2, 1, 2, 2])
    result = analyze(tiny_model_dir, corpora, tmp_path / "out", *measure, str(some))
    assert str(result.exception).startswith(
        "--adapter has no new expert in layer 1; train one in every layer, as `neuron"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blocks", "2"], "--blocks has no effect without --measure gradient or knock-out; leave it out"),
        (["--measure", "spectral", "--blocks", "2"], "--blocks has no effect without --measure gra"),
        (["--measure", "gradient", "--blocks", "0"], "--blocks is 0; it must be at least 1"),
        (
            ["--measure", "gradient,hessian"],
            "unknown --measure 'hessian'; there are: gradient, spectral, parameter-dev",
        ),
        (["--measure", "spectral,knock-out"], "--measure knock-out is of trained experts; pass --adapter"),
        (
            ["--measure", "gradient", "--adapter", "x"],
            "--measure gradient is of a model's own MLPs; leave out --adapter",
        ),
        (
            ["--measure", "gradient"],
            "en: 6 blocks of 512 tokens are to be measured, but the 30 sampled sentences have 1130 in all; pass",
        ),
    ],
)
def test_refused_in_one_line(
    tiny_model_dir: Path, corpora: list[str], tmp_path: Path, options: list[str], message: str
) -> None:
    result = analyze(tiny_model_dir, corpora, tmp_path / "out", *options)
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())
