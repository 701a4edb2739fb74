"""The estimate of a run's memory: against the tensors of a real step, and in closed form for several processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import PeftModel, get_peft_model

from benchmarks.live_memory import LiveMemory
from neuronmoe_plugins.integrations.llamafactory.memory import OptimizerStates, Setup, estimate_memory
from tuner.tiny import moe_config, tiny_model

ADAMW = OptimizerStates(2)
HIDDEN, INTERMEDIATE, VOCABULARY, LAYERS = 16, 24, 61, 3
# Layers of 3, 1 and 2 experts: three experts beside the base MLPs, and five rows of routers.
ADDED = 3 * 3 * HIDDEN * INTERMEDIATE + 5 * HIDDEN


def mixture(base: torch.dtype = torch.bfloat16, **options: object) -> PeftModel:
    """A base model in a half precision and what is trained in float32, as LLaMA-Factory has them."""
    model = get_peft_model(tiny_model().to(base), moe_config(num_experts=[3, 1, 2], **options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def num_base(model: PeftModel) -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if ".moe_" not in name)


@pytest.mark.parametrize("options", [{}, {"train_only_router": True}])
@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        (torch.optim.AdamW, ADAMW),
        (torch.optim.Adagrad, OptimizerStates(1)),
        (torch.optim.RMSprop, OptimizerStates(1)),
        (torch.optim.SGD, OptimizerStates(0)),
    ],
)
def test_it_is_the_size_of_the_tensors_of_a_step(
    options: dict[str, bool], optimizer: type[torch.optim.Optimizer], states: OptimizerStates
) -> None:
    model = mixture(**options)
    estimate = estimate_memory(model, Setup(states))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    running = optimizer(trained, lr=1e-3)
    tokens = torch.arange(3, 40).unsqueeze(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    running.step()
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert estimate.base_weights + estimate.mixture_weights == buffers + sum(p.nbytes for p in model.parameters())
    assert estimate.mixture_weights == sum(p.nbytes for name, p in model.named_parameters() if ".moe_" in name)
    assert estimate.gradients == sum(parameter.grad.nbytes for parameter in trained)
    kept = [value for state in running.state.values() for name, value in state.items() if name != "step"]
    assert estimate.optimizer == sum(value.nbytes for value in kept)
    parts = (estimate.base_weights, estimate.mixture_weights, estimate.gradients, estimate.optimizer)
    assert estimate.without_activations == sum(parts)


def test_one_process_in_closed_form() -> None:
    estimate = estimate_memory(model := mixture(), Setup(ADAMW))
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert estimate.base_weights == 2 * num_base(model) + buffers
    assert (estimate.mixture_weights, estimate.gradients, estimate.optimizer) == (4 * ADDED, 4 * ADDED, 8 * ADDED)
    assert (estimate.master_weights, estimate.buckets, estimate.peak) == (0, 0, None)
    assert estimate_memory(mixture(train_only_router=True), Setup(ADAMW)).gradients == 4 * 5 * HIDDEN


def test_ddp_has_buckets_beside_the_gradients() -> None:
    estimate = estimate_memory(mixture(), Setup(ADAMW, num_processes=2, has_buckets=True))
    assert estimate.buckets == estimate.gradients == 4 * ADDED


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "states"), [(1, 1, 1, 4), (2, 1, 4, 4), (3, 4, 4, 4), (0, 1, 1, 1)]
)
def test_deepspeed_trains_float32_copies(stage: int, weights: int, gradients: int, states: int) -> None:
    shared = {"shares_weights": stage > 2, "shares_gradients": stage > 1, "shares_optimizer": stage > 0}
    setup = Setup(ADAMW, num_processes=4, compute_dtype=torch.bfloat16, **shared)
    estimate = estimate_memory(model := mixture(base=torch.float32), setup)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert estimate.base_weights == 2 * num_base(model) // weights + buffers
    assert estimate.mixture_weights == 2 * ADDED // weights
    assert estimate.gradients == 2 * ADDED // gradients + 6 * ADDED // states
    assert (estimate.master_weights, estimate.optimizer) == (4 * ADDED // states, 8 * ADDED // states)
    offloaded = estimate_memory(model, replace(setup, offloads_optimizer=True))
    assert offloaded.without_activations == offloaded.base_weights + offloaded.mixture_weights


def test_a_partitioned_parameter_counts_whole() -> None:
    """ZeRO-3 leaves nothing in a parameter but its number of elements."""
    whole = estimate_memory(model := mixture(), Setup(ADAMW))
    for parameter in model.parameters():
        parameter.ds_numel = parameter.numel()
        parameter.data = parameter.data.new_empty(0)
    assert estimate_memory(model, Setup(ADAMW)) == whole


def test_states_of_eight_bits_and_of_an_unknown_optimizer() -> None:
    assert estimate_memory(mixture(), Setup(OptimizerStates(2, 1 + 4 / 256))).optimizer == round(2 * ADDED * 260 / 256)
    unknown = estimate_memory(mixture(), Setup(None))
    assert unknown.optimizer is None
    assert unknown.without_activations == unknown.base_weights + unknown.mixture_weights + unknown.gradients


def test_activations_come_before_the_gradients_unless_these_are_kept() -> None:
    setup = Setup(ADAMW, num_tokens=2000, num_logits=VOCABULARY)
    estimate = estimate_memory(model := mixture(), setup)
    assert estimate.activations == 2000 * (2 * HIDDEN * LAYERS + 12 * VOCABULARY)
    assert estimate.activations > estimate.gradients
    assert estimate.peak == estimate.without_activations - estimate.gradients + estimate.activations
    kept = estimate_memory(model, replace(setup, keeps_gradients=True))
    assert kept.peak == kept.without_activations + kept.activations
    few = estimate_memory(model, replace(setup, num_tokens=1))
    assert few.peak == few.without_activations


@pytest.mark.parametrize(("vocab_size", "sixes"), [(400, 2), (6000, 1)])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_peak_is_near_that_of_a_real_step(vocab_size: int, sixes: int, accumulated: int) -> None:
    """With a small vocabulary the gradients are the most, with a large one the loss."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6 * sixes}
    base = tiny_model(**sizes, vocab_size=vocab_size).to(torch.bfloat16)
    model = get_peft_model(base, moe_config(num_experts=[3, 1, 2, 1, 4, 2] * sixes, aux_loss_coef=0.01)).train()
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    tokens = torch.randint(3, vocab_size, (1, 256))

    def step() -> None:
        for _ in range(accumulated):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    with LiveMemory([*model.parameters(), *model.buffers(), *states]) as memory:
        step()
    setup = Setup(ADAMW, num_tokens=256, num_logits=vocab_size, keeps_gradients=accumulated > 1)
    assert estimate_memory(model, setup).peak == pytest.approx(memory.peak, rel=0.1)
