"""`neuronmoe analyze` on a tiny model: what it writes, that it repeats, and what it refuses without losing anything."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from neuronmoe_plugins import progress
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons import analysis as analysis_module
from neuronmoe_plugins.neurons.analysis import Analysis, layer_counts, read_neurons, write_analysis

ALPHABETS = {"en": "abcdefgh", "el": "αβγδεζηθ", "tr": "çğışöüab"}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Made-up sentences, each language in its own letters; one in ten is long."""
    folder = tmp_path_factory.mktemp("corpora")
    generator = random.Random(5)
    paths: dict[str, Path] = {}
    for language, letters in ALPHABETS.items():
        lengths = [60 if line % 10 == 0 else generator.randint(5, 15) for line in range(40)]
        lines = ["".join(generator.choices(letters + " ", k=length)) + "." for length in lengths]
        if language == "en":
            paths[language] = folder / "en.jsonl"
            paths[language].write_text("\n".join(json.dumps({"text": line}) for line in lines))
        else:
            paths[language] = folder / f"{language}.txt"
            paths[language].write_text("\n".join(lines))
    return paths


def arguments(model: Path | str, corpora: dict[str, Path], output: Path, *more: str) -> list[str]:
    pairs = [part for language, path in corpora.items() for part in ("--corpus", f"{language}={path}")]
    options = ["--samples", "30", "--top-n", "60", "--max-tokens", "40", "--device", "cpu"]
    return ["analyze", "--model", str(model), *pairs, "--output", str(output), *options, *more]


def run(*args: Any) -> Any:
    return CliRunner().invoke(app, arguments(*args))


@pytest.fixture(scope="module")
def analysis(tiny_model_dir: Path, corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "deep" / "analysis"
    result = run(tiny_model_dir, corpora, output)
    assert result.exit_code == 0, result.output
    assert f"Wrote {output}" in result.output
    return output


def test_writes_the_three_files_and_nothing_else(analysis: Path) -> None:
    assert sorted(path.name for path in analysis.iterdir()) == ["neurons.parquet", "neurons.png", "summary.json"]
    assert [path.name for path in analysis.parent.iterdir()] == ["analysis"]
    assert (analysis / "neurons.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_is_titled_by_what_it_shows(
    analysis: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(analysis_module, "save_layer_figure", lambda path, counts, title: titles.append(title))
    write_analysis(tmp_path, Analysis.load(analysis))
    assert titles == [f"{tiny_model_dir.name}: language-specific neurons in each decoder layer (ap)"]


def test_quiet_leaves_the_counts_alone(
    corpora: dict[str, Path], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    for name in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        monkeypatch.setenv(name, "")  # --quiet sets it, which the other tests need not see
    command = arguments(tiny_model_dir, corpora, tmp_path / "out")
    loud, quiet = (CliRunner().invoke(app, [*flags, *command]) for flags in ([], ["--quiet"]))
    assert "Collecting activations: 100 %, 0 s left" in loud.stderr
    assert os.environ["TQDM_DISABLE"] == "1", "read by tqdm when it is imported, as here it has been"
    assert all("Loading weights" in line for line in quiet.stderr.splitlines() if line)
    assert quiet.stdout.splitlines() == loud.stdout.splitlines()[:-1]
    assert len(quiet.stdout.splitlines()) == len(corpora)


def test_summary_says_how_to_repeat_it(analysis: Path, corpora: dict[str, Path], tiny_model_dir: Path) -> None:
    summary = json.loads((analysis / "summary.json").read_text())
    assert summary["languages"] == ["en", "el", "tr"]
    expected = {
        "model": str(tiny_model_dir), "model_type": "llama", "dtype": "float32", "device": "cpu", "samples": 30,
        "top_n": 60, "min_score": 0.5, "max_tokens": 40, "batch_size": 16, "seed": 42, "metric": "ap",
        "num_layers": 4,
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert summary["units_per_module"]["mlp.gate_proj"] == 48
    assert summary["units_per_module"]["self_attn.k_proj"] == 16
    assert set(summary["versions"]) >= {"python", "torch", "transformers", "neuronmoe-plugins"}
    for entry in summary["corpora"]:
        path = corpora[entry["language"]]
        assert entry["path"] == str(path)
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (entry["available"], entry["sampled"]) == (40, 30)
        assert 1 <= entry["truncated"] <= 4 if entry["language"] == "en" else entry["truncated"] >= 1


def test_counts_are_those_of_the_table(analysis: Path) -> None:
    summary = json.loads((analysis / "summary.json").read_text())
    neurons = read_neurons(analysis / "neurons.parquet")
    assert 0 < len(neurons) <= 180
    assert all(neuron.score > 0.5 for neuron in neurons)
    for language in ALPHABETS:
        own = [neuron for neuron in neurons if neuron.language == language]
        assert summary["layer_counts"][language] == layer_counts(own, [language], 4)
        assert summary["neurons_per_language"][language] == len(own)
    assert set(summary["pair_layer_counts"]) == {"en+el", "en+tr", "el+tr"}
    for pair, counts in summary["pair_layer_counts"].items():
        assert counts == layer_counts(neurons, pair.split("+"), 4)


def test_repeats_exactly_and_replaces_an_earlier_analysis(
    analysis: Path, tiny_model_dir: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    again = tmp_path / "analysis"
    shutil.copytree(analysis, again)
    (again / "neurons.parquet").write_text("stale")
    (again / "notes.txt").write_text("mine")
    assert run(tiny_model_dir, corpora, again).exit_code == 0
    assert read_neurons(again / "neurons.parquet") == read_neurons(analysis / "neurons.parquet")
    assert (again / "summary.json").read_text() == (analysis / "summary.json").read_text()
    assert (again / "notes.txt").read_text() == "mine"


def test_other_batch_size_gives_the_same_neurons(
    analysis: Path, tiny_model_dir: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    assert run(tiny_model_dir, corpora, tmp_path / "out", "--batch-size", "1").exit_code == 0
    one, many = (read_neurons(folder / "neurons.parquet") for folder in (tmp_path / "out", analysis))
    assert {(n.language, n.layer, n.module, n.unit) for n in one} == {
        (n.language, n.layer, n.module, n.unit) for n in many
    }
    np.testing.assert_allclose(sorted(n.score for n in one), sorted(n.score for n in many), atol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "41"], r"en\.jsonl has 40 sentences, 41 were asked for"),
        (["--samples", "0"], "--samples is 0"),
        (["--top-n", "0"], "--top-n is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--max-tokens", "0"], "--max-tokens is 0"),
        (["--min-score", "nan"], "--min-score is nan"),
        (["--dtype", "int8"], "--dtype 'int8'; there are: float32"),
        (["--pooling", "sum"], "unknown --pooling 'sum'; there are: mean, max"),
        (["--components", "mlp,norm"], "unknown --components 'norm'; there are: attention, mlp"),
        (["--neuron-identity", "layer"], "unknown --neuron-identity 'layer'; there are: module, unit"),
        (["--memory-limit", "-1"], r"--memory-limit is -1\.0; it must be a number of gigabytes"),
        (["--metric", "lape", "--pooling", "max"], "--pooling has no effect with --metric lape"),
        (["--metric", "lape", "--components", "mlp"], "--components has no effect with --metric lape"),
        (["--share", "0.05"], "--share has no effect with --metric ap; leave it out"),
        (["--metric", "lape", "--share", "5"], r"--share is 5\.0; a share is above 0 and at most 1"),
        (["--adapter", "no-adapter"], "--adapter no-adapter does not exist"),
        (["--metric", "magic"], "unknown metric 'magic'; there are: ap, attribution, lape"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--corpus", "hu=missing.txt"], r"hu=missing\.txt cannot be read"),
        (["--corpus", "en=other.txt"], "names en twice"),
        (["--model", "no/such-model"], "--model no/such-model does not exist"),
    ],
)
def test_bad_input_is_refused_and_nothing_lost(
    tiny_model_dir: Path, corpora: dict[str, Path], tmp_path: Path, more: list[str], message: str
) -> None:
    output = tmp_path / "analysis"
    output.mkdir()
    (output / "summary.json").write_text("{}")
    result = run(tiny_model_dir, corpora, output, *more)
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message) as caught:
        raise result.exception
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["analysis"]
    assert (output / "summary.json").read_text() == "{}"


def test_broken_model_names_module_and_sentence(tiny_model_dir: Path, corpora: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    model = AutoModelForCausalLM.from_pretrained(broken)
    model.model.layers[2].mlp.up_proj.weight.data[5] = float("nan")
    model.save_pretrained(broken)
    result = run(broken, corpora, tmp_path / "out")
    assert isinstance(result.exception, UserError)
    assert "layer 2 mlp.up_proj, unit 5: the activation for " in str(result.exception)
    assert "en.jsonl:" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_sentences_longer_than_the_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.txt" for name in ("en", "el")}
    for name, path in paths.items():
        path.write_text((name * 400 + "\n") * 30)
    result = run(tiny_model_dir, paths, tmp_path / "out", "--max-tokens", "600")
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == "a sentence has 600 tokens, the model 512 positions; pass --max-tokens 512"


def test_console_script_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = ["analyze", "--model", "m", "--corpus", "en=a.txt", "--output", str(tmp_path / "out")]
    code = "from neuronmoe_plugins.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ("neuronmoe: error: --corpus was given 1 time(s); specificity needs at least two languages\n")
    assert not (tmp_path / "out").exists()
