"""Pooled activations as arrays, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuronmoe_plugins.neurons import pooling
from neuronmoe_plugins.neurons.activations import observe_sentences
from neuronmoe_plugins.neurons.arrays import FloatArray, MemoryStore, ModuleKey
from neuronmoe_plugins.neurons.places import Place, find_projections
from neuronmoe_plugins.neurons.pooling import Pooling, recording
from neuronmoe_plugins.neurons.sentences import PaddingSide


def pooled_activations(
    model: Any,
    sentences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    places: Mapping[ModuleKey, Place] | None = None,
    pool: Pooling = pooling.mean,
    padding_side: PaddingSide = "right",
    backward: bool = False,
) -> dict[ModuleKey, FloatArray]:
    """For each place, all projections unless given, float32 (sentences, units)."""
    places = places if places is not None else find_projections(model)[0]
    store = MemoryStore(len(sentences))
    pooled_places = {key: (place, pool) for key, place in places.items()}
    observe_sentences(model, sentences, recording(pooled_places), store, batch_size, padding_side, backward=backward)
    return {key: store.read(key).numpy() for key in places}
