"""Sentences that an expert does not see: closed forms of both policies, and when an expert is not measured at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.specialisation import SpecialiseOptions, specialise
from neuronmoe_plugins.specialisation.expert_scores import measured_languages, score_expert
from neuronmoe_plugins.specialisation.mixtures import language_routing
from specialisation.extending import save_adapter, scores_in

NAN = float("nan")


def scores(values: Sequence[float], labels: Sequence[int], languages: list[int], missing: str) -> dict[int, float]:
    """Of one unit; NaN where a sentence has no token at the expert."""
    pooled = torch.tensor(values).unsqueeze(1)
    found = score_expert(pooled, ~np.isnan(np.array(values)), np.array(labels), languages, missing)
    return {language: float(own[0]) for language, own in found.items()}


def test_drop_ranks_the_sentences_that_are_there() -> None:
    # In order of values: 1, 0, 1, 0. The language's precisions are 1/1 and 2/3.
    values, labels = [3.0, NAN, 1.0, 2.0, NAN, 0.5], [1, 1, 1, 0, 0, 0]
    assert scores(values, labels, [0, 1], "drop") == pytest.approx({1: (1 + 2 / 3) / 2, 0: (1 / 2 + 2 / 4) / 2})


def test_zero_ranks_the_others_as_0() -> None:
    # 3 (1), 2 (0), then 0, 0 of either language tied at rank 4, then -1 (1) and -2 (0).
    values, labels = [3.0, NAN, -1.0, 2.0, NAN, -2.0], [1, 1, 1, 0, 0, 0]
    expected = {1: (1 + 2 / 4 + 3 / 5) / 3, 0: (1 / 2 + 2 / 4 + 3 / 6) / 3}
    assert scores(values, labels, [0, 1], "zero") == pytest.approx(expected)
    assert scores(values, labels, [0, 1], "drop") != pytest.approx(expected)


def test_a_language_without_any_token_does_not_shift_the_others() -> None:
    values, labels = [NAN, NAN, 1.0, 2.0, 0.5], [0, 0, 1, 1, 2]
    assert scores(values, labels, [1, 2], "drop") == pytest.approx({1: 1.0, 2: 1 / 3})
    assert scores(values, labels, [2], "drop") == pytest.approx({2: 1 / 3})
    assert scores(values, labels, [], "drop") == {}


def test_numbers_of_a_sentence_without_a_token_are_not_used() -> None:
    pooled = torch.tensor([[9.0], [1.0], [2.0], [-9.0]])
    seen, labels = np.array([False, True, True, False]), np.array([0, 0, 1, 1])
    assert score_expert(pooled, seen, labels, [0, 1], "drop")[1].tolist() == [1.0]
    # 2 (1), 1 (0), then both zeros.
    assert score_expert(pooled, seen, labels, [0, 1], "zero")[1].tolist() == [(1 + 2 / 4) / 2]


@pytest.mark.parametrize(
    ("seen", "missing", "minimum", "expected"),
    [
        ([2, 2, 2], "drop", 2, [0, 1, 2]),
        ([2, 2, 2], "drop", 3, []),
        ([3, 2, 1], "drop", 3, [0]),  # the others have 3 together
        ([3, 1, 1], "drop", 3, []),  # they have 2
        ([3, 1, 1], "drop", 2, [0]),
        ([3, 0, 0], "drop", 1, []),
        ([0, 3, 3], "drop", 1, [1, 2]),
        ([0, 0, 0], "drop", 1, []),
        ([3, 0, 0], "zero", 3, [0]),
        ([2, 3, 0], "zero", 3, [1]),
        ([0, 0, 0], "zero", 1, []),
    ],
)
def test_how_many_sentences_are_enough(seen: list[int], missing: str, minimum: int, expected: list[int]) -> None:
    labels = np.repeat([0, 1, 2], 4)
    rows = np.concatenate([np.arange(4) < count for count in seen])
    assert measured_languages(rows, labels, 3, missing, minimum) == expected


def test_routing_without_a_token_at_an_expert_has_no_weight_there() -> None:
    # Two experts, three sentences: tokens per expert, weights per expert, the pair, entropy, tokens.
    values = np.array([[2, 0, 1.5, 0, 0, 0.4, 2], [1, 0, 0.9, 0, 0, 0.5, 1], [3, 3, 1.8, 1.2, 3, 1.2, 3]], np.float32)
    first, second = language_routing(7, values, 2, np.array([0, 0, 1]), ["en", "el"])
    assert (first.layer, first.language, first.tokens, first.expert_tokens) == (7, "en", 3, [3, 0])
    assert first.mean_weights == [pytest.approx(0.8), None]
    assert (first.entropy, first.pairs) == (pytest.approx(0.3), {"0,1": 0})
    assert (second.tokens, second.expert_tokens, second.pairs) == (3, [3, 3], {"0,1": 3})
    assert second.mean_weights == pytest.approx([0.6, 0.4])
    assert second.entropy == pytest.approx(0.4)


@pytest.fixture
def unused_expert(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """An adapter in whose layer 2 no token chooses the first new expert."""
    from safetensors.torch import load_file, save_file

    folder = save_adapter(tiny_model_dir, tmp_path / "adapter", [1, 1, 3, 1], topk=1)
    tensors = load_file(folder / "adapter_model.safetensors")
    (name,) = (name for name in tensors if "moe_router" in name)
    tensors[name][1] = 0
    tensors[name][2] = -tensors[name][0]  # one of the two is above 0
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("missing", ["drop", "zero"])
def test_an_expert_that_nobody_chose_is_not_measured(
    options: SpecialiseOptions, unused_expert: Path, missing: str, tmp_path: Path
) -> None:
    given = replace(options, adapter=str(unused_expert), output=tmp_path / "out", missing=missing, min_sentences=1)
    found = specialise(given)
    rows = [row for row in found.experts if row.expert == 1]
    assert {(row.layer, row.high_ap, row.ratio, row.sentences, row.other_sentences) for row in rows} == {
        (2, None, None, 0, 0)
    }
    assert {row.expert_tokens[1] for row in found.routing} == {0}
    assert {row.mean_weights[1] for row in found.routing} == {None}
    assert {key[1] for key in scores_in(tmp_path / "out")} == {0, 2}


def test_min_sentences_is_counted_at_the_expert(
    options: SpecialiseOptions, adapters: dict[int, Path], tmp_path: Path, without_pictures: None
) -> None:
    given = replace(options, adapter=str(adapters[1]), output=tmp_path / "out")
    rows = {(row.layer, row.expert, row.language): row for row in specialise(replace(given, min_sentences=1)).experts}
    least = sorted({min(row.sentences, row.other_sentences) for row in rows.values()})
    minimum = least[len(least) // 2]
    found = specialise(replace(given, min_sentences=minimum))
    for row in found.experts:
        enough = min(row.sentences, row.other_sentences) >= minimum
        assert row.high_ap == (rows[row.layer, row.expert, row.language].high_ap if enough else None)
    measured = {(row.layer, row.expert, row.language) for row in found.experts if row.high_ap is not None}
    assert {(layer, expert, language) for layer, expert, _, _, language in scores_in(tmp_path / "out")} == measured
    assert 0 < len(measured) < len(rows)


def test_nothing_measured_is_still_a_result(options: SpecialiseOptions, tmp_path: Path) -> None:
    found = specialise(replace(options, output=tmp_path / "out", min_sentences=1000))
    assert {row.high_ap for row in found.experts} == {None}
    assert scores_in(tmp_path / "out") == {}
    assert (tmp_path / "out" / "specialisation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, "--threshold is 0.0"),
        ({"threshold": 1.01}, "--threshold is 1.01"),
        ({"threshold": NAN}, "--threshold is nan"),
        ({"missing": "mean"}, "unknown --missing 'mean'; there are: drop, zero"),
        ({"min_sentences": 0}, "--min-sentences is 0"),
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"dtype": "int8"}, "--dtype 'int8'"),
    ],
)
def test_options_are_checked(options: SpecialiseOptions, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(options, **change)
    with pytest.raises(UserError, match="two languages or more"):
        replace(options, corpora=options.corpora[:1])
    assert replace(options, threshold=1.0).threshold == 1.0
