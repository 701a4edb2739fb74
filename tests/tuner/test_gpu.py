"""The tuner on a CUDA device gives what it gives on the CPU."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from neuronmoe_plugins.tuner import MoeConfig
from tuner.tiny import tiny_model


@pytest.mark.gpu
def test_losses_and_gradients_equal_those_of_the_cpu(batch: dict[str, torch.Tensor]) -> None:
    results = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(7)
        config = MoeConfig(task_type="CAUSAL_LM", num_experts=3, aux_loss_coef=0.3, lpr_loss_coef=0.2)
        model = get_peft_model(tiny_model(), config).to(device).train()
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        loss.backward()
        results.append([loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.requires_grad)])
    for on_cpu, on_gpu in zip(*results, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, atol=1e-4, rtol=1e-4)
