"""The whole analysis on a fixed model and fixed sentences against recorded activations, scores, sets and counts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuronmoe_plugins.neurons.analysis import NeuronIdentity, layer_counts
from neuronmoe_plugins.neurons.arrays import FloatArray, IntArray, ModuleKey
from neuronmoe_plugins.neurons.average_precision import average_precision
from neuronmoe_plugins.neurons.metrics import select_neurons
from neurons.collecting import pooled_activations

DATA = Path(__file__).parents[1] / "data"
# Two sentences nearer than this to each other may swap places between two float32 forward passes.
NEAR_TIE = 2e-7


@cache
def record() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / "neurons_a.json").read_text())
    return content


@cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(DATA / "neurons_a.npz", allow_pickle=False) as archive:
        return dict(archive)


@cache
def pooled(dtype: torch.dtype) -> dict[ModuleKey, FloatArray]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DATA / "moe_a" / "base", dtype=dtype)
    return pooled_activations(model, record()["sentences"], batch_size=16)


def labels() -> IntArray:
    return np.array([record()["languages"].index(label) for label in record()["labels"]])


def full_name(key: ModuleKey) -> str:
    return f"model.layers.{key[0]}.{key[1]}"


def expected_scores(key: ModuleKey) -> np.ndarray:
    return np.stack([arrays()[f"ap|{language}|{full_name(key)}"] for language in record()["languages"]])


def test_pooled_activations() -> None:
    assert len(pooled(torch.float32)) == 28
    for key, values in pooled(torch.float32).items():
        np.testing.assert_allclose(values, arrays()[f"pooled|{full_name(key)}"], rtol=0, atol=2e-6)


def test_scores_of_the_recorded_activations() -> None:
    for key in pooled(torch.float32):
        scores = average_precision(arrays()[f"pooled|{full_name(key)}"], labels(), 3)
        np.testing.assert_allclose(scores, expected_scores(key), rtol=0, atol=1e-9)


def test_scores_end_to_end_in_float64() -> None:
    for key, values in pooled(torch.float64).items():
        np.testing.assert_allclose(average_precision(values, labels(), 3), expected_scores(key), rtol=0, atol=1e-6)


def test_scores_end_to_end_in_float32() -> None:
    units = near_ties = 0
    for key, values in pooled(torch.float32).items():
        gaps = np.diff(np.sort(arrays()[f"pooled|{full_name(key)}"], axis=0), axis=0).min(axis=0)
        clear = gaps > NEAR_TIE
        units, near_ties = units + clear.size, near_ties + int((~clear).sum())
        scores = average_precision(values, labels(), 3)
        np.testing.assert_allclose(scores[:, clear], expected_scores(key)[:, clear], rtol=0, atol=1e-6)
        np.testing.assert_allclose(scores, expected_scores(key), rtol=0, atol=1e-3)
    assert (units, near_ties) == (896, 4)


def test_top_neurons() -> None:
    scores = {key: average_precision(values, labels(), 3) for key, values in pooled(torch.float32).items()}
    neurons = select_neurons(scores, record()["languages"], record()["top_n"], min_score=0.0)
    for language, expected in record()["top_neurons"].items():
        found = {(full_name((n.layer, n.module)), n.unit) for n in neurons if n.language == language}
        assert found == {(module, unit) for _, module, unit in expected}


@pytest.mark.parametrize(
    ("identity", "key"),
    [("module", "unique_per_layer_module_and_unit"), ("unit", "unique_per_layer_unit_only")],
)
def test_counts_per_layer(identity: NeuronIdentity, key: str) -> None:
    scores = {key: average_precision(values, labels(), 3) for key, values in pooled(torch.float32).items()}
    neurons = select_neurons(scores, record()["languages"], record()["top_n"], min_score=0.0)
    for pair, expected in record()[key].items():
        assert layer_counts(neurons, pair.split("+"), 4, identity) == expected
