"""Several threads call one model: each forward is its own, and `nn.DataParallel`'s replicas are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from neuronmoe_plugins.tuner import MoeLayer
from tuner.tiny import GROUPS, moe_config, randomised, tiny_model


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Let threads take turns as often as Python can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def mixture(**options: object) -> PeftModel:
    torch.manual_seed(5)
    return randomised(get_peft_model(tiny_model(), moe_config(**GROUPS | options)))


@pytest.mark.usefixtures("many_switches")
def test_a_prompt_gets_the_same_logits_beside_other_threads() -> None:
    model = mixture().eval()
    batches = [torch.randint(3, 40, (1 + i % 3, 4 + i % 5)) for i in range(24)]

    def run(tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits

    alone = [run(tokens) for tokens in batches]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for expected, logits in zip(alone, threads.map(run, batches), strict=True):
                assert torch.equal(logits, expected)


def test_a_thread_that_only_recomputes_sees_the_mask_of_the_forward() -> None:
    model = mixture().train()
    layer = next(module for module in model.modules() if isinstance(module, MoeLayer))
    tokens = torch.randint(3, 40, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    model(input_ids=tokens, attention_mask=mask)
    states = torch.randn(2, 6, model.config.hidden_size, requires_grad=True)
    output = checkpoint(layer, states, use_reentrant=False)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(output.sum().backward).result()
    assert torch.equal(layer.context.current.attention_mask, mask)
    assert states.grad is not None


def test_replicas_of_data_parallel_are_refused() -> None:
    model = mixture(aux_loss_coef=0.01).train()
    tokens = torch.randint(3, 40, (2, 6))
    with pytest.raises(ValueError, match=r"does not run under torch\.nn\.DataParallel"):
        replica(model)(input_ids=tokens, labels=tokens)


def replica(module: nn.Module) -> nn.Module:
    """What `torch.nn.parallel.replicate`, which needs GPUs, makes of a module: a copy that shares its attributes."""
    copy = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        copy._modules[name] = None if child is None else replica(child)
    for name, parameter in module._parameters.items():
        setattr(copy, name, parameter)
    return copy
