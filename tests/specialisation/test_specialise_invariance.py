"""What must not change the result: batches, padding, the order of corpora, where activations are kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuronmoe_plugins.neurons import activations, arrays
from neuronmoe_plugins.neurons.places import find_mixtures
from neuronmoe_plugins.specialisation import Specialisation, SpecialiseOptions, specialise
from specialisation.extending import counts, load_extended, observed, scores_in, tokens_of

pytestmark = pytest.mark.usefixtures("without_pictures")


def routing(specialisation: Specialisation) -> dict[tuple[int, str], Any]:
    """Layer and language -> what the router did, in whole numbers."""
    return {
        (row.layer, row.language): (row.tokens, list(row.expert_tokens), dict(row.pairs))
        for row in specialisation.routing
    }


@pytest.fixture(scope="module", params=[1, 2], ids=["top-1", "top-2"])
def topk(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def plain(options: SpecialiseOptions, adapters: dict[int, Path], topk: int, tmp_path_factory: Any) -> Specialisation:
    return specialise(replace(options, adapter=str(adapters[topk]), output=tmp_path_factory.mktemp("plain") / "out"))


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_activations(
    options: SpecialiseOptions, adapters: dict[int, Path], texts: dict[str, list[str]], topk: int, batch_size: int,
    padding_side: Any,
) -> None:  # fmt: skip
    model = load_extended(options.model, adapters[topk])
    token_ids = tokens_of(options.model, [text for lines in texts.values() for text in lines[:8]])
    alone = observed(model, token_ids, batch_size=1)
    together = observed(model, token_ids, batch_size, padding_side)
    for key, values in alone.items():
        np.testing.assert_allclose(together[key], values, rtol=1e-5, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in find_mixtures(model).values())


@pytest.mark.parametrize(("batch_size", "padding_side"), [(1, "right"), (3, "left"), (16, "left")])
def test_counts(
    options: SpecialiseOptions, adapters: dict[int, Path], plain: Specialisation, topk: int, batch_size: int,
    padding_side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from transformers import AutoTokenizer

    shutil.copytree(options.model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side=padding_side)
    tokenizer.save_pretrained(tmp_path / "model")
    sides: list[str] = []
    pad = activations.padded
    monkeypatch.setattr(
        activations, "padded", lambda ids, side, device: (sides.append(side), pad(ids, side, device))[1]
    )
    model, adapter, output = str(tmp_path / "model"), str(adapters[topk]), tmp_path / "out"
    other = specialise(replace(options, model=model, adapter=adapter, output=output, batch_size=batch_size))
    assert counts(other) == counts(plain)
    assert routing(other) == routing(plain)
    assert other.settings["batch_size"] == batch_size
    assert set(sides) == {padding_side}


def test_order_of_the_corpora(
    options: SpecialiseOptions, adapters: dict[int, Path], plain: Specialisation, topk: int, tmp_path: Path
) -> None:
    specs = tuple(reversed(options.corpora))
    other = specialise(replace(options, adapter=str(adapters[topk]), output=tmp_path / "out", corpora=specs))
    assert other.languages == ["tr", "el", "en"]
    assert [row.language for row in other.experts[:3]] == ["tr", "el", "en"]
    assert counts(other) == counts(plain)
    assert routing(other) == routing(plain)


def test_top_1_differs_from_top_2(plain: Specialisation, topk: int, result: tuple[Specialisation, Path]) -> None:
    """Otherwise the tests above could not fail for one of them."""
    assert (routing(plain) == routing(result[0])) == (topk == 2)


def test_activations_can_stay_in_memory(
    options: SpecialiseOptions, result: tuple[Specialisation, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(arrays.FileStore, "add")
    in_memory = specialise(replace(options, output=tmp_path / "out", memory_limit=1.0))
    assert in_memory == result[0]
    assert scores_in(tmp_path / "out") == scores_in(result[1])
