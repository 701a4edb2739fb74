"""Choosing, counting and storing neurons, on scores small enough to follow by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.analysis import layer_counts, read_neurons, write_neurons
from neuronmoe_plugins.neurons.metrics import Neuron, select_neurons

SCORES = {
    (0, "self_attn.q_proj"): np.array([[0.9, 0.5, 0.7], [0.1, 0.8, 0.2]]),
    (0, "mlp.up_proj"): np.array([[0.7, 0.6], [0.8, 0.51]]),
    (1, "self_attn.q_proj"): np.array([[0.7, 0.2, 0.3], [0.4, 0.6, 0.5]]),
}


def test_best_first_above_the_threshold_ties_by_module_then_unit() -> None:
    neurons = select_neurons(SCORES, ["en", "el"], top_n=4, min_score=0.5)
    assert neurons == [
        Neuron("en", 0, "self_attn.q_proj", 0, 0.9),
        Neuron("en", 0, "self_attn.q_proj", 2, 0.7),
        Neuron("en", 0, "mlp.up_proj", 0, 0.7),
        Neuron("en", 1, "self_attn.q_proj", 0, 0.7),
        Neuron("el", 0, "self_attn.q_proj", 1, 0.8),
        Neuron("el", 0, "mlp.up_proj", 0, 0.8),
        Neuron("el", 1, "self_attn.q_proj", 1, 0.6),
        Neuron("el", 0, "mlp.up_proj", 1, 0.51),
    ]


def test_many_ties_keep_their_order() -> None:
    ties = {(layer, "mlp.up_proj"): np.full((1, 700), 0.75) for layer in range(2)}
    ties[1, "mlp.up_proj"][0, 650:] = 0.9
    neurons = select_neurons(ties, ["en"], top_n=800, min_score=0.5)
    expected = [(1, unit) for unit in range(650, 700)] + [(0, unit) for unit in range(700)]
    assert [(n.layer, n.unit) for n in neurons] == expected + [(1, unit) for unit in range(50)]


def test_threshold_is_strict_and_can_leave_a_language_empty() -> None:
    assert {n.language for n in select_neurons(SCORES, ["en", "el"], 100, min_score=0.8)} == {"en"}
    assert len(select_neurons(SCORES, ["en", "el"], 100, min_score=0.5)) == 5 + 4


def test_counts_are_of_distinct_neurons() -> None:
    neurons = select_neurons(SCORES, ["en", "el"], top_n=4, min_score=0.5)
    assert layer_counts(neurons, ["en"], 3) == [3, 1, 0]
    assert layer_counts(neurons, ["el"], 3) == [3, 1, 0]
    # (mlp.up_proj, 0) is both languages'; by unit alone, layer 0 has 0, 1, 2.
    assert layer_counts(neurons, ["en", "el"], 3) == [5, 2, 0]
    assert layer_counts(neurons, ["en", "el"], 3, identity="unit") == [3, 2, 0]


def test_parquet_keeps_everything(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    neurons = select_neurons(SCORES, ["en", "el"], top_n=4, min_score=0.5)
    write_neurons(tmp_path / "n.parquet", neurons)
    assert pq.read_schema(tmp_path / "n.parquet").names == ["language", "layer", "module", "unit", "score"]
    assert read_neurons(tmp_path / "n.parquet") == neurons
    write_neurons(tmp_path / "none.parquet", [])
    assert read_neurons(tmp_path / "none.parquet") == []


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"language": ["en"]}), tmp_path / "other.parquet")
    for name in ("text.parquet", "other.parquet", "missing.parquet"):
        with pytest.raises(UserError, match=f"{name} is not a neuron table"):
            read_neurons(tmp_path / name)
