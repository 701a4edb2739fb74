"""Parameters of arms, counted without weights, against PEFT on a model with weights; and arms that match others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_studies import SPEC, Studies
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

from neuronmoe_plugins.models import new_tokens
from neuronmoe_plugins.study.parameters import count_parameters
from neuronmoe_plugins.tuner import MoeConfig

MLP = "gate_proj,up_proj,down_proj"
EXPERTS: dict[str, Any] = {"method": "experts", "num_experts": 2, "expert_rank": 64, "learning_rates": 0.001}


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (
            {"finetuning_type": "lora", "lora_rank": 3, "lora_target": "all"},
            LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
        ),
        (
            {"finetuning_type": "lora", "lora_rank": 5, "lora_target": "up_proj, self_attn.q_proj,embed_tokens"},
            LoraConfig(r=5, target_modules=["up_proj", "self_attn.q_proj", "embed_tokens"], task_type="CAUSAL_LM"),
        ),
        (
            {"finetuning_type": "moe", "ada_moe_num_experts_list": [3, 1, 2, 2]},
            MoeConfig(num_experts=[3, 1, 2, 2], task_type="CAUSAL_LM"),
        ),
        (
            {"finetuning_type": "moe", "ada_moe_num_experts_list": [3, 1, 2, 2], "moe_expert_rank": 4},
            MoeConfig(num_experts=[3, 1, 2, 2], expert_rank=4, task_type="CAUSAL_LM"),
        ),
        (
            {
                **{"finetuning_type": "moe", "ada_moe_num_experts_list": [3, 1, 2, 2], "moe_expert_rank": 4},
                "moe_targets": "both",
            },
            MoeConfig(num_experts=[3, 1, 2, 2], expert_rank=4, targets="both", task_type="CAUSAL_LM"),
        ),
    ],
)
def test_an_adapter_has_as_many_as_peft_trains(
    arguments: dict[str, Any], config: PeftConfig, tiny_model_dir: Path
) -> None:
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config)

    trained = sum(own.numel() for own in adapted.parameters() if own.requires_grad)
    assert count_parameters(str(tiny_model_dir), arguments) == trained


def test_rows_of_new_tokens_count_where_they_are_trained(tiny_model_dir: Path, tmp_path: Path) -> None:
    told = json.loads((tiny_model_dir / "config.json").read_text())
    told["neuronmoe_vocabulary"] = new_tokens(50, ["a", "b", "c"], ["embed_tokens", "lm_head"])
    (tmp_path / "config.json").write_text(json.dumps(told))
    experts = {"finetuning_type": "moe", "ada_moe_num_experts_list": [3, 1, 2, 2]}

    without = count_parameters(str(tiny_model_dir), experts)
    assert count_parameters(str(tmp_path), experts) == without
    assert (
        count_parameters(str(tmp_path), experts | {"train_new_tokens": True}) == without + 2 * 3 * told["hidden_size"]
    )


def test_weights_themselves_are_counted_once(tiny_model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    freeze = {"finetuning_type": "freeze", "freeze_trainable_layers": -3, "freeze_trainable_modules": "mlp,self_attn"}

    assert count_parameters(str(tiny_model_dir), {"finetuning_type": "full"}) == model.num_parameters()
    assert count_parameters(str(tiny_model_dir), freeze) == sum(
        module.numel()
        for layer in model.model.layers[:3]
        for part in (layer.mlp, layer.self_attn)
        for module in part.parameters()
    )


def test_what_is_not_counted_is_not_guessed(tiny_model_dir: Path) -> None:
    lora = {"finetuning_type": "lora", "lora_rank": 3, "lora_target": "all"}

    assert count_parameters("nobody/nothing", lora) is None
    assert count_parameters(str(tiny_model_dir), lora | {"use_dora": True}) is None
    assert count_parameters(str(tiny_model_dir), lora | {"additional_target": "embed_tokens"}) is None


def test_arms_match_the_parameters_of_others(studies: Studies) -> None:
    lora = {"method": "lora", "match": ["even", "wide"], "target": MLP}
    wide = EXPERTS | {"num_experts": 3}
    experts = {"method": "experts", "num_experts": 3, "match": "low"}
    low = {"method": "lora", "rank": 128, "target": MLP}
    both = EXPERTS | {"expert_rank": 3, "expert_targets": "both"}
    arms = {"lora": lora, "even": EXPERTS, "wide": wide, "low": low, "three": experts, "both": both}
    result = studies.run("--dry-run", arms=arms)

    assert result.exit_code == 0, result.exception
    lines = [line.replace("│", " ").split() for line in result.output.splitlines()]
    found = {line[0]: [word for word in line if word.replace(",", "").isdigit()][:2] for line in lines if "el" in line}
    # Llama's default sizes, 4 layers: 4 * 3 * (4,096 + 11,008) of a rank, and 4 * 4,096 of a row of all routers.
    assert found["even"] == ["64", f"{64 * 181_248 + 2 * 16_384:,}"]
    assert found["lora-even"] == ["64", f"{64 * 181_248:,}"]
    assert found["lora-wide"] == ["128", f"{128 * 181_248:,}"]
    assert found["three"] == ["64", f"{2 * 64 * 181_248 + 3 * 16_384:,}"]
    # In each layer four more matrices, 4,096 x 4,096, and a router for them.
    assert found["both"] == ["3", f"{3 * (181_248 + 4 * 4 * 8192) + 2 * 2 * 16_384:,}"]


def test_a_rank_that_a_layer_cannot_have_is_refused(studies: Studies) -> None:
    result = studies.run("--dry-run", arms={"high": EXPERTS | {"expert_rank": 4097}})

    where = f"{studies.folder / 'spec.yaml'}: arms: high: high"
    refused = "--expert-rank is 4097, but the MLP of layer 0 takes at most 4096; give a lower one, or leave it out"
    assert str(result.exception) == f"{where}: {refused} for full copies"


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            {"match": "even", "target": "up_proj"},
            "even has 757,760 parameters in el, which no rank gives within 2 %: rank 13 comes nearest with 785,408, "
            "3.6 % more",
        ),
        ({"match": "even", "rank": 4}, "rank says the rank; leave one out"),
        ({"match": "evens"}, "no arm in el with parameters of its own is called evens; there are: even"),
        ({"match": "a"}, "no arm in el with parameters of its own is called a; there are: even"),
        (
            {"match": "even", "training": {"use_dora": True}},
            "how many parameters even or a has is not known here; give rank",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused(arm: dict[str, Any], message: str, studies: Studies) -> None:
    result = studies.run(arms={"a": {"method": "lora", **arm}, "even": SPEC["arms"]["even"]})

    assert result.exit_code == 1
    assert str(result.exception) == f"{studies.folder / 'spec.yaml'}: arms: a: match: {message}"
    assert not Path("out").exists()
