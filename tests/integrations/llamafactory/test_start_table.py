"""The tables that a run begins with, and how a launch is read for the estimate of its memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers import LlamaConfig, LlamaForCausalLM

from neuronmoe_plugins.integrations.llamafactory.memory import OptimizerStates, Setup, estimate_memory, setup_of
from neuronmoe_plugins.integrations.llamafactory.run_log import as_text, layer_table, memory_table

FLAGS = ("shares_weights", "shares_gradients", "shares_optimizer", "has_buckets", "offloads_optimizer")


def extended_model(**options: Any) -> torch.nn.Module:
    """Layers of 4, 1 and 2 experts; the first kept 3 of its own from an earlier language."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=61, num_hidden_layers=3, **sizes)).to(torch.bfloat16)
    config = {"peft_type": "MOE", "num_experts": [4, 1, 2], "old_num_experts": [3, 1, 1], "topk": 3}
    return peft.get_peft_model(base, peft.get_peft_config(config | options))


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_each_layer_has_a_row_and_all_have_one() -> None:
    expert, row = 3 * 16 * 24, 16
    assert cells(as_text(layer_table(extended_model(modules_to_save=["lm_head"]))))[2:] == [
        ["0", "4", "3", f"{3 * expert + 4 * row:,}", f"{expert + row:,}"],
        ["2", "2", "2", f"{expert + 2 * row:,}", f"{expert + 2 * row:,}"],
        ["all 2", "6", "", f"{4 * expert + 6 * row:,}", f"{2 * expert + 3 * row:,}"],
        ["lm_head", "", "", "976", "976"],
    ]


def test_attention_has_a_row_of_its_own() -> None:
    expert, row = 3 * 2 * (16 + 24), 16
    of_attention = 2 * (2 * (16 + 16) + 2 * (16 + 8))
    rows = cells(as_text(layer_table(extended_model(expert_rank=2, targets="both"))))[2:]
    assert [row[:5] for row in rows] == [
        ["0 attention", "4", "2", "3", f"{3 * of_attention + 4 * row:,}"],
        ["0", "4", "2", "3", f"{3 * expert + 4 * row:,}"],
        ["2 attention", "2", "2", "2", f"{of_attention + 2 * row:,}"],
        ["2", "2", "2", "2", f"{expert + 2 * row:,}"],
        ["all 4", "12", "", "", f"{4 * (expert + of_attention) + 12 * row:,}"],
    ]


def test_the_memory_table_says_what_is_in_it_and_what_is_not() -> None:
    model = extended_model()
    setup = Setup(None, num_processes=2, compute_dtype=torch.float16, shares_optimizer=True, offloads_optimizer=True)
    text = as_text(memory_table(model, estimate_memory(model, setup), setup, "adamw_torch"))
    rows = {row[0]: row[1:] for row in cells(text)}
    assert rows["base model"][0] == "float16"
    assert rows["DeepSpeed's copies"][0] == "float32, of what is trained, in the CPU's memory"
    assert rows["optimizer states"] == ["of an optimizer that is not known here, in the CPU's memory", "not known"]
    assert rows["activations"][0].startswith("not estimated without gradient checkpointing")
    assert "peak" not in rows
    assert "DDP's gradient buckets" not in rows
    assert text.isascii()


class Reporter(SimpleNamespace):
    """What the host's callback of this name holds."""

    model_args = SimpleNamespace(enable_liger_kernel=False)
    data_args = SimpleNamespace(cutoff_len=512)


def trainer_of(
    *, deepspeed: dict[str, Any] | None = None, fsdp: Any = None, checkpointing: bool = True, **arguments: Any
) -> Any:
    options = {"world_size": 1, "optim": "adamw_torch", "optim_args": None, "bf16": True, "fp16": False}
    options |= {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 3}
    others = dict.fromkeys(("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"), False)
    text_config = SimpleNamespace(vocab_size=61)
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: text_config), is_gradient_checkpointing=checkpointing
    )
    config = None if deepspeed is None else SimpleNamespace(hf_ds_config=HfDeepSpeedConfig(deepspeed))
    return SimpleNamespace(
        args=SimpleNamespace(**options | {name: value for name, value in arguments.items() if name in options}),
        finetuning_args=SimpleNamespace(**others | {n: v for n, v in arguments.items() if n in others}),
        model=model,
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=config, fsdp_plugin=fsdp)),
        is_deepspeed_enabled=deepspeed is not None,
        is_fsdp_enabled=fsdp is not None,
    )


def flags(setup: Setup) -> list[str]:
    return [name for name in FLAGS if getattr(setup, name)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, OptimizerStates(2)), ({"optim": "sgd"}, OptimizerStates(0)), ({"optim": "adafactor"}, None)]
    + [({name: True}, None) for name in ("use_galore", "use_muon")]
    + [({"optim_args": "momentum=0.9"}, None)],
)
def test_only_known_optimizers_are_reckoned(arguments: dict[str, Any], expected: OptimizerStates | None) -> None:
    assert setup_of(trainer_of(**arguments), Reporter()).optimizer == expected


def test_one_process_and_several() -> None:
    setup = setup_of(trainer_of(gradient_accumulation_steps=2), Reporter())
    assert (flags(setup), setup.keeps_gradients, setup.num_tokens, setup.num_logits) == ([], True, 3 * 512, 61)
    assert flags(setup_of(trainer_of(world_size=2), Reporter())) == ["has_buckets"]
    assert setup_of(trainer_of(checkpointing=False), Reporter()).num_tokens is None
    assert setup_of(trainer_of(), None).num_tokens is None


@pytest.mark.parametrize(("stage", "number"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_deepspeed(stage: int, number: int) -> None:
    setup = setup_of(trainer_of(world_size=2, deepspeed={"zero_optimization": {"stage": stage}}), Reporter())
    assert flags(setup) == list(FLAGS[:3][3 - number :])
    assert (setup.compute_dtype, setup.num_processes) == (torch.bfloat16, 2)
    offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert setup_of(trainer_of(deepspeed={"zero_optimization": offload}), Reporter()).offloads_optimizer
    other = {"optimizer": {"type": "OneBitAdam"}, "zero_optimization": {"stage": stage}}
    assert setup_of(trainer_of(deepspeed=other), Reporter()).optimizer is None


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({}, 3),
        ({"sharding_strategy": "SHARD_GRAD_OP"}, 2),
        ({"sharding_strategy": "NO_SHARD"}, 0),
        ({"fsdp_version": 2}, 3),
        ({"fsdp_version": 2, "reshard_after_forward": False}, 2),
    ],
)
def test_fsdp(options: dict[str, Any], shared: int) -> None:
    setup = setup_of(trainer_of(world_size=2, fsdp=FullyShardedDataParallelPlugin(**options)), Reporter())
    assert flags(setup) == list(FLAGS[:3][3 - shared :])
    assert setup.compute_dtype is None
