"""How a model's neurons change when it is extended: counted by hand, and by the real command."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app
from neuronmoe_plugins.neurons.analysis import Analysis
from neuronmoe_plugins.neurons.metrics import Neuron
from neuronmoe_plugins.specialisation import SpecialiseOptions
from neuronmoe_plugins.specialisation.display import drift_table
from neuronmoe_plugins.specialisation.specialisation import LayerDrift, load_drift
from neuronmoe_plugins.specialisation.specialise import compare_neurons, measure_drift
from specialisation.extending import EXPERTS
from tuner.tiny import moe_config


def analysis(*places: tuple[str, int, str, int]) -> Analysis:
    """Of two layers, with neurons of these languages, layers, modules and units."""
    neurons = [Neuron(*place, 0.9) for place in places]
    return Analysis(neurons, {"languages": ["en", "el"], "num_layers": 2})


def test_neurons_are_compared_per_layer_and_language() -> None:
    up, query = "mlp.up_proj", "self_attn.q_proj"
    base = analysis(("en", 0, up, 1), ("en", 0, up, 2), ("en", 0, query, 1), ("el", 1, up, 7))
    # Of English in layer 0, up 2 stays; query 2, up 2 of layer 1 and up 2 of Greek are others.
    extended = analysis(("en", 0, up, 2), ("en", 0, query, 2), ("en", 1, up, 2), ("el", 0, up, 2), ("el", 1, up, 7))
    assert compare_neurons(base, extended) == [
        LayerDrift(0, "en", 3, 2, 1),
        LayerDrift(0, "el", 0, 1, 0),
        LayerDrift(1, "en", 0, 1, 0),
        LayerDrift(1, "el", 1, 1, 1),
    ]


def test_table_has_totals() -> None:
    rows = [LayerDrift(0, "en", 3, 2, 1), LayerDrift(0, "el", 0, 1, 0), LayerDrift(1, "en", 4, 1, 0)]
    table = drift_table([*rows, LayerDrift(1, "el", 1, 1, 1)])
    assert table.footer == ["total", "7", "3", "1", "1", "2", "1"]
    assert list(map(list, zip(*table.rows, strict=True))) == [
        ["0", "1"], ["3", "4"], ["2", "1"], ["1", "0"], ["0", "1"], ["1", "1"], ["0", "1"],
    ]  # fmt: skip


def test_copies_of_the_base_change_nothing(options: SpecialiseOptions, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(options.model)
    peft.get_peft_model(base, moe_config(num_experts=EXPERTS)).save_pretrained(tmp_path / "fresh")
    given = replace(options.analysis(), adapter=str(tmp_path / "fresh"), output=tmp_path / "out", top_n=60)
    rows = measure_drift(given)
    assert [(row.layer, row.language) for row in rows] == [(i, name) for i in range(4) for name in ("en", "el", "tr")]
    assert all(row.base == row.extended == row.kept for row in rows)
    assert sum(row.base for row in rows) > 100
    assert load_drift(tmp_path / "out") == rows


def test_command_compares_with_the_base(options: SpecialiseOptions, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "out"
    corpora = [f"--corpus={spec}" for spec in options.corpora[:2]]
    names = [f"--model={options.model}", f"--adapter={options.adapter}", f"--output={output}", "--device=cpu"]
    more = ["--samples=24", "--min-sentences=5", "--batch-size=5", "--compare=base"]
    done = CliRunner().invoke(app, ["specialise", *names, *corpora, *more])
    assert done.exit_code == 0, done.output
    base, extended = (Analysis.load(output / name) for name in ("base_analysis", "extended_analysis"))
    assert (base.summary["adapter"], extended.summary["adapter"]) == (None, options.adapter)
    assert {summary["batch_size"] for summary in (base.summary, extended.summary)} == {5}
    assert base.summary["corpora"] == extended.summary["corpora"]
    rows = load_drift(output)
    assert rows == compare_neurons(base, extended)
    assert json.loads((output / "drift.json").read_text()) == [asdict(row) for row in rows]
    for language in ("en", "el"):
        own = [row for row in rows if row.language == language]
        assert [row.base for row in own] == base.summary["layer_counts"][language]
        assert [row.extended for row in own] == extended.summary["layer_counts"][language]
    # The embeddings are the base's, and so is the attention of layer 0.
    assert all(0 < row.kept <= min(row.base, row.extended) for row in rows)
    assert any(row.kept < row.base for row in rows)
    assert "Language-specific neurons of the base and of the extended model" in " ".join(done.output.split())
    pictures = {"routing.png", "specialisation.png"}
    results = {"specialisation.json", "specialisation.parquet", "base_analysis", "extended_analysis", "drift.json"}
    assert {path.name for path in output.iterdir()} == pictures | results


@pytest.mark.parametrize("present", [True, False])
def test_drift_is_read_where_it_was_written(tmp_path: Path, present: bool) -> None:
    if present:
        (tmp_path / "drift.json").write_text('[{"layer": 1, "language": "el", "base": 5, "extended": 4, "kept": 3}]')
    assert load_drift(tmp_path) == ([LayerDrift(1, "el", 5, 4, 3)] if present else None)
