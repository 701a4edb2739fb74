"""LayerMoE's similarity and its rule, on examples with a closed form."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocations import allocated, run_allocate, save_analysis, save_scores
from neuronmoe_plugins.allocation.experts import ceil_shares
from neuronmoe_plugins.allocation.scores import dissimilarities, layer_similarity
from neuronmoe_plugins.errors import UserError

# Languages en, el, tr; within a language 1.
COSINES = [[1, 0.5, 0.3], [0.5, 1, 0.2], [0.3, 0.2, 1]]
SIMILARITY = ("--strategy", "layer-similarity")


def test_one_new_language_has_new_old_pairs_alone() -> None:
    assert layer_similarity(COSINES, [0], [1]) == 0.5


def test_several_new_languages_weigh_both_means_alike() -> None:
    assert layer_similarity(COSINES, [0], [1, 2]) == pytest.approx((0.2 + (0.5 + 0.3) / 2) / 2)


def test_several_old_languages() -> None:
    assert layer_similarity(COSINES, [0, 1], [2]) == pytest.approx((0.3 + 0.2) / 2)


def test_ceilings_of_shares() -> None:
    # 1/sim = 1, 2, 4 of 7 in all.
    assert ceil_shares(dissimilarities([1, 0.5, 0.25]), 7) == [1, 2, 4]
    assert ceil_shares(dissimilarities([1, 0.5, 0.25]), 8) == [2, 3, 5]
    assert ceil_shares([Fraction(0), Fraction(0)], 3) == [2, 2]


@given(st.lists(st.floats(1e-3, 1), min_size=28, max_size=28))
@settings(max_examples=60, deadline=None)
def test_the_published_budget_gives_70_to_98_experts(similarities: list[float]) -> None:
    experts = ceil_shares(dissimilarities(similarities), 70)
    assert 70 <= sum(experts) < 98
    assert min(experts) >= 1
    ranked = sorted(zip(similarities, experts, strict=True))
    assert [count for _, count in ranked] == sorted(experts, reverse=True)


@pytest.mark.parametrize("wrong", [0, -0.25, 1.5, float("nan"), float("inf")])
def test_a_similarity_that_is_none_names_its_layer(wrong: float) -> None:
    with pytest.raises(UserError, match=rf"the similarity of layer 1 is {wrong}; .* another --strategy"):
        dissimilarities([0.5, wrong])


@pytest.fixture
def analysis(tmp_path: Path) -> Path:
    """Two layers; in the second all languages are alike."""
    layers = [COSINES, [[0.8] * 3] * 3]
    places = {"en": [(0, "mlp.up_proj", 1)], "el": [], "tr": []}
    return save_analysis(tmp_path / "analysis", places, 2, mlp_input_similarity={"tokens": {}, "layers": layers})


def test_the_command_on_an_analysis(analysis: Path, tmp_path: Path) -> None:
    options = (*SIMILARITY, "--source", "en", "--target", "el", "--budget", "13")
    allocation = allocated(tmp_path, analysis, *options)
    assert allocation.layer_scores == [2, 1.25]
    assert allocation.num_experts == [8, 5]  # exactly 8 and 5 of 13
    assert (allocation.budget, allocation.max_experts, allocation.neuron_identity) == (13, None, None)
    assert (allocation.rounding, allocation.combine, allocation.scale) == (None, None, "linear")
    assert allocated(tmp_path, analysis, *options, "--max-experts", "6").num_experts == [6, 5]
    two = allocated(tmp_path, analysis, *options, "--target", "tr")
    assert two.layer_scores == pytest.approx([1 / 0.3, 1.25])


def test_the_command_on_a_file(tmp_path: Path) -> None:
    path = save_scores(tmp_path, {"layer_similarities": [1, 0.5, 0.25]})
    assert allocated(tmp_path, path, *SIMILARITY, "--budget", "8").num_experts == [2, 3, 5]
    # All experts of a layer, the base included, are in proportion: 3, 6, 12.
    assert allocated(tmp_path, path, *SIMILARITY, "--total-experts", "21").num_experts == [3, 6, 12]
    # 4/7, 8/7 and 16/7 of an expert: the first layer cannot have less than its own MLP.
    assert allocated(tmp_path, path, *SIMILARITY, "--total-experts", "4").num_experts == [1, 1, 2]


def test_no_budget_is_guessed(analysis: Path, tmp_path: Path) -> None:
    result = run_allocate(analysis, *SIMILARITY, "--source", "en", "--target", "el", "--output", tmp_path / "a.yaml")
    message = str(result.exception)
    assert isinstance(result.exception, UserError)
    assert message.startswith("--strategy layer-similarity needs one of --budget N")
    assert "--total-experts N and --max-added-parameters N" in message


@pytest.mark.parametrize("layers", [[], [COSINES], [COSINES, [[1]]], [COSINES, [[1, 2, "3"]] * 3], "abc"])
def test_a_malformed_similarity(tmp_path: Path, layers: object) -> None:
    places = {"en": [], "el": [], "tr": []}
    folder = save_analysis(tmp_path / "analysis", places, 2, mlp_input_similarity={"layers": layers})
    options = ("--source", "en", "--target", "el", "--budget", "5", "--output", tmp_path / "a.yaml")
    result = run_allocate(folder, *SIMILARITY, *options)
    assert isinstance(result.exception, UserError)
    assert "summary.json: mlp_input_similarity must have 2 layers, each 3 x 3 numbers" in str(result.exception)


def test_a_file_without_similarities(tmp_path: Path) -> None:
    path = save_scores(tmp_path, {"layer_scores": [1, 2]})
    result = run_allocate(path, *SIMILARITY, "--budget", "5", "--output", tmp_path / "a.yaml")
    assert isinstance(result.exception, UserError)
    assert 'has no list "layer_similarities"' in str(result.exception)
