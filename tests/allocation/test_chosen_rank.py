"""`--max-added-parameters N --choose rank`: the highest rank that fits, counted as the tuner counts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from allocations import allocated, run_allocate, save_scores
from neuronmoe_plugins.allocation.experts import BlockShapes
from neuronmoe_plugins.allocation.totals import fit_rank
from neuronmoe_plugins.recipes import Recipe

# Llama's MLP of 16 x 24: 1152 parameters, and 120 for each rank.
SIZES = {"hidden_size": 16, "mlp_parameters": [1152] * 3, "mlp_widths": [120] * 3}
RANK = ("--choose", "rank", "--max-added-parameters")


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return save_scores(tmp_path, {"layer_scores": [9, 1, 5], **SIZES})


def added_by_the_tuner(num_experts: list[int], rank: int) -> int:
    import peft
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    base = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=2))
    options = {"peft_type": "MOE", "task_type": "CAUSAL_LM", "num_experts": num_experts, "expert_rank": rank}
    model = peft.get_peft_model(base, peft.get_peft_config(options))
    return sum(weight.numel() for name, weight in model.named_parameters() if ".moe_" in name)


@pytest.mark.parametrize(
    ("options", "num_experts"),
    [
        (["--max-experts", "3"], [3, 1, 2]),
        (["--total-experts", "5"], [2, 1, 2]),
        (["--strategy", "uniform", "--max-experts", "2"], [2, 2, 2]),
    ],
)
def test_the_highest_rank_that_fits(options: list[str], num_experts: list[int], scores: Path, tmp_path: Path) -> None:
    most = added_by_the_tuner(num_experts, 7)
    for parameters, rank in ((most, 7), (most - 1, 6)):
        allocation = allocated(tmp_path, scores, *options, *RANK, parameters)
        assert (allocation.num_experts, allocation.expert_rank) == (num_experts, rank)
        assert (allocation.choose, allocation.max_added_parameters, allocation.note) == ("rank", parameters, None)
    assert allocation.added_parameters == added_by_the_tuner(num_experts, 6)
    recipe = Recipe("m", num_experts, ["el"], ["en"], ".", "out", [], expert_rank=allocation.expert_rank)
    assert "\nmoe_expert_rank: 6\n" in recipe.stage1()


def test_no_expert_is_larger_than_a_copy(scores: Path, tmp_path: Path) -> None:
    result = run_allocate(scores, "--max-experts", 2, *RANK, 10**9, "--output", tmp_path / "a.yaml")
    assert "of rank 9;" in result.stdout
    assert "Note: above rank 9 the new experts would be larger than copies of the MLPs.\n" in result.stdout
    assert fit_rank([2, 2], BlockShapes(16, [1152, 600], [120, 120]), 10**9)[0] == 5
    assert fit_rank([2, 1], BlockShapes(16, [1152, 600], [120, 120]), 10**9)[0] == 9, "a dense layer does not count"


def test_experts_are_what_is_chosen_otherwise(scores: Path, tmp_path: Path) -> None:
    options = ("--expert-rank", 4, "--max-added-parameters", 2_200)
    said, unsaid = (allocated(tmp_path, scores, *options, *more) for more in (("--choose", "experts"), ()))
    assert said.num_experts == unsaid.num_experts == [4, 1, 2]
    assert (said.choose, unsaid.choose, said.expert_rank) == ("experts", None, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            (*RANK, 100),
            r"--max-added-parameters 100 is too small: these 10 experts, of which 7 new, add 984 at rank 1$",
        ),
        (
            (*RANK, 9_999, "--expert-rank", 4),
            "--expert-rank has no effect with --choose rank, which finds it; leave it",
        ),
        (
            ("--choose", "rank"),
            "--choose has no effect without --max-added-parameters N, which it spends; leave it out",
        ),
        ((*RANK, 9_999, "--max-experts", 1), "--choose rank: no layer has a new expert whose rank could be chosen; al"),
        (
            (*RANK, 9_999, "--strategy", "shape", "--shape", "even"),
            "--choose rank leaves how many experts there are to other options: --strategy shape needs --total-experts",
        ),
        (
            (*RANK, 9_999, "--strategy", "uniform", "--min-experts", 2),
            "--min-experts has no effect with --strategy uniform unless --total-experts is given; leave it out",
        ),
    ],
)
def test_refused(options: tuple[Any, ...], message: str, scores: Path, tmp_path: Path) -> None:
    result = run_allocate(scores, *options, "--output", tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=message):
        raise result.exception or AssertionError(result.output)
    assert not (tmp_path / "a.yaml").exists()


def test_the_widths_are_needed(tmp_path: Path) -> None:
    lacking = {name: value for name, value in SIZES.items() if name != "mlp_widths"}
    path = save_scores(tmp_path, json.dumps({"layer_scores": [9, 1, 5], **lacking}))
    result = run_allocate(path, *RANK, 9_999, "--output", tmp_path / "a.yaml")
    assert "hidden_size, mlp_parameters and mlp_widths: " in str(result.exception)
