"""Gradients of a whole model: those of the dense computation, no more work than needed, in several processes too."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from neuronmoe_plugins.tuner import MoeLayer
from tuner.tiny import FAMILIES, moe_config, randomised, tiny_model

Batch = dict[str, torch.Tensor]


def mixture(family: str = "llama", num_layers: int = 3, **options: object) -> PeftModel:
    torch.manual_seed(5)
    model = tiny_model(family, num_hidden_layers=num_layers)
    return randomised(get_peft_model(model, moe_config(**{"num_experts": [4, 1, 2]} | options))).train()


def loss_and_gradients(model: PeftModel, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    names = ["input_ids", "attention_mask", "labels"]
    names += [name for name in ("old_language_mask", "group_tags", "target_experts") if name in batch]
    loss = model(**{name: batch[name] for name in names}).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@contextmanager
def dense(model: PeftModel) -> Iterator[None]:
    """Run every expert on every token, weighted by 0 where the token did not choose it."""

    def forward(layer: MoeLayer, hidden_states: torch.Tensor) -> torch.Tensor:
        probabilities = torch.softmax(hidden_states @ layer.moe_router["default"].weight.T, dim=-1)
        threshold = probabilities.topk(2, dim=-1).values[..., -1:]
        chosen = probabilities * (probabilities >= threshold)
        outputs = torch.stack(
            [expert(hidden_states) for expert in layer._experts(layer._stacks("default")).runs()], dim=-1
        )
        return (outputs * (chosen / chosen.sum(dim=-1, keepdim=True)).unsqueeze(-2)).sum(dim=-1)

    layers = [module for module in model.modules() if isinstance(module, MoeLayer)]
    for layer in layers:
        layer.forward = lambda hidden_states, layer=layer: forward(layer, hidden_states)
    yield
    for layer in layers:
        del layer.forward


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_the_dense_computation(family: str, batch: Batch) -> None:
    model = mixture(family)
    found = loss_and_gradients(model, batch)
    with dense(model):
        expected = loss_and_gradients(model, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=name)
    assert sum(gradient.abs().max() > 1e-4 for gradient in found.values()) == len(found)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "gemma3_text"])
def test_checkpointing_gives_the_same_gradients(family: str, batch: Batch) -> None:
    options = {"aux_loss_coef": 0.3, "lpr_loss_coef": 0.2}
    expected = loss_and_gradients(mixture(family, **options), batch)
    model = mixture(family, **options)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in loss_and_gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def backward_flops(model: torch.nn.Module, hidden_states: torch.Tensor) -> int:
    output = model(hidden_states)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    return counter.get_total_flops()


def test_frozen_weights_cost_no_gradient_work() -> None:
    """A frozen MLP's backward is one product per projection, for its input; a trained one's is two."""
    tokens, hidden, inner, topk, num_experts = 20, 16, 24, 2, 4
    hidden_states = torch.randn(tokens, hidden, requires_grad=True)
    one_product = 2 * tokens * 3 * hidden * inner
    router = 2 * tokens * hidden * num_experts
    for only_router in (False, True):
        model = mixture(num_experts=num_experts, topk=topk, train_only_router=only_router)
        layer = model.base_model.model.model.layers[0].mlp
        with torch.no_grad():
            routed = torch.softmax(hidden_states @ layer.moe_router["default"].weight.T, -1).topk(topk).indices
        to_base = int((routed == 0).sum())
        trained = 0 if only_router else one_product * (tokens * topk - to_base) // tokens
        assert backward_flops(layer, hidden_states) == topk * one_product + trained + 2 * router
        assert all(p.grad is None for p in layer.base_layer.parameters())


# They meet in a file: a port that is free now may be another test's by the time they listen.
DDP_PROGRAM = """
import os
import peft
import torch
from torch.distributed import destroy_process_group, get_rank, init_process_group
from torch.nn.parallel import DistributedDataParallel
from tuner.tiny import moe_config, tiny_model

rank, store = int(os.environ["RANK"]), os.path.abspath("store")
init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(5)
options = {"num_experts": [8, 1, 2], "topk": 1, "old_num_experts": [2, 1, 2], "group_nums": [2, 0, 2]}
config = moe_config(**options, aux_loss_coef=0.1, classify_loss_coef=0.1)
model = DistributedDataParallel(peft.get_peft_model(tiny_model(), config).train())
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
for step in range(3):
    input_ids = torch.full((1, 2), 3 + get_rank() + 2 * step)
    loss = model(input_ids=input_ids, labels=input_ids, group_tags=torch.tensor([get_rank()])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    optimizer.step()
    optimizer.zero_grad()
torch.save({n: p for n, p in model.module.named_parameters() if p.requires_grad}, f"rank{get_rank()}.pt")
destroy_process_group()
"""


def test_ddp_needs_no_search_for_unused_parameters(tmp_path: Path, forked_python: Path) -> None:
    """With two tokens and eight experts, most experts get none on either process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [forked_python / "python", "-c", DDP_PROGRAM], env=environment | {"RANK": str(rank)}, cwd=tmp_path
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=180) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_compiled_forward_gives_the_same(batch: Batch) -> None:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.manual_seed(5)
    model = randomised(get_peft_model(tiny_model(num_hidden_layers=1), moe_config(num_experts=4)))
    with torch.no_grad():
        expected = model(**inputs).logits
        found = torch.compile(model)(**inputs).logits
    torch._dynamo.reset()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox"])
def test_a_compiled_model_trains_the_same(family: str, batch: Batch) -> None:
    options = {"num_experts": [4], "aux_loss_coef": 0.3, "num_layers": 1}
    expected = loss_and_gradients(mixture(family, **options), batch)
    model = mixture(family, **options)
    model.compile(backend="aot_eager")
    found = loss_and_gradients(model, batch)
    torch._dynamo.reset()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
