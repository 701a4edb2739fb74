"""Attributions against finite differences of the loss, and what ranks by them against scikit-learn."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.activations import loss_of, padded
from neuronmoe_plugins.neurons.analysis import Analysis
from neuronmoe_plugins.neurons.places import Place, find_projections
from neurons.collecting import pooled_activations
from neurons.test_layer_measures import tiny
from specialisation.extending import save_adapter

SENTENCES = [[1, 5, 7, 9, 2], [3, 4], [8, 6, 1, 2, 2, 9, 4]]
LINES = {"en": [f"a{'b' * number} cde" for number in range(8)], "el": [f"β{'γ' * number} δεζ" for number in range(8)]}


def scaled(unit: int, factor: float, output: Tensor) -> Tensor:
    """With one unit's values scaled."""
    return output * torch.ones(output.shape[-1], dtype=output.dtype).index_fill(0, torch.tensor(unit), factor)


def loss_with(model: Any, sentence: Sequence[int], module: nn.Module, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The summed loss of one sentence, with a module's output changed."""
    handle = module.register_forward_hook(lambda module, args, output: change(output))
    ids = torch.tensor([list(sentence)])
    logits = model(input_ids=ids).logits[0]
    handle.remove()
    return F.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum")


def own_attributions(model: Any, sentence: Sequence[int], module: nn.Module) -> np.ndarray:
    """By autograd, of one sentence: (units,)."""
    seen: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        seen.append(output)
        return output

    (gradient,) = torch.autograd.grad(loss_with(model, sentence, module, keep), seen)
    return np.asarray((-seen[0] * gradient).mean(dim=1)[0].detach())


def attributed(model: Any) -> dict[Any, Place]:
    return {key: replace(place, attributed=True) for key, place in find_projections(model)[0].items()}


def test_they_are_what_the_loss_rises_by_without_the_neuron() -> None:
    model = tiny("gpt-neox").double()  # in which nothing is computed in float32, as Llama's norms are
    places, step = attributed(model), 1e-4

    found = pooled_activations(model, SENTENCES, batch_size=2, places=places, backward=True)

    for number, (key, place) in enumerate(places.items()):
        unit = number % place.units
        for row, sentence in enumerate(SENTENCES):
            with torch.no_grad():
                less, more = (
                    float(loss_with(model, sentence, place.module, partial(scaled, unit, 1 + by)))
                    for by in (-step, step)
                )
            expected = (less - more) / (2 * step) / len(sentence)
            assert found[key][row, unit] == pytest.approx(expected, rel=1e-4, abs=1e-7), (key, row)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_and_padding_do_not_change_them(side: Any) -> None:
    model = tiny("llama")
    modules = {key: place.module for key, place in find_projections(model)[0].items()}
    alone = {
        key: np.stack([own_attributions(model, sentence, module) for sentence in SENTENCES])
        for key, module in modules.items()
    }

    found = pooled_activations(
        model, SENTENCES, batch_size=2, places=attributed(model), padding_side=side, backward=True
    )

    for key, expected in alone.items():
        np.testing.assert_allclose(
            found[key], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max(), err_msg=str(key)
        )


def test_tokens_that_do_not_count_are_not_predicted() -> None:
    batch = padded([[1, 2, 3, 4, 5], [6, 7]], "left", torch.device("cpu"))
    logits = torch.zeros(2, 5, 8)

    assert loss_of(logits, batch, batch["attention_mask"]).item() == pytest.approx((4 + 1) * math.log(8))
    spans = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
    assert loss_of(logits, batch, spans).item() == pytest.approx(2 * math.log(8))
    assert loss_of(logits, batch, spans * 0).item() == 0


def analyzed(model: Path, folder: Path, *options: str) -> Result:
    """Run `neuronmoe analyze --metric attribution` on `LINES`."""
    corpora = []
    for language, lines in LINES.items():
        (folder / f"{language}.txt").write_text("\n".join(lines))
        corpora += ["--corpus", f"{language}={folder / language}.txt"]
    told = ["--model", str(model), *corpora, "--metric", "attribution", "--device", "cpu", "--samples", "8", *options]
    return CliRunner().invoke(app, ["analyze", *told, "--output", str(folder / "out")])


def test_neurons_are_ranked_by_them(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = analyzed(tiny_model_dir, tmp_path, "--batch-size", "1")

    assert result.exit_code == 0, result.exception
    analysis = Analysis.load(tmp_path / "out")
    assert (analysis.summary["observes"], analysis.summary["min_score"]) == ("attributions", 0.5)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    module = find_projections(model)[0][1, "mlp.up_proj"].module
    sentences = [tokenizer(text)["input_ids"] for lines in LINES.values() for text in lines]
    values = np.stack([own_attributions(model, sentence, module) for sentence in sentences])
    scored = [neuron for neuron in analysis.neurons if (neuron.layer, neuron.module) == (1, "mlp.up_proj")]
    assert {neuron.language for neuron in scored} == set(LINES)
    for neuron in scored:
        labels = np.repeat([neuron.language == language for language in LINES], 8)
        assert neuron.score == pytest.approx(average_precision_score(labels, values[:, neuron.unit]), abs=1e-9)


def test_a_mixture_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model_dir, tmp_path / "adapter", 2)

    result = analyzed(tiny_model_dir, tmp_path, "--adapter", str(adapter))

    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith("--metric attribution asks what the loss owes to each neuron")
    assert not (tmp_path / "out").exists()


def test_what_rests_on_the_loss_needs_the_head(tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    for options in ((), ("--metric", "ap", "--measure", "gradient", "--blocks", "1")):
        result = analyzed(copy, tmp_path, *options)
        assert str(result.exception) == f"--model {copy} lacks 1 weights of its model, among them lm_head.weight"
