"""What leaving an expert out costs is what the adapter without it costs; and what no token chose costs nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from neuronmoe_plugins.neurons.language_losses import LanguageLosses
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.pruning.adapter import AdapterInFile
from neuronmoe_plugins.pruning.leaving_out import LeavingOut
from pruning.adapters import KINDS


def loss_by_transformers(model: Any, sentences: TokenizedSentences) -> np.ndarray:
    """Nats per token of each language, text by text, by the model's own loss."""
    sums, tokens = np.zeros(len(sentences.languages)), np.zeros(len(sentences.languages))
    with torch.no_grad():
        for label, ids in zip(np.argmax(sentences.membership, axis=0), sentences.token_ids, strict=True):
            row = torch.tensor([ids])
            sums[label] += model(input_ids=row, labels=row).loss.item() * (len(ids) - 1)
            tokens[label] += len(ids) - 1
    return sums / tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_is_that_of_transformers(loaded: dict[str, Any], sentences: TokenizedSentences, side: Any) -> None:
    measured = LanguageLosses(loaded["ranks"], replace(sentences, padding_side=side), batch_size=4).measure()
    np.testing.assert_allclose(measured, loss_by_transformers(loaded["ranks"], sentences), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_what_the_adapter_without_it_costs(
    kind: str, loaded: dict[str, Any], adapters: dict[str, Path], sentences: TokenizedSentences, tmp_path: Path
) -> None:
    leaving_out = LeavingOut(loaded[kind], sentences, batch_size=9)
    measured, adapter = leaving_out.each_alone(), AdapterInFile.read(str(adapters[kind]), loaded[kind])
    places = leaving_out.places
    assert set(measured.alone) == set(places)
    assert len(places) == sum(count - 1 for count in KINDS[kind]["num_experts"])
    for dropped in ([places[0]], [places[-1]], places[1:]):
        adapter.without(dropped).save(tmp_path)
        base = AutoModelForCausalLM.from_pretrained(loaded[kind].get_base_model().name_or_path)
        pruned = LanguageLosses(peft.PeftModel.from_pretrained(base, tmp_path), sentences, batch_size=18).measure()
        np.testing.assert_allclose(leaving_out.together(dropped), pruned, rtol=1e-5)
        if len(dropped) == 1:
            np.testing.assert_allclose(measured.alone[dropped[0]], pruned, rtol=1e-5)
            assert (abs(pruned / measured.before - 1).max() > 1e-4) == (dropped[0] not in measured.unused)
    np.testing.assert_allclose(measured.before, leaving_out.together([]), rtol=1e-6)
