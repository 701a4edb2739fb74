"""`--expert-targets`: experts in attention are counted as the tuner counts them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest

from allocations import allocated, run_allocate, save_analysis, save_scores
from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.blocks import TARGETS
from neuronmoe_plugins.integrations.llamafactory.run_log import as_text, layer_table
from neuronmoe_plugins.neurons.places import expert_sizes
from tuner.tiny import moe_config, tiny_model

SCORES = {"layer_scores": [9, 1, 5], "hidden_size": 16}
# Of the tiny Llama: 16 x 24 thrice; q and o 16 x 16, k and v 8 x 16.
SIZES = {"mlp_parameters": [1152] * 3, "mlp_widths": [120] * 3}
OF_ATTENTION = {"attention_widths": [112] * 3, "attention_ranks": [8] * 3}
EVEN = ("--strategy", "uniform", "--max-experts", 3)


def scores_of(folder: Path, **sizes: Any) -> Path:
    return save_scores(folder, SCORES | sizes)


def added_by_the_tuner(allocation: Allocation, family: str) -> tuple[int, str]:
    """What a model gets, and what the table that a run begins with says of it."""
    options = {"num_experts": allocation.num_experts, "expert_rank": allocation.expert_rank}
    model = peft.get_peft_model(tiny_model(family), moe_config(targets=allocation.expert_targets, **options))
    (total,) = (line for line in as_text(layer_table(model)).splitlines() if "all " in line)
    added = sum(weight.numel() for name, weight in model.named_parameters() if ".moe_" in name)
    return added, total.split("|")[-3].strip()


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_sizes_are_those_of_the_tuner(family: str, targets: str, tmp_path: Path) -> None:
    scores = scores_of(tmp_path, **expert_sizes(tiny_model(family)))  # type: ignore[arg-type]
    options = ("--expert-rank", 4, "--expert-targets", targets)
    allocation = allocated(tmp_path, scores, *options, "--max-experts", 3)
    assert (allocation.num_experts, allocation.expert_rank, allocation.expert_targets) == ([3, 1, 2], 4, targets)
    added, in_table = added_by_the_tuner(allocation, family)
    assert (allocation.added_parameters, f"{allocation.added_parameters:,}") == (added, in_table)
    for most, total in ((added, 6), (added - 1, 5)):
        assert allocated(tmp_path, scores, *options, "--max-added-parameters", most).total_experts == total


@pytest.mark.parametrize(
    ("targets", "most", "rank", "note"),
    [
        ("both", 3 * (2 * 4 * 232 + 2 * 3 * 16), 4, None),
        ("both", 3 * (2 * 4 * 232 + 2 * 3 * 16) - 1, 3, None),
        ("attention", 3 * (2 * 4 * 112 + 3 * 16), 4, None),
        ("both", 10**9, 8, "above rank 8 the new experts would have a higher rank than attention's linear layers"),
        ("attention", 10**9, 8, "above rank 8 the new experts would have a higher rank than attention's linear layers"),
        ("mlp", 10**9, 9, "above rank 9 the new experts would be larger than copies of the MLPs"),
    ],
)
def test_the_highest_rank_that_fits(targets: str, most: int, rank: int, note: str | None, tmp_path: Path) -> None:
    scores = scores_of(tmp_path, **SIZES, **OF_ATTENTION)
    options = ("--choose", "rank", "--max-added-parameters", most, "--expert-targets", targets)
    allocation = allocated(tmp_path, scores, *EVEN, *options)
    assert (allocation.num_experts, allocation.expert_rank, allocation.note) == ([3, 3, 3], rank, note)


def test_equal_counts_keep_to_the_parameters(tmp_path: Path) -> None:
    scores = scores_of(tmp_path, **SIZES, **OF_ATTENTION)
    most = 3 * (4 * 232 + 2 * 2 * 16)
    options = ("--equal-experts", "--expert-rank", 4, "--max-added-parameters", most)
    assert sum(allocated(tmp_path, scores, *options, "--expert-targets", "both").num_experts) == 6
    assert sum(allocated(tmp_path, scores, *options).num_experts) > 6


def test_the_command_says_where_experts_are(tmp_path: Path) -> None:
    scores = scores_of(tmp_path, **SIZES, **OF_ATTENTION)
    for targets, where in (("both", " in MLPs and attention"), ("attention", " in attention"), ("mlp", "")):
        options = ("--expert-rank", 2, "--expert-targets", targets, "--output", tmp_path / "a.yaml")
        assert f" 6 new of rank 2{where}; " in run_allocate(scores, *EVEN, *options).stdout


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({}, (), "--expert-targets needs --expert-rank R or --choose rank: full copies are of MLPs alone$"),
        (
            {},
            ("--expert-rank", 4),
            "--expert-targets both needs hidden_size, mlp_parameters, mlp_widths, attention_widths and "
            "attention_ranks: .* has no attention_widths; run `neuronmoe analyze` again$",
        ),
        (
            dict.fromkeys(OF_ATTENTION),
            ("--expert-rank", 4),
            "has no attention_widths; the model's attention is of no known kind$",
        ),
        (
            OF_ATTENTION | {"attention_widths": [112, 112, 0.5]},
            ("--expert-rank", 4),
            "attention_widths must be a list of whole numbers, the inputs and outputs of each layer's attention$",
        ),
        (
            OF_ATTENTION | {"attention_ranks": [9, 8, 9]},
            ("--expert-rank", 9),
            "--expert-rank is 9, but the attention of layer 1 takes at most 8; give a lower one, or --expert-targets",
        ),
        (
            OF_ATTENTION | {"mlp_ranks": [16, 8, 16], "attention_ranks": [16] * 3},
            ("--expert-rank", 9),
            "--expert-rank is 9, but the MLP of layer 1 takes at most 8; give a lower one, or leave it out for full",
        ),
        (OF_ATTENTION | {"attention_ranks": [8]}, ("--expert-rank", 4), "attention_ranks has 1 entries for 3 layers$"),
    ],
)
def test_refused(sizes: dict[str, Any], options: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    languages = {"en": [(0, "mlp.up_proj", 1)], "el": [(1, "mlp.up_proj", 2)]}
    analysis = save_analysis(tmp_path / "analysis", languages, 3, hidden_size=16, **SIZES, **sizes)
    output = tmp_path / "a.yaml"
    named = ("--source", "en", "--target", "el", "--expert-targets", "both", "--output", output)
    result = run_allocate(analysis, *named, *options)
    assert re.search(message, str(result.exception)), result.output
    assert not output.exists()
