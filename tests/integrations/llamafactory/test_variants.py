"""Other settings of the host's training loop, run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import train

from neuronmoe_plugins.errors import UserError

EXPERTS, ROUTER = (f"base_model.model.model.layers.0.mlp.moe_{name}" for name in ("up_proj", "router.weight"))


@pytest.fixture
def mixed_args(moe_args: dict[str, Any]) -> dict[str, Any]:
    """Every block of 64 tokens holds 32 old ones."""
    data = {"dataset": "en_even,el_even", "mix_strategy": "interleave_under", "generate_lang_mask": True}
    return moe_args | data | {"lpr_loss_coef": 0.1}


def test_bf16_keeps_trainable_parameters_in_float32(
    mixed_args: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(half)
    steps = train(mixed_args, tmp_path / "bf16", model_name_or_path=str(half), bf16=True, aux_loss_coef=0.01)
    exact = train(mixed_args, tmp_path / "fp32", aux_loss_coef=0.01)
    weights = load_file(tmp_path / "bf16" / "adapter_model.safetensors")
    assert weights[EXPERTS].dtype == weights[ROUTER].dtype == torch.float32
    for step, reference in zip(steps, exact, strict=True):
        assert step["loss"] == pytest.approx(reference["loss"], rel=0.02)
        assert step["lpr_loss"] == pytest.approx(reference["lpr_loss"], rel=0.05)


def test_accumulating_micro_batches_is_one_large_batch(mixed_args: dict[str, Any], tmp_path: Path) -> None:
    # Two steps: in later ones, the choice of experts turns differences of the last digit into larger ones.
    large = train(mixed_args, tmp_path / "large", max_steps=2)
    micro = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    small = train(mixed_args, tmp_path / "small", max_steps=2, **micro)
    for one, four in zip(large, small, strict=True):
        # Not grad_norm: transformers 5.5 divides the gradients once more, which AdamW does not feel.
        for name in ("loss", "lm_loss", "lpr_loss"):
            assert four[name] == pytest.approx(one[name], rel=1e-5), name


def test_without_checkpointing_the_run_is_the_same(mixed_args: dict[str, Any], tmp_path: Path) -> None:
    with_it = train(mixed_args, tmp_path / "with")
    without = train(mixed_args, tmp_path / "without", disable_gradient_checkpointing=True)
    for one, other in zip(with_it, without, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_unpacked_texts_and_conversations(mixed_args: dict[str, Any], tmp_path: Path) -> None:
    unpacked = train(mixed_args, tmp_path / "pt", dataset="en_odd,el_odd", packing=False)
    sft = {"stage": "sft", "template": "empty", "dataset": "en_chat,el_chat", "per_device_train_batch_size": 10}
    chat = train(mixed_args, tmp_path / "sft", **sft)
    assert all(step["lpr_loss"] > 0 for step in unpacked + chat)


def test_language_prior_loss_draws_old_tokens_to_expert_0(mixed_args: dict[str, Any], tmp_path: Path) -> None:
    train(mixed_args, tmp_path / "stage1", lpr_loss_coef=None)
    stage2 = {"adapter_name_or_path": str(tmp_path / "stage1"), "train_only_router": True, "lpr_loss_coef": 5.0}
    steps = train(mixed_args, tmp_path / "stage2", max_steps=40, learning_rate=0.02, **stage2)
    for layer in (0, 3):
        assert steps[-1][f"expert0_share_old/layer_{layer}"] > max(0.9, steps[0][f"expert0_share_old/layer_{layer}"])
    before, after = (load_file(tmp_path / stage / "adapter_model.safetensors") for stage in ("stage1", "stage2"))
    assert before[EXPERTS].equal(after[EXPERTS])
    assert not before[ROUTER].equal(after[ROUTER])


def test_experts_of_low_rank_in_both_stages_and_an_extension(mixed_args: dict[str, Any], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("stage1", "stage2", "extension")]
    low_rank = {"moe_expert_rank": "4,2,2,8", "moe_lora_alpha": 16, "moe_targets": "both", "lpr_loss_coef": None}
    (*_, last) = train(mixed_args, folders[0], **low_rank, aux_loss_coef=0.01)
    later = {"adapter_name_or_path": str(folders[0])}
    train(mixed_args, folders[1], **later, ada_moe_num_experts_list=None, train_only_router=True)
    more = {"ada_moe_num_experts_list": "4,1,1,2", "old_moe_num_experts_list": "3,1,1,2"}
    train(mixed_args, folders[2], **later, **more)
    first, routers, extended = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    up = f"{EXPERTS}_lora_B"
    assert first[up].shape == (2, 48, 4)
    assert first[up].any(dim=(1, 2)).all(), "both experts were trained"
    of_values = EXPERTS.replace("mlp.moe_up_proj", "self_attn.moe_v_proj") + "_lora_B"
    assert first[of_values].any(dim=(1, 2)).all()
    assert 0 <= last["expert0_share/layer_3_attention"] <= 1
    layers = json.loads((folders[0] / "routing.json").read_text())["layers"]
    assert list(layers) == ["0 attention", "0", "3 attention", "3"]
    assert [name for name in first if not routers[name].equal(first[name])] == [
        name for name in first if "moe_router" in name
    ]
    assert extended[up][:2].equal(first[up])
    assert extended[up].shape == (3, 48, 4)
    with pytest.raises(UserError, match=r"moe_expert_rank is 16, but the adapter in .* has expert_rank .4, 2, 2, 8.: "):
        train(mixed_args, tmp_path / "other", **later, ada_moe_num_experts_list=None, moe_expert_rank=16)
    with pytest.raises(
        UserError, match=r"^moe_targets is mlp, but the adapter in .* has targets both: remove the key$"
    ):
        train(mixed_args, tmp_path / "other", **later, ada_moe_num_experts_list=None, moe_targets="mlp")
