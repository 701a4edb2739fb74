"""LLaMA-Factory's v1: `USE_V1=1 llamafactory-cli sft` trains stage 1, and what it has no data for is said at once."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from training_runs import tools_environment

from neuronmoe_plugins.errors import UserError

EXPERTS = {"name": "moe", "ada_moe_num_experts_list": [3, 1, 1, 2]}


def sft(folder: Path, model: Path, **peft_config: Any) -> subprocess.CompletedProcess[str]:
    """Run it on two dozen conversations, with a mixture of these settings."""
    rows = [{"instruction": "abc" * (1 + i % 4), "output": "δεζ" * (1 + i % 3)} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"path": str(folder / "rows.jsonl"), "source": "local", "converter": "alpaca"}
    (folder / "data.yaml").write_text(yaml.safe_dump({"tiny": data}))
    arguments = {
        "model": str(model),
        "template": "chatml",
        "peft_config": EXPERTS | peft_config,
        "train_dataset": str(folder / "data.yaml"),
        "output_dir": str(folder / "out"),
        "micro_batch_size": 2,
        "global_batch_size": 4,
        "cutoff_len": 128,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "bf16": False,
        "batching_workers": 0,
    }
    (folder / "sft.yaml").write_text(yaml.safe_dump(arguments))
    command = ["llamafactory-cli", "sft", str(folder / "sft.yaml")]
    environment = tools_environment(USE_V1="1")
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)


def test_stage_1(tiny_model_dir: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = sft(tmp_path, tiny_model_dir, aux_loss_coef=0.5)
    assert result.returncode == 0, result.stderr[-4000:]
    pattern = r"step: \d, loss: (\S+), .*lm_loss: (\S+), aux_loss: (\S+),"
    steps = [tuple(map(float, match)) for match in re.findall(pattern, result.stdout + result.stderr)]
    assert len(steps) == 3
    for loss, lm_loss, aux_loss in steps:
        assert loss == pytest.approx(lm_loss + 0.5 * aux_loss, abs=2e-4)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    mlp = PeftModel.from_pretrained(base, tmp_path / "out").base_model.model.model.layers[0].mlp
    experts = mlp.moe_up_proj["default"]
    assert experts.shape == (2, 48, 32)
    assert all(not expert.equal(mlp.base_layer.up_proj.weight) for expert in experts)


def test_stage_2_ends_in_one_line(tiny_model_dir: Path, tmp_path: Path) -> None:
    result = sft(tmp_path, tiny_model_dir, lpr_loss_coef=0.1)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "lpr_loss_coef: LLaMA-Factory's v1 has no tags that tell the language of a token" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_expert": 2}, r"unknown key num_expert: did you mean num_experts\?"),
        ({"num_experts": 2}, "give one of them"),
        ({"adapter_name_or_path": ["a", "b"]}, "one adapter"),
        ({"train_only_router": True}, "set adapter_name_or_path"),
        ({"sequential_add_mask": True}, "v1 has no tags"),
        (
            {"router_learning_rate": 1e-4},
            "^peft_config: router_learning_rate: v1 has one learning rate for all: remove",
        ),
        ({"ada_moe_num_experts_list": None}, "number of experts is missing"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    from neuronmoe_plugins.integrations.llamafactory_v1 import read_config

    with pytest.raises(UserError, match=message):
        read_config(EXPERTS | settings)


def test_experts_in_the_words_of_peft() -> None:
    from neuronmoe_plugins.integrations.llamafactory_v1 import read_config

    assert read_config({"name": "moe", "num_experts": [2, 1]})[0].expert_list == [2, 1]
    assert read_config({"name": "moe", "num_experts": 3})[0].moe_num_experts == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dist_config": {"name": "fsdp2"}}, "does not train mixtures in v1"),
        ({"dist_config": {"name": "fsdpturbo"}}, "does not train mixtures in v1"),
        ({"cp_size": 2}, "^cp_size: 2 does not train mixtures in v1: train without USE_V1, with finetuning_type: moe$"),
        ({"optim_config": {"name": "muon"}}, "^optim_config: muon would train the routers alone"),
        ({"init_config": {"name": "init_on_meta"}}, "leaves experts nothing to copy"),
        ({"kernel_config": {"name": "liger_kernel"}}, "cannot put liger_kernel into a PEFT model"),
        ({"peft_config": {"name": "moe", "adapter_name_or_path": "/nowhere"}}, "^adapter_name_or_path: /nowhere does"),
    ],
)
def test_settings_that_v1_cannot_combine(settings: dict[str, Any], message: str) -> None:
    from neuronmoe_plugins.integrations.llamafactory_v1 import check_run

    names = ("dist_config", "init_config", "kernel_config", "peft_config")
    arguments = SimpleNamespace(**dict.fromkeys(names) | {"peft_config": EXPERTS} | settings)
    with pytest.raises(UserError, match=message):
        check_run(arguments, arguments)


def test_arguments_of_a_later_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafactory.v1.config import arg_parser

    later = make_dataclass("Later", [("later", int, 1)], bases=(arg_parser.TrainingArguments,))
    monkeypatch.setattr(arg_parser, "TrainingArguments", later)
    given = {"peft_config": EXPERTS, "later": 2}
    with pytest.raises(UserError, match=r"moe: later; remove it, or let it through by moe_allow_arguments: later$"):
        arg_parser.get_args(given)
    assert arg_parser.get_args(given | {"later": 1})[2].later == 1
    assert arg_parser.get_args(given | {"peft_config": EXPERTS | {"moe_allow_arguments": "later"}})[2].later == 2


def test_a_trainer_without_a_hook_trains_no_mixture(tiny_model_dir: Path) -> None:
    from llamafactory.v1.core.base_trainer import BaseTrainer
    from llamafactory.v1.trainers.rm_trainer import RMTrainer
    from llamafactory.v1.trainers.sft_trainer import SFTTrainer
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from neuronmoe_plugins.tuner import MoeConfig

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    mixture = get_peft_model(base, MoeConfig(num_experts=2, task_type="CAUSAL_LM"))
    other = type("OtherTrainer", (BaseTrainer,), {"compute_loss": lambda self, batch: 0})
    arguments = SimpleNamespace(dist_config=None, cp_size=1)
    for kind in (RMTrainer, other):
        with pytest.raises(UserError, match=f"^peft_config: {kind.__name__} of v1 would train moe without"):
            kind(arguments, mixture, None, None)
    for kind, model in ((SFTTrainer, mixture), (other, AutoModelForCausalLM.from_pretrained(tiny_model_dir))):
        with pytest.raises(AttributeError):  # the host goes on, and needs more
            kind(arguments, model, None, None)
