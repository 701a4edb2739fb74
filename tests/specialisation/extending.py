"""Extended models, and what their experts and routers show, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from neuronmoe_plugins.neurons.activations import observe_sentences
from neuronmoe_plugins.neurons.arrays import FloatArray, MemoryStore, ModuleKey
from neuronmoe_plugins.neurons.loading import load_model
from neuronmoe_plugins.neurons.places import find_mixtures
from neuronmoe_plugins.neurons.sentences import PaddingSide
from neuronmoe_plugins.specialisation import Specialisation
from neuronmoe_plugins.specialisation.mixtures import observing, places
from tuner.tiny import moe_config, randomised

EXPERTS = [3, 1, 4, 2]


def save_adapter(model: Path, folder: Path, num_experts: Sequence[int] | int, **options: Any) -> Path:
    """Save a mixture as training would leave it: every expert and router row is another."""
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(model)
    mixture = peft.get_peft_model(base, moe_config(num_experts=num_experts, **options))
    randomised(mixture).save_pretrained(folder)
    return folder


def load_extended(model: Path | str, adapter: Path | str, dtype: str = "float32") -> Any:
    """The model with its adapter, as the command loads it."""
    return load_model(str(model), dtype, "cpu", str(adapter))


def observed(
    model: Any, token_ids: Sequence[Sequence[int]], batch_size: int = 16, padding_side: PaddingSide = "right"
) -> dict[ModuleKey, FloatArray]:
    """What the command keeps of every sentence: (sentences, units) for each expert's projections and the routing."""
    mixtures, store = find_mixtures(model), MemoryStore(len(token_ids))
    observe_sentences(model, token_ids, observing(mixtures), store, batch_size, padding_side)
    return {key: store.read(key).numpy() for key in places(mixtures)}


def tokens_of(model: Path | str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text."""
    from transformers import AutoTokenizer

    return [list(ids) for ids in AutoTokenizer.from_pretrained(model)(list(texts))["input_ids"]]


def scores_in(folder: Path) -> dict[tuple[int, int, str, int, str], float]:
    """(layer, expert, projection, unit, language) -> average precision, from the Parquet file."""
    rows = pq.read_table(folder / "specialisation.parquet").to_pylist()
    found = {tuple(row[name] for name in ("layer", "expert", "projection", "unit", "language")): row for row in rows}
    assert len(found) == len(rows)
    return {key: row["average_precision"] for key, row in found.items()}


def counts(specialisation: Specialisation) -> dict[tuple[int, int, str], tuple[int | None, int, int]]:
    """(layer, expert, language) -> high-AP neurons, sentences, other sentences."""
    return {
        (row.layer, row.expert, row.language): (row.high_ap, row.sentences, row.other_sentences)
        for row in specialisation.experts
    }
