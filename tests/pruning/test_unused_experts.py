"""Dropping an expert that no token chose changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neuronmoe_plugins.neurons.loading import load_model
from neuronmoe_plugins.neurons.sentences import TokenizedSentences
from neuronmoe_plugins.pruning.adapter import AdapterInFile
from neuronmoe_plugins.pruning.leaving_out import LeavingOut


def logits(model: Any, sentences: TokenizedSentences) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits for ids in sentences.token_ids[::6]]


@pytest.mark.parametrize("kind", ["copies", "ranks"])
def test_changes_nothing(
    kind: str, tiny_model_dir: Path, adapters: dict[str, Path], sentences: TokenizedSentences, tmp_path: Path
) -> None:
    """Bit for bit where its probability is nothing beside the others'; else the others' weights are rounded anew."""
    model = load_model(str(tiny_model_dir), "float32", "cpu", str(adapters[kind]))
    mixture = model.base_model.model.model.layers[0].mlp
    bias = torch.zeros(3)
    handle = mixture.moe_router["default"].register_forward_hook(lambda module, args, output: output + bias)
    for far, exact in ((-200.0, True), (-6.0, False)):
        bias[2] = far
        measured = LeavingOut(model, sentences, batch_size=9).each_alone()
        assert measured.unused == [(0, 2)]
        assert not measured.shares[0, 2].any()
        assert measured.alone[0, 2].tolist() == measured.before.tolist()
        before = logits(model, sentences)
        AdapterInFile.read(str(adapters[kind]), model).without([(0, 2)]).save(tmp_path)
        pruned = load_model(str(tiny_model_dir), "float32", "cpu", str(tmp_path))
        for one, other in zip(before, logits(pruned, sentences), strict=True):
            assert torch.equal(one, other) or not exact
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    handle.remove()


def test_one_that_no_token_chose_counts_in_top_1(
    tiny_model_dir: Path, adapters: dict[str, Path], sentences: TokenizedSentences
) -> None:
    """There a weight is the probability among all experts, also those that were not chosen."""
    model = load_model(str(tiny_model_dir), "float32", "cpu", str(adapters["top-1"]))
    bias = torch.tensor([0.0, 0.0, -6.0])
    router = model.base_model.model.model.layers[0].mlp.moe_router["default"]
    router.register_forward_hook(lambda module, args, output: output + bias)
    measured = LeavingOut(model, sentences, batch_size=18).each_alone()
    assert measured.unused == []
    assert not measured.shares[0, 2].any()
    assert (measured.alone[0, 2] != measured.before).all()
