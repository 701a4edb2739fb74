"""LLaMA-Factory's browser interface without a browser: what its forms make of `moe` is accepted and runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

Form = Callable[..., dict[str, Any]]

EXPERTS = {"ada_moe_num_experts_list": "3,1,1,2", "aux_loss_coef": 0.01}


class Manager:
    """Every element of the interface is its own name."""

    def get_elem_by_id(self, name: str) -> str:
        return name


@pytest.fixture
def form(tiny_model_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Form:
    """Values of the interface's elements, as it has them at first, but for a run of two steps on the CPU."""
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {
        "top.lang": "en",
        "top.model_name": "Custom",
        "top.model_path": str(tiny_model_dir),
        "top.finetuning_type": "moe",
        "top.checkpoint_path": [],
        "top.quantization_bit": "none",
        "top.template": "empty",
        "top.rope_scaling": "none",
        "top.booster": "auto",
        "train.training_stage": "Pre-Training",
        "train.dataset_dir": str(data_dir),
        "train.dataset": ["el_even"],
        "train.learning_rate": "5e-5",
        "train.num_train_epochs": "3.0",
        "train.max_grad_norm": "1.0",
        "train.max_samples": "100000",
        "train.compute_type": "fp32",
        "train.cutoff_len": 64,
        "train.batch_size": 2,
        "train.gradient_accumulation_steps": 1,
        "train.val_size": 0,
        "train.lr_scheduler_type": "cosine",
        "train.logging_steps": 1,
        "train.save_steps": 100,
        "train.warmup_steps": 0,
        "train.neftune_alpha": 0,
        "train.report_to": "none",
        "train.output_dir": str(tmp_path / "stage1"),
        "train.ds_stage": "none",
        "train.extra_args": json.dumps(EXPERTS | {"max_steps": 2, "use_cpu": True, "preprocessing_num_workers": 1}),
        "infer.infer_backend": "huggingface",
        "infer.infer_dtype": "auto",
        "infer.extra_args": json.dumps({"do_sample": False, "max_new_tokens": 8}),
    }
    switches = ("packing", "neat_packing", "train_on_prompt", "mask_history", "resize_vocab", "use_llama_pro")
    optimizers = ("enable_thinking", "use_galore", "use_apollo", "use_badam", "use_swanlab")
    values |= {f"train.{name}": False for name in (*switches, *optimizers)}
    return lambda **changed: values | {name.replace("__", "."): value for name, value in changed.items()}


def test_the_method_is_offered() -> None:
    from llamafactory.extras.constants import METHODS, PEFT_METHODS

    assert METHODS == ["full", "freeze", "lora", "oft", "moe"] and {"lora", "oft", "moe"} == PEFT_METHODS


def test_the_forms_train_chat_and_export(form: Form, tmp_path: Path) -> None:
    from llamafactory.train.tuner import run_exp
    from llamafactory.webui.chatter import WebChatModel
    from llamafactory.webui.common import save_cmd
    from llamafactory.webui.components.export import save_model
    from llamafactory.webui.runner import Runner

    runner = Runner(Manager())
    stages = {"stage1": form(), "stage2": form(top__checkpoint_path=[str(tmp_path / "stage1")])}
    stages["stage2"]["train.output_dir"] = str(tmp_path / "stage2")
    for stage, values in stages.items():
        args = yaml.safe_load(Path(save_cmd(runner._parse_train_args(values))).read_text())
        assert args["finetuning_type"] == "moe" and args.get("adapter_name_or_path", "") in (
            "",
            str(tmp_path / "stage1"),
        )
        run_exp(args)
        assert (tmp_path / stage / "adapter_model.safetensors").exists()

    stage2 = [str(tmp_path / "stage2")]
    chat = WebChatModel(Manager())
    list(chat.load_model(form(top__checkpoint_path=stage2)))
    assert chat.engine.model.peft_config["default"].peft_type == "MOE"
    assert chat.chat([{"role": "user", "content": "abc"}])[0].response_length > 0

    export = (5, "none", "data/c4_demo.jsonl", "cpu", False, str(tmp_path / "exported"), "", "{}")
    model = chat.engine.model.base_model.model.config.name_or_path
    list(save_model("en", "Custom", model, "moe", stage2, "empty", *export))
    assert load_file(tmp_path / "exported" / "adapter_model.safetensors").keys()
