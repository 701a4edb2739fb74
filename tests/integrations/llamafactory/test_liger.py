"""`enable_liger_kernel`: a stand-in of Liger-Kernel's structure on the CPU, and the package itself on a GPU."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
import wrapt
from torch import nn
from training_runs import llamafactory_train, losses, train
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama import modeling_llama

PACKAGE = "liger_kernel.transformers"


class LigerSwiGLUMLP(nn.Module):
    """As Liger's: the activation is inside the kernel, and no attribute tells which it is."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * up)


def loss_without_logits(self: Any, labels: Any = None, **kwargs: Any) -> CausalLMOutputWithPast:
    """As Liger's forward of a causal LM: in training, the loss straight from the hidden states."""
    num_items = kwargs.pop("num_items_in_batch", None)
    logits = self.lm_head(self.model(**kwargs).last_hidden_state)
    loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items)
    return CausalLMOutputWithPast(loss=loss, logits=None if self.training else logits)


def apply_liger_kernel_to_llama(model: Any = None) -> None:
    """As Liger's: patches the classes, or a model that is there already."""
    if model is None:
        modeling_llama.LlamaMLP = LigerSwiGLUMLP
        modeling_llama.LlamaForCausalLM.forward = loss_without_logits
        return
    model.forward = MethodType(loss_without_logits, model)
    for layer in model.model.layers:
        sys.modules[f"{PACKAGE}.monkey_patch"]._patch_swiglu_module(layer.mlp, LigerSwiGLUMLP)


def bind_forward(module: nn.Module, liger_module: type) -> None:
    module.__dict__["forward"] = MethodType(liger_module.forward, module)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in in place of the package, as if just imported; what it patches is restored."""
    import llamafactory.train.tuner  # noqa: F401 (looks for the package itself, in vain)

    monkeypatch.setattr(modeling_llama, "LlamaMLP", modeling_llama.LlamaMLP)
    monkeypatch.setattr(LlamaForCausalLM, "forward", LlamaForCausalLM.forward)
    content = {
        PACKAGE: {
            "apply_liger_kernel_to_llama": apply_liger_kernel_to_llama,
            "_apply_liger_kernel_to_instance": apply_liger_kernel_to_llama,
        },
        f"{PACKAGE}.swiglu": {"LigerSwiGLUMLP": LigerSwiGLUMLP},
        f"{PACKAGE}.monkey_patch": {"_patch_swiglu_module": bind_forward, "_patch_geglu_module": bind_forward},
    }
    for name, members in {PACKAGE.split(".")[0]: {}, **content}.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        wrapt.notify_module_loaded(module)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr("llamafactory.hparams.parser.check_version", lambda *args, **kwargs: None)


@pytest.fixture
def liger_args(moe_args: dict[str, Any]) -> dict[str, Any]:
    return moe_args | {"max_steps": 2, "aux_loss_coef": 0.5, "gradient_accumulation_steps": 2}


@pytest.mark.usefixtures("liger")
def test_a_mixture_of_ligers_mlps_trains_the_same(liger_args: dict[str, Any], tmp_path: Path) -> None:
    """transformers' own key patches the model after the mixture is made, LLaMA-Factory's the classes before."""
    plain = train(liger_args, tmp_path / "plain")
    for key in ("use_liger_kernel", "enable_liger_kernel"):
        with_liger = train(liger_args, tmp_path / key, **{key: True})
        for one, other in zip(plain, with_liger, strict=True):
            for name in ("loss", "lm_loss", "aux_loss", "grad_norm"):
                assert other[name] == pytest.approx(one[name], rel=1e-4), (key, name)


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="needs liger-kernel")
def test_a_mixture_with_ligers_kernels_trains_the_same(liger_args: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "run" / "liger.yaml"
    config.parent.mkdir()
    config.write_text(json.dumps(liger_args | {"use_cpu": False}))
    for name, key in (("plain", "logging_steps=1"), ("liger", "enable_liger_kernel=true")):
        llamafactory_train(config, f"output_dir={tmp_path / name}", key, CUDA_VISIBLE_DEVICES="0")
    for one, other in zip(losses(tmp_path / "plain"), losses(tmp_path / "liger"), strict=True):
        for name in ("loss", "lm_loss", "aux_loss"):
            assert other[name] == pytest.approx(one[name], rel=1e-3), name
